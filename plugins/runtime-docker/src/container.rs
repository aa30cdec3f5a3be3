//! One container's life, and which containers there are.

use std::{collections::HashMap, future::Future, time::Duration};

use bollard::{
    errors::Error,
    models::{
        ContainerInspectResponse, ContainerState as EngineState, ContainerStateStatusEnum as Status,
        ContainerSummary, ContainerSummaryStateEnum as ListedState,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder,
        ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
        StopContainerOptionsBuilder, WaitContainerOptionsBuilder,
    },
};
use engine_http::Doing;
use futures::{StreamExt, TryStreamExt, stream};
use host_core::runtime::{
    Container, ContainerId, ContainerRef, ContainerSpec, ContainerState, Exit, Result, Selector,
};

use crate::{create, engine::Engine, error::nonsense};

/// Look-ups in flight at once.
const WIDTH: usize = 8;
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
    Ok(async move {
        let options = CreateContainerOptionsBuilder::new().name(name.as_str()).build();
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

pub(crate) async fn inspect(engine: &Engine, container: &ContainerRef) -> Result<Option<Container>> {
    let doing = Doing("inspect container", container.as_str());
    match inspected(engine, container.as_str()).await? {
        Some(answer) => from_inspect(answer).map(Some).ok_or_else(|| nonsense(doing, "it lacks id or state")),
        None => Ok(None),
    }
}

/// The engine's own answer; `None` where there is no such container.
pub(crate) async fn inspected(engine: &Engine, name: &str) -> Result<Option<ContainerInspectResponse>> {
    let request = engine.api.inspect_container(name, None::<InspectContainerOptions>);
    let request = async { unless(request.await, &[NOT_FOUND]) };
    engine.look_up(Doing("inspect container", name), request).await
}

fn from_inspect(answer: ContainerInspectResponse) -> Option<Container> {
    let state = answer.state?;
    Some(Container {
        id: ContainerId(answer.id?),
        name: plain_name(answer.name.as_deref().unwrap_or_default()),
        labels: answer.config?.labels.unwrap_or_default().into_iter().collect(),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0),
        state: life(&state)?,
    })
}

fn life(state: &EngineState) -> Option<ContainerState> {
    Some(match state.status? {
        Status::CREATED => ContainerState::Created,
        Status::RUNNING | Status::PAUSED | Status::RESTARTING | Status::STOPPING => ContainerState::Running,
        Status::EXITED | Status::REMOVING | Status::DEAD => ContainerState::Exited(Exit {
            code: state.exit_code.and_then(|code| i32::try_from(code).ok()),
            oom: state.oom_killed.unwrap_or(false),
        }),
        Status::EMPTY => return None,
    })
}

/// Engines write `/name`.
fn plain_name(name: &str) -> String {
    name.trim_start_matches('/').to_owned()
}

/// The engine's list lacks exit codes, so what has ended is looked up; what goes away meanwhile is left out.
pub(crate) async fn list(engine: &Engine, selector: &Selector) -> Result<Vec<Container>> {
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&HashMap::from([("label", label_filters(selector))]))
        .build();
    let request = engine.api.list_containers(Some(options));
    let listed = engine.look_up(Doing("list containers", ""), request).await?;
    let found: Vec<Option<Container>> = stream::iter(listed)
        .map(|summary| async move {
            match from_summary(&summary) {
                Some(container) => Ok(Some(container)),
                None => {
                    let id = ContainerId(summary.id.unwrap_or_default());
                    inspect(engine, &id.into()).await
                }
            }
        })
        .buffered(WIDTH)
        .try_collect()
        .await?;
    let matches = |container: &Container| selector.matches(&container.labels);
    Ok(found.into_iter().flatten().filter(matches).collect())
}

/// `key=value`, or `key` for any value.
pub(crate) fn label_filters(selector: &Selector) -> Vec<String> {
    let filter = |(key, value): (&String, &Option<String>)| match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    };
    selector.0.iter().map(filter).collect()
}

/// `None` where the summary does not tell enough.
fn from_summary(summary: &ContainerSummary) -> Option<Container> {
    let state = match summary.state? {
        ListedState::CREATED => ContainerState::Created,
        ListedState::RUNNING | ListedState::PAUSED | ListedState::RESTARTING | ListedState::STOPPING => {
            ContainerState::Running
        }
        _ => return None,
    };
    Some(Container {
        id: ContainerId(summary.id.clone()?),
        name: plain_name(summary.names.as_ref()?.first()?),
        labels: summary.labels.clone().unwrap_or_default().into_iter().collect(),
        state,
        pid: None,
    })
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
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    fn state(state: serde_json::Value) -> Option<ContainerState> {
        life(&serde_json::from_value(state).unwrap())
    }

    #[test]
    fn states_are_read() {
        let exited = json!({ "Status": "exited", "ExitCode": 137, "OOMKilled": true });
        let expected = Exit { code: Some(137), oom: true };
        assert_eq!(state(exited), Some(ContainerState::Exited(expected)));
        assert_eq!(state(json!({ "Status": "paused" })), Some(ContainerState::Running));
        // A failed start leaves an exit code and no run.
        let failed = json!({ "Status": "created", "ExitCode": 128 });
        assert_eq!(state(failed), Some(ContainerState::Created));
        assert_eq!(state(json!({})), None);
    }
}
