//! What each implementation does and does not do, side by side, as `docs/conformance.md` has it.
//!
//! Each implementation is tried by a test of its own plugin, in a process of its own, and answers for its column:
//! [`keep`] fails where the file says something else than the report. With `UPDATE_CONFORMANCE=1` it corrects the file.

use std::{
    collections::BTreeMap,
    env, fmt,
    fs::{self, File},
    io,
    path::Path,
};

use crate::report::{Outcome, Report};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");
const UPDATE: &str = "UPDATE_CONFORMANCE";
const INTRODUCTION: &str = "\
# What every runtime does

Made by the tests, which fail where it is not what they see; `UPDATE_CONFORMANCE=1 make test` writes it anew. One column
for each implementation, on the machines that CI runs on: ✓ holds, – is declared unsupported, for the reason below.
";

/// How one behaviour of one implementation is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cell {
    Holds,
    /// And why not.
    Unsupported(String),
}

/// Implementation × behaviour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// In the order of rows.
    behaviours: Vec<String>,
    columns: Vec<(String, BTreeMap<String, Cell>)>,
}

/// Compares the file's column with a report that holds. Outside of CI, where a host may lack or have what CI's machines
/// do not, only the rows are compared.
///
/// # Errors
/// The file cannot be read or written, or says something else; what is in the text.
pub fn keep(report: &Report) -> Result<(), String> {
    let text = |error: io::Error| format!("{FILE}: {error}");
    if env::var_os(UPDATE).is_some() {
        return update(Path::new(FILE), report).map_err(text);
    }
    let kept = Table::read(&fs::read_to_string(FILE).map_err(text)?);
    let seen = kept.clone().with(report);
    let is_same = if env::var_os("CI").is_some() { kept == seen } else { kept.has_rows_of(report) };
    if is_same {
        return Ok(());
    }
    Err(format!("docs/conformance.md is not what {} does; {UPDATE}=1 writes\n{seen}", report.implementation))
}

/// Other tests may be doing the same for their columns.
fn update(path: &Path, report: &Report) -> io::Result<()> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    file.lock()?;
    let table = Table::read(&fs::read_to_string(path)?).with(report);
    fs::write(path, format!("{INTRODUCTION}\n{table}\n"))
}

impl Table {
    /// With a report in place of the column of that name, or as one more. Its rows become the table's.
    #[must_use]
    pub fn with(mut self, report: &Report) -> Self {
        let title = |behaviour: &str| behaviour.replace('_', " ");
        let cell = |outcome: &Outcome| match outcome {
            Outcome::Passed => Cell::Holds,
            Outcome::Skipped(why) | Outcome::Failed(why) => Cell::Unsupported(why.clone()),
        };
        let cells = report.tried.iter().map(|tried| (title(tried.behaviour), cell(&tried.outcome))).collect();
        self.behaviours = report.tried.iter().map(|tried| title(tried.behaviour)).collect();
        let name = &report.implementation;
        match self.columns.iter_mut().find(|(column, _)| column == name) {
            Some((_, column)) => *column = cells,
            None => self.columns.push((name.clone(), cells)),
        }
        self.columns.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (_, column) in &mut self.columns {
            column.retain(|behaviour, _| self.behaviours.contains(behaviour));
        }
        self
    }

    /// Whether there is a column for it, and the rows are its behaviours.
    fn has_rows_of(&self, report: &Report) -> bool {
        let is_there = self.columns.iter().any(|(column, _)| *column == report.implementation);
        is_there && self.behaviours == Self::default().with(report).behaviours
    }

    /// What [`fmt::Display`] has written; whatever else there is in the text is passed over.
    pub fn read(text: &str) -> Self {
        let mut rows = text.lines().filter_map(cells);
        let mut table = Self::default();
        let Some((_, names)) = rows.next() else {
            return table;
        };
        table.columns = names.iter().map(|name| ((*name).to_owned(), BTreeMap::new())).collect();
        for (behaviour, marks) in rows.filter(|(behaviour, _)| !behaviour.starts_with("---")) {
            table.behaviours.push(behaviour.to_owned());
            for ((_, column), mark) in table.columns.iter_mut().zip(marks) {
                if mark == "✓" {
                    column.insert(behaviour.to_owned(), Cell::Holds);
                }
            }
        }
        for (name, behaviours, why) in text.lines().filter_map(reason) {
            let column = table.columns.iter_mut().find(|(column, _)| column == name);
            let Some((_, column)) = column else { continue };
            column.extend(behaviours.map(|it| (it.to_owned(), Cell::Unsupported(why.to_owned()))));
        }
        table
    }
}

