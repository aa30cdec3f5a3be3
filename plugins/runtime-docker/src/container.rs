//! One container's life.

use std::{future::Future, time::Duration};

use bollard::{
    errors::Error,
    query_parameters::{
        CreateContainerOptionsBuilder, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
        StartContainerOptions, StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use engine_http::Doing;
use futures::StreamExt;
use host_core::runtime::{ContainerId, ContainerRef, ContainerSpec, Result};

use crate::{create, engine::Engine};

/// Between tries to remove what somebody else is removing.
const PAUSE: Duration = Duration::from_millis(50);
/// A wait for a removal that ends in the same moment may never be answered.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// The creation itself, which borrows nothing: see [`crate::creates`].
pub(crate) fn create(
    engine: &Engine,
    spec: &ContainerSpec,
) -> Result<impl Future<Output = Result<ContainerId>> + Send + use<>> {
    let body = create::body(spec, &engine.support)?;
    let (api, explain, name) = (engine.api.clone(), engine.explain.clone(), spec.name.clone());
    let platform = engine.support.platform;
    Ok(async move {
        let options = CreateContainerOptionsBuilder::new().name(name.as_str());
        // Without one the engine starts a program for any processor, and tells of nothing but its end.
        let options =
            platform.into_iter().fold(options, |options, platform| options.platform(platform)).build();
        let created = api
            .create_container(Some(options), body)
            .await
            .map_err(|error| explain.failed(Doing("create container", name.as_str()), error))?;
        for warning in created.warnings {
            tracing::warn!(container = %name, warning, "docker warns about a container");
        }
        Ok(ContainerId(created.id))
    })
}

pub(crate) async fn start(engine: &Engine, container: &ContainerRef) -> Result<()> {
    let name = container.as_str();
    let started = engine.api.start_container(name, None::<StartContainerOptions>).await;
    started.map_err(|error| engine.explain.failed(Doing("start container", name), error))
}

/// The engine's own stop, which knows the image's stop signal, takes whole seconds; a finer grace ends it early.
pub(crate) async fn stop(engine: &Engine, container: &ContainerRef, grace: Duration) -> Result<()> {
    let name = container.as_str();
    let options = StopContainerOptionsBuilder::new().t(whole_seconds(grace)).build();
    let stop = engine.api.stop_container(name, Some(options));
    let mut stop = std::pin::pin!(stop);
    let patience = match grace.subsec_nanos() {
        0 => Duration::MAX,
        _ => grace,
    };
    let stopped = match tokio::time::timeout(patience, &mut stop).await {
        Ok(stopped) => stopped,
        Err(_) => {
            kill(engine, name).await?;
            stop.await
        }
    };
    unless(stopped, &[NOT_FOUND])
        .map(drop)
        .map_err(|error| engine.explain.failed(Doing("stop container", name), error))
}

fn whole_seconds(grace: Duration) -> i32 {
    let seconds = grace.as_secs().saturating_add(u64::from(grace.subsec_nanos() > 0));
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

async fn kill(engine: &Engine, name: &str) -> Result<()> {
    let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
    let killed = engine.api.kill_container(name, Some(options)).await;
    // It is gone, or does not run any more.
    unless(killed, &[NOT_FOUND, CONFLICT])
        .map(drop)
        .map_err(|error| engine.explain.failed(Doing("kill container", name), error))
}

/// The engine answers when everything is undone, its ports included.
pub(crate) async fn remove(engine: &Engine, container: &ContainerRef) -> Result<()> {
    let name = container.as_str();
    let failed = |error| engine.explain.failed(Doing("remove container", name), error);
    loop {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match engine.api.remove_container(name, Some(options)).await {
            Err(error) if is_status(&error, CONFLICT) => {
                removed_by_another(engine, name).await.map_err(failed)?
            }
            removed => return unless(removed, &[NOT_FOUND]).map(drop).map_err(failed),
        }
    }
}

/// Somebody else removes it: returns when that is over, however it ended, or when it is time to look again.
async fn removed_by_another(engine: &Engine, name: &str) -> std::result::Result<(), Error> {
    let options = WaitContainerOptionsBuilder::new().condition("removed").build();
    let mut wait = engine.api.wait_container(name, Some(options));
    let ended = tokio::time::timeout(LOOK_AGAIN, wait.next()).await;
    tokio::time::sleep(PAUSE).await;
    let Ok(ended) = ended else { return Ok(()) };
    match ended {
        // This is how bollard tells a container's exit code.
        Some(Err(Error::DockerContainerWaitError { .. })) => Ok(()),
        Some(ended) => unless(ended, &[NOT_FOUND]).map(drop),
        None => Ok(()),
    }
}

/// `None` for a refusal with one of these statuses, which says that there was nothing to do.
fn unless<T>(
    answer: std::result::Result<T, Error>,
    statuses: &[u16],
) -> std::result::Result<Option<T>, Error> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if statuses.iter().any(|status| is_status(&error, *status)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, message }
        if *status_code == status || meant(message) == Some(status))
}

/// Podman answers 500 to much of what Docker has a status for.
fn meant(message: &str) -> Option<u16> {
    if message.contains("no such container") {
        return Some(NOT_FOUND);
    }
    message.contains("container state improper").then_some(CONFLICT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_rounded_up_for_the_engine() {
        for (grace, seconds) in [
            (Duration::ZERO, 0),
            (Duration::from_millis(1), 1),
            (Duration::from_secs(3), 3),
            (Duration::from_millis(3001), 4),
            (Duration::MAX, i32::MAX),
        ] {
            assert_eq!(whole_seconds(grace), seconds);
        }
    }
}
