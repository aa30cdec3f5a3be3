//! Labels, lists and logs.

use std::{collections::BTreeSet, time::Duration};

use futures::{TryStreamExt, stream::BoxStream};
use host_core::runtime::{
    Container, ContainerState, Exit, LogChunk, LogOptions, Result as Outcome, Selector,
};

use super::{
    Fixture,
    trial::{LABEL, Trial},
};
use crate::{
    ensure,
    report::{Unmet, Verdict},
};

/// More than the test mandelbox needs to end.
const GRACE: Duration = Duration::from_secs(30);

fn names(found: &[Container]) -> BTreeSet<&str> {
    found.iter().map(|container| container.name.as_str()).collect()
}

pub(super) async fn labels_are_kept_and_select(fixture: &dyn Fixture) -> Verdict {
    let labelled = |value: &'static str| {
        Ok::<_, Unmet>(Trial::of(fixture)?.with(|spec| {
            spec.labels.insert("conformance.odd".to_owned(), "a=b, \"c\" ü".to_owned());
            spec.labels.insert("conformance.side".to_owned(), value.to_owned());
        }))
    };
    let (left, right) = (labelled("left")?, labelled("right")?);
    for trial in [&left, &right] {
        trial.create().await?;
        let seen = trial.seen().await?.labels;
        for (key, value) in &trial.spec.labels {
            ensure!(seen.get(key) == Some(value), "{key} = {value:?} became {:?}", seen.get(key));
        }
    }
    let (left_name, right_name) = (left.spec.name.as_str(), right.spec.name.as_str());
    let any = Selector([("conformance.side".to_owned(), None)].into());
    let both = Selector(
        [
            ("conformance.side".to_owned(), Some("left".to_owned())),
            (LABEL.to_owned(), Some(right_name.to_owned())),
        ]
        .into(),
    );
    for (selector, expected) in [
        (any, vec![left_name, right_name]),
        (Selector::label("conformance.side", "left"), vec![left_name]),
        (Selector::label("conformance.odd", "a=b, \"c\" ü"), vec![left_name, right_name]),
        (Selector::label("conformance.side", "lef"), vec![]),
        (both, vec![]),
    ] {
        let found = fixture.runtime().list(&selector).await?;
        let expected: BTreeSet<_> = expected.into_iter().collect();
        ensure!(names(&found) == expected, "{selector:?} found {:?}", names(&found));
    }
    Ok(())
}

pub(super) async fn a_list_tells_every_state(fixture: &dyn Fixture) -> Verdict {
    let created = Trial::of(fixture)?;
    let running = Trial::of(fixture)?;
    let ended = Trial::of(fixture)?.told(&["exit-at-once", "7"]);
    created.create().await?;
    running.start().await?;
    ended.start().await?;
    ended.exit().await?;
    let exit = Exit { code: Some(7), oom: false };
    for (trial, expected) in [
        (created, ContainerState::Created),
        (running, ContainerState::Running),
        (ended, ContainerState::Exited(exit)),
    ] {
        let name = trial.spec.name.as_str();
        let found = trial.runtime.list(&Selector::label(LABEL, name)).await?;
        let [listed] = found.as_slice() else {
            return Err(Unmet::Broken(format!("{name} is listed as {found:?}")));
        };
        ensure!(listed.state == expected, "{expected:?} is listed as {:?}", listed.state);
        let inspected = trial.seen().await?;
        let listed = Container { pid: inspected.pid, ..listed.clone() };
        ensure!(listed == inspected, "{listed:?} is listed, {inspected:?} inspected");
    }
    Ok(())
}

pub(super) async fn a_log_is_complete_and_ends(fixture: &dyn Fixture) -> Verdict {
    read_logs(fixture, false).await
}

pub(super) async fn a_terminals_log_is_complete_and_ends(fixture: &dyn Fixture) -> Verdict {
    read_logs(fixture, true).await
}

async fn read_logs(fixture: &dyn Fixture, terminal: bool) -> Verdict {
    let trial = Trial::of(fixture)?.with(|spec| spec.terminal = terminal);
    let (runtime, name) = (trial.runtime, trial.name());
    trial.run().await?;
    let follow = LogOptions { follow: true, tail: None };
    let followed = runtime.logs(&name, follow).await?;
    runtime.stop(&name, GRACE).await?;
    // It ends with the container.
    let followed = whole(followed).await?;
    let log = whole(runtime.logs(&name, LogOptions::default()).await?).await?;
    ensure!(followed == log, "followed {followed:?}, read {log:?}");
    ensure!(!log.contains('\0'), "the engine's framing is left in {log:?}");
    for part in ["waits for .ready", "takes its client"] {
        ensure!(log.contains(part), "{part:?} is not in {log:?}");
    }
    let last = log.split_inclusive('\n').next_back().unwrap_or_default();
    let options = LogOptions { follow: false, tail: Some(1) };
    let tail = whole(runtime.logs(&name, options).await?).await?;
    ensure!(tail == last, "the last line is {tail:?} of {log:?}");
    Ok(())
}

async fn whole(log: BoxStream<'static, Outcome<LogChunk>>) -> Result<String, Unmet> {
    let chunks: Vec<LogChunk> = log.try_collect().await?;
    String::from_utf8(chunks.concat()).map_err(|error| Unmet::Broken(format!("the log is no text: {error}")))
}