/// A row's first cell, and the others.
fn cells(line: &str) -> Option<(&str, Vec<&str>)> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    let mut cells = inner.split('|').map(str::trim);
    Some((cells.next()?, cells.collect()))
}

/// `- **NAME**: BEHAVIOUR; BEHAVIOUR – WHY`
fn reason(line: &str) -> Option<(&str, impl Iterator<Item = &str>, &str)> {
    let (name, rest) = line.strip_prefix("- **")?.split_once("**: ")?;
    let (behaviours, why) = rest.split_once(" – ")?;
    Some((name, behaviours.split("; "), why))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| behaviour |")?;
        for (name, _) in &self.columns {
            write!(f, " {name} |")?;
        }
        write!(f, "\n|---|{}", "---|".repeat(self.columns.len()))?;
        for behaviour in &self.behaviours {
            write!(f, "\n| {behaviour} |")?;
            for (_, column) in &self.columns {
                let mark = match column.get(behaviour) {
                    None => "",
                    Some(Cell::Holds) => "✓",
                    Some(Cell::Unsupported(_)) => "–",
                };
                write!(f, " {mark} |")?;
            }
        }
        for (name, column) in &self.columns {
            for (place, (why, behaviours)) in self.reasons(column).iter().enumerate() {
                let begin = if place == 0 { "\n\n" } else { "\n" };
                write!(f, "{begin}- **{name}**: {} – {why}", behaviours.join("; "))?;
            }
        }
        Ok(())
    }
}

impl Table {
    /// A column's reasons, each with what it is the reason of.
    fn reasons<'a>(&'a self, column: &'a BTreeMap<String, Cell>) -> Vec<(&'a str, Vec<&'a str>)> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for behaviour in &self.behaviours {
            let Some(Cell::Unsupported(why)) = column.get(behaviour) else { continue };
            match reasons.iter_mut().find(|(known, _)| known == why) {
                Some((_, behaviours)) => behaviours.push(behaviour),
                None => reasons.push((why, vec![behaviour])),
            }
        }
        reasons
    }
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

    fn skipped(why: &str) -> Outcome {
        Outcome::Skipped(why.to_owned())
    }

    fn both() -> Table {
        let one = [("it_works", Outcome::Passed), ("it_renders", skipped("it lacks a GPU: none is there"))];
        let other = [("it_works", skipped("it is late")), ("it_renders", skipped("it is late"))];
        Table::default().with(&report("other", &other)).with(&report("one", &one))
    }

    #[test]
    fn every_behaviour_has_a_row_and_every_lack_its_reason() {
        let expected = "\
| behaviour | one | other |
|---|---|---|
| it works | ✓ | – |
| it renders | – | – |

- **one**: it renders – it lacks a GPU: none is there

- **other**: it works; it renders – it is late";
        assert_eq!(both().to_string(), expected);
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(Table::read(&format!("{INTRODUCTION}\n{}\n", both())), both());
        assert_eq!(Table::read(INTRODUCTION), Table::default());
    }

    #[test]
    fn a_report_takes_its_own_column_only_and_forgets_what_is_no_behaviour_any_more() {
        let table = both().with(&report("one", &[("it_renders", Outcome::Passed)]));
        let expected = "\
| behaviour | one | other |
|---|---|---|
| it renders | ✓ | – |

- **other**: it renders – it is late";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_file_is_brought_up_to_date_and_stays_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("table.md");
        for name in ["one", "other", "one"] {
            update(&path, &report(name, &[("it_works", Outcome::Passed)])).unwrap();
        }
        let table = Table::read(&fs::read_to_string(path).unwrap());
        assert_eq!(table.to_string(), "| behaviour | one | other |\n|---|---|---|\n| it works | ✓ | ✓ |");
    }
}
