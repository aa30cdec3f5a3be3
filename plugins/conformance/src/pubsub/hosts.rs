//! The host's own row: registration, heartbeats, draining, the end.

use host_core::{
    ErrorKind, PluginError, chain,
    pubsub::{DesiredState, InstanceFacts, InstanceStatus, MandelboxStatus, Registered},
};

use super::{ControlPlane, DEADLINE, Stage, heartbeat};
use crate::{
    behaviours, ensure,
    report::{Behaviour, Unmet, Verdict},
};

pub(super) fn behaviours() -> Vec<Behaviour<dyn ControlPlane>> {
    behaviours![dyn ControlPlane, DEADLINE;
        registration_makes_the_host_active,
        registering_again_succeeds,
        an_abbreviated_commit_is_the_same_commit,
        registration_names_every_fact_that_does_not_match,
        an_unwanted_host_is_told_so,
        another_machine_cannot_take_an_active_name,
        a_heartbeat_is_written,
        a_heartbeat_of_a_gone_host_stays_unwritten,
        marking_draining_is_seen_and_repeatable,
        marking_draining_revives_nothing,
        unregistering_takes_the_hosts_mandelboxes_along,
        unregistering_leaves_other_hosts_alone,
    ]
}

async fn registration_makes_the_host_active(plane: &dyn ControlPlane) -> Verdict {
    let mut stage = Stage::without_row(plane).await?;
    stage.insert_instance(InstanceStatus::PreConnection).await?;
    let mut watcher = stage.watch().await?;
    stage.facts.ip = "198.51.100.7".to_owned();
    let beat = heartbeat(5);
    let answer = stage.pubsub.register(&stage.facts, &beat).await?;
    ensure!(answer == Registered::Active, "the answer is {answer:?}");
    let Some(row) = plane.instance(&stage.host).await? else {
        return Err(Unmet::Broken("the row is gone".to_owned()));
    };
    ensure!(row.status == InstanceStatus::Active, "the row says {}", row.status);
    ensure!(row.ip == "198.51.100.7", "the row has {row:?}");
    ensure!(row.heartbeat == Some(beat), "{beat:?} was written as {:?}", row.heartbeat);
    watcher.until(|state| state.instance == Some(InstanceStatus::Active)).await?;
    Ok(())
}

async fn registering_again_succeeds(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::without_row(plane).await?;
    stage.insert_instance(InstanceStatus::PreConnection).await?;
    for _ in 0..3 {
        let answer = stage.register().await?;
        ensure!(answer == Registered::Active, "the answer is {answer:?}");
    }
    Ok(())
}

async fn an_abbreviated_commit_is_the_same_commit(plane: &dyn ControlPlane) -> Verdict {
    let mut stage = Stage::without_row(plane).await?;
    let full = stage.facts.commit.clone();
    stage.facts.commit.truncate(7);
    stage.insert_instance(InstanceStatus::PreConnection).await?;
    stage.facts.commit = full;
    let answer = stage.register().await?;
    ensure!(answer == Registered::Active, "the answer is {answer:?}");
    Ok(())
}

async fn registration_names_every_fact_that_does_not_match(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::without_row(plane).await?;
    stage.insert_instance(InstanceStatus::PreConnection).await?;
    let wrong = InstanceFacts {
        image_id: "ami-wrong".to_owned(),
        region: "eu-wrong-1".to_owned(),
        instance_type: "wrong.xlarge".to_owned(),
        commit: "badbadbad".to_owned(),
        ..stage.facts.clone()
    };
    let Err(error) = stage.pubsub.register(&wrong, &heartbeat(1)).await else {
        return Err(Unmet::Broken("it was accepted".to_owned()));
    };
    ensure!(error.kind() == ErrorKind::Invalid, "the error is {}", error.kind().as_str());
    let text = chain(&error);
    for value in ["ami-wrong", "eu-wrong-1", "wrong.xlarge", "badbadbad"] {
        ensure!(text.contains(value), "the error does not name {value}: {text}");
    }
    let status = stage.instance_status().await?;
    ensure!(status == Some(InstanceStatus::PreConnection), "the row became {status:?}");
    Ok(())
}

