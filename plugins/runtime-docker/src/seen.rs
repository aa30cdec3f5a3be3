//! Which containers there are, and how they are.
//!
//! Read past bollard, whose models refuse an answer for a single word that they do not know, such as Podman's states.

use std::{collections::BTreeMap, time::Duration};

use engine_http::Doing;
use futures::{StreamExt, TryStreamExt, stream};
use host_core::{
    ErrorKind,
    runtime::{Container, ContainerId, ContainerRef, ContainerState, Exit, Result, Selector},
};
use serde::Deserialize;

use crate::engine::Engine;

/// Look-ups in flight at once.
const WIDTH: usize = 8;
/// Before another look.
const PAUSE: Duration = Duration::from_millis(50);

/// As much as is read of the engine's answer.
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
    pid: Option<i64>,
    exit_code: Option<i64>,
    #[serde(rename = "OOMKilled")]
    oom_killed: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
    tty: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    names: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    state: String,
}

pub(crate) async fn inspect(engine: &Engine, container: &ContainerRef) -> Result<Option<Container>> {
    Ok(inspected(engine, container.as_str()).await?.map(Container::from))
}

/// The engine's own answer; `None` where there is no such container. Podman fails for one that ends while it looks.
pub(crate) async fn inspected(engine: &Engine, name: &str) -> Result<Option<Inspected>> {
    loop {
        match engine.get_json(Doing("inspect container", name), &format!("/containers/{name}/json")).await {
            Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(PAUSE).await,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => return found.map(Some),
        }
    }
}

impl Inspected {
    /// Its standard streams are a terminal.
    pub(crate) fn has_terminal(&self) -> bool {
        self.config.tty.unwrap_or(false)
    }
}

impl From<Inspected> for Container {
    fn from(seen: Inspected) -> Self {
        let State { status, pid, exit_code, oom_killed } = seen.state;
        let code = exit_code.and_then(|code| i32::try_from(code).ok());
        let exit = Exit { code, oom: oom_killed.unwrap_or(false) };
        Self {
            id: ContainerId(seen.id),
            name: plain_name(&seen.name),
            labels: seen.config.labels.unwrap_or_default(),
            pid: pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0),
            state: life(&status).unwrap_or(ContainerState::Exited(exit)),
        }
    }
}

/// `None` for one that has ended.
fn life(status: &str) -> Option<ContainerState> {
    match status {
        "created" | "configured" | "initialized" => Some(ContainerState::Created),
        "running" | "paused" | "restarting" | "stopping" => Some(ContainerState::Running),
        _ => None,
    }
}

/// Engines write `/name`.
fn plain_name(name: &str) -> String {
    name.trim_start_matches('/').to_owned()
}

/// The engine's list lacks exit codes, so what has ended is looked up; what goes away meanwhile is left out.
pub(crate) async fn list(engine: &Engine, selector: &Selector) -> Result<Vec<Container>> {
    let filters = serde_json::json!({ "label": label_filters(selector) }).to_string();
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("all", "true")
        .append_pair("filters", &filters)
        .finish();
    let listed: Vec<Listed> =
        engine.get_json(Doing("list containers", ""), &format!("/containers/json?{query}")).await?;
    let found: Vec<Option<Container>> = stream::iter(listed)
        .map(|listed| async move {
            match running(&listed) {
                Some(container) => Ok(Some(container)),
                None => inspect(engine, &ContainerId(listed.id).into()).await,
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

/// `None` where the list does not tell enough.
fn running(listed: &Listed) -> Option<Container> {
    Some(Container {
        id: ContainerId(listed.id.clone()),
        name: plain_name(listed.names.as_ref()?.first()?),
        labels: listed.labels.clone().unwrap_or_default(),
        state: life(&listed.state)?,
        pid: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn state(state: serde_json::Value) -> ContainerState {
        let seen = json!({ "Id": "1", "Name": "/n", "State": state, "Config": {} });
        Container::from(serde_json::from_value::<Inspected>(seen).unwrap()).state
    }

    #[test]
    fn states_are_read() {
        let expected = ContainerState::Exited(Exit { code: Some(137), oom: true });
        for status in ["exited", "removing", "dead", "stopped"] {
            let ended = json!({ "Status": status, "ExitCode": 137, "OOMKilled": true });
            assert_eq!(state(ended), expected, "{status}");
        }
        assert_eq!(state(json!({ "Status": "paused" })), ContainerState::Running);
        // A failed start leaves an exit code and no run.
        let failed = json!({ "Status": "created", "ExitCode": 128 });
        assert_eq!(state(failed), ContainerState::Created);
    }
}
