//! `doctor`

use host_config::Loaded;

use super::{
    failure::Failure,
    output::{GREEN, Out, RED, YELLOW},
    progress::Progress,
};
use crate::{
    doctor::{Check, Report, Verdict, examine},
    plugins,
};

/// Fails when a check does, after telling all of them.
pub(crate) async fn doctor(loaded: &Loaded, json: bool, out: &mut Out) -> Result<(), Failure> {
    let progress = Progress::new("looking at this host");
    let report = examine(loaded, &plugins::registry(loaded)).await;
    drop(progress);
    if json {
        out.json(&report)?;
    } else {
        show(&report, out)?;
    }
    match report.verdict {
        Verdict::Fail => Err(Failure::Shown),
        _ => Ok(()),
    }
}

fn show(report: &Report, out: &mut Out) -> Result<(), Failure> {
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or_default();
    for check in &report.checks {
        let (colour, word) = match check.verdict {
            Verdict::Ok => (GREEN, "ok  "),
            Verdict::Warn => (YELLOW, "warn"),
            Verdict::Fail => (RED, "FAIL"),
        };
        let Check { name, found, remedy, .. } = check;
        out.line(format_args!("{colour}{word}{colour:#}  {name:width$}  {found}"))?;
        if let Some(remedy) = remedy {
            out.line(format_args!("      {:width$}  → {remedy}", ""))?;
        }
    }
    out.line(format_args!("{}", summary(report)))?;
    Ok(())
}

fn summary(report: &Report) -> String {
    let count = |verdict| report.checks.iter().filter(|check| check.verdict == verdict).count();
    let (warnings, failures) = (count(Verdict::Warn), count(Verdict::Fail));
    let things = |count| {
        if count == 1 { "1 thing".to_owned() } else { format!("{count} things") }
    };
    let profile = &report.profile;
    match (failures, warnings) {
        (0, 0) => format!("{GREEN}this host is ready for profile {profile}{GREEN:#}"),
        (0, _) => {
            let better = things(warnings);
            format!("{YELLOW}this host can run profile {profile}; {better} could be better{YELLOW:#}")
        }
        _ => {
            let broken = things(failures);
            format!("{RED}this host is not ready for profile {profile}: {broken} to do{RED:#}")
        }
    }
}
