//! One container's life, and which containers there are.

use std::{collections::BTreeMap, future::Future, time::Duration};

use engine_http::{Doing, Failure, empty};
use futures::{StreamExt, TryStreamExt, stream};
use host_core::{
    ErrorKind,
    runtime::{Container, ContainerId, ContainerRef, ContainerSpec, ContainerState, Exit, Result, Selector},
};
use http::Method;
use podman_api::{
    Error,
    models::ListContainer,
    opts::{ContainerDeleteOpts, ContainerListFilter, ContainerListOpts},
};
use serde::Deserialize;

use crate::{
    create,
    engine::{Engine, json},
    image,
};

/// Look-ups in flight at once.
const WIDTH: usize = 8;
/// Between tries at what is just changing by itself.
const PAUSE: Duration = Duration::from_millis(50);

const NOT_MODIFIED: u16 = 304;

/// The creation itself, which borrows nothing: see [`engine_http::Creates`].
pub(crate) fn create(
    engine: &Engine,
    spec: &ContainerSpec,
) -> Result<impl Future<Output = Result<ContainerId>> + Send + use<>> {
    let mut body = create::body(spec, &engine.support, &engine.cdi)?;
    let image = spec.image.clone();
    let profile = create::filter_file(&spec.security, engine)?;
    if let Some(profile) = &profile {
        body["seccomp_profile_path"] = profile.path().display().to_string().into();
    }
    let (engine, name) = (engine.clone(), spec.name.clone());
    Ok(async move {
        let doing = Doing("create container", name.as_str());
        body["image"] = image::runnable(&engine, &image).await?.into();
        let answer = engine.send(doing, Method::POST, "/containers/create", json(&body)).await?;
        let created: Created = engine.read(doing, answer).await?;
        for warning in created.warnings.unwrap_or_default() {
            tracing::warn!(container = %name, warning, "podman warns about a container");
        }
        // Until here it has read the file.
        drop(profile);
        Ok(ContainerId(created.id))
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
    warnings: Option<Vec<String>>,
}

pub(crate) async fn start(engine: &Engine, container: &ContainerRef) -> Result<()> {
    let name = container.as_str();
    match engine.api.containers().get(name).start(None).await {
        // To podman-api this is a failure: it runs already.
        Err(Error::Fault { code, .. }) if code.as_u16() == NOT_MODIFIED => Ok(()),
        started => started.map_err(|error| engine.explain.failed(Doing("start container", name), error)),
    }
}

/// The engine's own stop, which knows the image's stop signal, takes whole seconds; a finer grace ends it early.
/// Past podman-api, which sends the time under a name that is ignored.
pub(crate) async fn stop(engine: &Engine, container: &ContainerRef, grace: Duration) -> Result<()> {
    let name = container.as_str();
    let path = format!("/containers/{name}/stop?timeout={}", whole_seconds(grace));
    let mut stop = std::pin::pin!(engine.answer(Method::POST, &path, empty()));
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
    match stopped {
        // It does not run.
        Ok(_) | Err(Failure::Refused(NOT_MODIFIED, _)) => Ok(()),
        Err(failure) => unless_absent(Err(engine.explain.unanswered(Doing("stop container", name), failure))),
    }
}

fn whole_seconds(grace: Duration) -> u32 {
    let seconds = grace.as_secs().saturating_add(u64::from(grace.subsec_nanos() > 0));
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

async fn kill(engine: &Engine, name: &str) -> Result<()> {
    let killed = engine.api.containers().get(name).send_signal("KILL").await;
    match killed.map_err(|error| engine.explain.failed(Doing("kill container", name), error)) {
        // It ended by itself.
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        killed => unless_absent(killed),
    }
}

/// Without a time it would grant the container ten seconds.
pub(crate) async fn remove(engine: &Engine, container: &ContainerRef) -> Result<()> {
    let name = container.as_str();
    let options = ContainerDeleteOpts::builder().force(true).volumes(true).timeout(0).build();
    loop {
        let removed = engine.api.containers().get(name).delete(&options).await;
        match removed.map_err(|error| engine.explain.failed(Doing("remove container", name), error)) {
            // It ended, or somebody else removes it, while the engine wanted to kill it.
            Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(PAUSE).await,
            removed => return unless_absent(removed),
        }
    }
}

/// What is not there is as it should be.
fn unless_absent(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

pub(crate) async fn inspect(engine: &Engine, container: &ContainerRef) -> Result<Option<Container>> {
    Ok(inspected(engine, container.as_str()).await?.map(Container::from))
}

/// As much as is read of the engine's answer. podman-api would have it measure the container's disk, and knows no answer
/// of Podman 5.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspected {
    id: String,
    name: String,
    state: State,
    config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    pid: Option<u32>,
    exit_code: Option<i32>,
    #[serde(rename = "OOMKilled")]
    oom_killed: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

/// `None` where there is no such container. One that ends while the engine looks is looked at again.
pub(crate) async fn inspected(engine: &Engine, name: &str) -> Result<Option<Inspected>> {
    loop {
        match engine.get(Doing("inspect container", name), &format!("/containers/{name}/json")).await {
            Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(PAUSE).await,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => return found.map(Some),
        }
    }
}

impl Inspected {
    /// The kernel killed it for memory.
    pub(crate) fn is_oom(&self) -> bool {
        self.state.oom_killed.unwrap_or(false)
    }
}

impl From<Inspected> for Container {
    fn from(seen: Inspected) -> Self {
        let exit = Exit { code: seen.state.exit_code, oom: seen.is_oom() };
        Self {
            id: ContainerId(seen.id),
            name: seen.name,
            labels: seen.config.labels.unwrap_or_default(),
            pid: seen.state.pid.filter(|pid| *pid != 0),
            state: life(&seen.state.status).unwrap_or(ContainerState::Exited(exit)),
        }
    }
}

/// `None` for one that has ended.
fn life(status: &str) -> Option<ContainerState> {
    match status {
        "configured" | "created" | "initialized" => Some(ContainerState::Created),
        "running" | "paused" | "stopping" => Some(ContainerState::Running),
        _ => None,
    }
}

/// The engine's list does not tell of memory, so what has ended is looked up; what goes away meanwhile is left out.
pub(crate) async fn list(engine: &Engine, selector: &Selector) -> Result<Vec<Container>> {
    let options = ContainerListOpts::builder().all(true).filter(filters(selector)).build();
    let containers = engine.api.containers();
    let listed = engine.look_up(Doing("list containers", ""), containers.list(&options)).await?;
    let found: Vec<Option<Container>> = stream::iter(listed)
        .map(|listed| async move {
            match running(&listed) {
                Some(container) => Ok(Some(container)),
                None => {
                    let id = ContainerId(listed.id.unwrap_or_default());
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

/// A filter by key alone matches nothing in some versions, so the engine selects by values and the caller by keys.
fn filters(selector: &Selector) -> Vec<ContainerListFilter> {
    let filter = |(key, value): (&String, &Option<String>)| {
        value.clone().map(|value| ContainerListFilter::LabelKeyVal(key.clone(), value))
    };
    selector.0.iter().filter_map(filter).collect()
}

/// `None` where the list does not tell enough.
fn running(listed: &ListContainer) -> Option<Container> {
    Some(Container {
        id: ContainerId(listed.id.clone()?),
        name: listed.names.as_ref()?.first()?.clone(),
        labels: listed.labels.clone().unwrap_or_default().into_iter().collect(),
        state: life(listed.state.as_deref()?)?,
        pid: None,
    })
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
            (Duration::MAX, u32::MAX),
        ] {
            assert_eq!(whole_seconds(grace), seconds);
        }
    }

    fn state(state: serde_json::Value) -> ContainerState {
        let seen = json!({ "Id": "1", "Name": "n", "State": state, "Config": {} });
        let seen: Inspected = serde_json::from_value(seen).unwrap();
        Container::from(seen).state
    }

    #[test]
    fn states_are_read() {
        let exited = json!({ "Status": "exited", "ExitCode": 137, "OOMKilled": true });
        assert_eq!(state(exited), ContainerState::Exited(Exit { code: Some(137), oom: true }));
        assert_eq!(state(json!({ "Status": "stopping" })), ContainerState::Running);
        assert_eq!(state(json!({ "Status": "configured", "ExitCode": 0 })), ContainerState::Created);
    }

    /// Podman 5 has a list where Podman 4 has a text, and none of it is read here.
    #[test]
    fn both_generations_of_answers_are_read() {
        for (entrypoint, signal) in [(json!("/app"), json!(15)), (json!(["/app"]), json!("SIGTERM"))] {
            let config = json!({ "Entrypoint": entrypoint, "StopSignal": signal, "Labels": { "k": "v" } });
            let state = json!({ "Status": "running", "Pid": 7 });
            let seen = json!({ "Id": "1", "Name": "n", "State": state, "Config": config });
            let seen = Container::from(serde_json::from_value::<Inspected>(seen).unwrap());
            assert_eq!((seen.pid, seen.labels["k"].as_str()), (Some(7), "v"));
        }
    }
}