async fn an_unwanted_host_is_told_so(plane: &dyn ControlPlane) -> Verdict {
    for status in [InstanceStatus::Draining, InstanceStatus::Unresponsive] {
        let stage = Stage::without_row(plane).await?;
        stage.insert_instance(status).await?;
        let answer = stage.register().await?;
        ensure!(answer == Registered::Unwanted(status), "{status} is answered by {answer:?}");
        let after = stage.instance_status().await?;
        ensure!(after == Some(status), "{status} became {after:?}");
    }
    Ok(())
}

async fn another_machine_cannot_take_an_active_name(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::without_row(plane).await?;
    stage.insert_instance(InstanceStatus::PreConnection).await?;
    stage.register().await?;
    let impostor = InstanceFacts {
        cloud_id: "i-another".to_owned(),
        ip: "203.0.113.9".to_owned(),
        ..stage.facts.clone()
    };
    let answer = stage.pubsub.register(&impostor, &heartbeat(2)).await;
    let kind = answer.as_ref().err().map(PluginError::kind);
    ensure!(kind == Some(ErrorKind::Conflict), "the answer is {answer:?}");
    let ip = plane.instance(&stage.host).await?.map(|row| row.ip);
    ensure!(ip.as_deref() == Some(stage.facts.ip.as_str()), "the row's address became {ip:?}");
    Ok(())
}

async fn a_heartbeat_is_written(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    for n in [1, 2, 2] {
        let beat = heartbeat(n);
        stage.pubsub.heartbeat(&stage.host, &beat).await?;
        let written = plane.instance(&stage.host).await?.and_then(|row| row.heartbeat);
        ensure!(written == Some(beat), "{beat:?} was written as {written:?}");
    }
    Ok(())
}

async fn a_heartbeat_of_a_gone_host_stays_unwritten(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::without_row(plane).await?;
    stage.pubsub.heartbeat(&stage.host, &heartbeat(1)).await?;
    let status = stage.instance_status().await?;
    ensure!(status.is_none(), "a row came into being: {status:?}");
    Ok(())
}

async fn marking_draining_is_seen_and_repeatable(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Running).await?;
    let mut watcher = stage.watch().await?;
    stage.pubsub.mark_draining(&stage.host).await?;
    stage.pubsub.mark_draining(&stage.host).await?;
    let state = watcher.until(|state| state.instance == Some(InstanceStatus::Draining)).await?;
    ensure!(state.mandelboxes == [row], "draining changed the mandelboxes: {state:?}");
    Ok(())
}

async fn marking_draining_revives_nothing(plane: &dyn ControlPlane) -> Verdict {
    let gone = Stage::without_row(plane).await?;
    gone.pubsub.mark_draining(&gone.host).await?;
    let status = gone.instance_status().await?;
    ensure!(status.is_none(), "a row came into being: {status:?}");

    let given_up = Stage::without_row(plane).await?;
    given_up.insert_instance(InstanceStatus::Unresponsive).await?;
    given_up.pubsub.mark_draining(&given_up.host).await?;
    let status = given_up.instance_status().await?;
    ensure!(status == Some(InstanceStatus::Unresponsive), "the status moved backwards to {status:?}");
    Ok(())
}

async fn unregistering_takes_the_hosts_mandelboxes_along(plane: &dyn ControlPlane) -> Verdict {
    let stage = Stage::new(plane).await?;
    let row = stage.row(MandelboxStatus::Dying).await?;
    let mut watcher = stage.watch().await?;
    stage.pubsub.unregister(&stage.host).await?;
    watcher.until(|state| *state == DesiredState::default()).await?;
    let left = plane.mandelbox(&row.id).await?;
    ensure!(left.is_none(), "{left:?} is left");
    stage.pubsub.unregister(&stage.host).await?;
    stage.insert_instance(InstanceStatus::PreConnection).await?;
    // The watch goes on: only the rows are gone.
    watcher.until(|state| state.instance.is_some()).await?;
    Ok(())
}

async fn unregistering_leaves_other_hosts_alone(plane: &dyn ControlPlane) -> Verdict {
    let (stage, other) = (Stage::new(plane).await?, Stage::new(plane).await?);
    let row = other.row(MandelboxStatus::Running).await?;
    stage.pubsub.unregister(&stage.host).await?;
    let status = other.instance_status().await?;
    ensure!(status == Some(InstanceStatus::Active), "the other host is {status:?}");
    let left = plane.mandelbox(&row.id).await?;
    ensure!(left == Some(row), "its mandelbox is {left:?}");
    Ok(())
}
