//! Several reports side by side.

use std::fmt::Write;

use crate::report::{Outcome, Report};

/// Implementation × behaviour in Markdown: a mark in each cell, and below the table the reason of each that is not a
/// pass. A behaviour that an implementation was not tried on has an empty cell.
pub fn table(reports: &[Report]) -> String {
    let mut behaviours: Vec<&str> = Vec::new();
    for tried in reports.iter().flat_map(|report| &report.tried) {
        if !behaviours.contains(&tried.behaviour) {
            behaviours.push(tried.behaviour);
        }
    }
    let mut text = String::from("| behaviour |");
    let mut reasons = String::new();
    for report in reports {
        push(&mut text, format_args!(" {} |", report.implementation));
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(reports.len()));
    for behaviour in behaviours {
        push(&mut text, format_args!("\n| {} |", behaviour.replace('_', " ")));
        for report in reports {
            let tried = report.tried.iter().find(|tried| tried.behaviour == behaviour);
            let (mark, reason) = match tried.map(|tried| &tried.outcome) {
                None => ("", None),
                Some(Outcome::Passed) => ("✓", None),
                Some(Outcome::Skipped(lacking)) => ("–", Some(format!("lacks {lacking}"))),
                Some(Outcome::Failed(why)) => ("✗", Some(why.clone())),
            };
            push(&mut text, format_args!(" {mark} |"));
            if let Some(reason) = reason {
                let behaviour = behaviour.replace('_', " ");
                push(&mut reasons, format_args!("\n- {}, {behaviour}: {reason}", report.implementation));
            }
        }
    }
    if !reasons.is_empty() {
        text.push('\n');
        text.push_str(&reasons);
    }
    text
}

fn push(text: &mut String, piece: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(piece);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::Tried;

    fn report(implementation: &str, tried: &[(&'static str, Outcome)]) -> Report {
        let tried = tried.iter().map(|(behaviour, outcome)| Tried {
            behaviour,
            outcome: outcome.clone(),
            took: Duration::ZERO,
        });
        Report { implementation: implementation.to_owned(), tried: tried.collect() }
    }

    #[test]
    fn every_behaviour_has_a_row_and_every_lack_its_reason() {
        let skipped = Outcome::Skipped("a GPU".to_owned());
        let failed = Outcome::Failed("it is late".to_owned());
        let one = report("one", &[("it_works", Outcome::Passed), ("it_renders", skipped)]);
        let two = report("two", &[("it_works", failed)]);
        let expected = "\
| behaviour | one | two |
|---|---|---|
| it works | ✓ | ✗ |
| it renders | – |  |

- two, it works: it is late
- one, it renders: lacks a GPU";
        assert_eq!(table(&[one, two]), expected);
    }
}
