//! What happens to containers, as a stream.
//!
//! The engine answers a subscription only when it has something to tell, so nobody can wait for its beginning. `since`
//! makes that harmless: the engine keeps its events in a log and first sends what is there from that moment on, taken
//! from this host's clock before the request; both sides are on one host, so there is one clock. What the engine has to
//! send goes into its connection's buffers, from which it is read whenever the stream is polled.
//!
//! Filters are this side's: by a label's key alone the engine selects nothing.

use std::{
    collections::{BTreeMap, HashMap},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use engine_http::{Doing, Failure, Lines};
use futures::{StreamExt, stream, stream::BoxStream};
use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerChange, ContainerEvent, ContainerId, Exit, Result, RuntimeEvent, Selector},
};
use serde::Deserialize;

use crate::{container::inspected, engine::Engine, error::nonsense};

const DOING: Doing = Doing("follow the events", "");
/// 128 and SIGKILL's number.
const KILLED: i32 = 137;
/// What the engine adds to a container's labels to make an event's attributes.
const ADDED_ATTRIBUTES: &[&str] = &["image", "name", "containerExitCode", "podId"];

pub(crate) async fn follow(
    engine: &Engine,
    selector: &Selector,
) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
    let path = path(SystemTime::now());
    // The subscription itself is not answered yet.
    engine.version().await?;
    let answer = engine.begin(DOING, &path).await?;
    let follower = Follower { engine: engine.clone(), selector: selector.clone(), lines: Lines::default() };
    Ok(follower.follow(answer.into_stream().boxed()))
}

fn path(since: SystemTime) -> String {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("stream", "true")
        .append_pair("since", &format!("{}.{:09}", since.as_secs(), since.subsec_nanos()))
        .append_pair("filters", r#"{"type":["container"]}"#)
        .finish();
    format!("/events?{query}")
}

/// As much of an event as is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Message {
    action: Option<String>,
    actor: Option<Actor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
    attributes: Option<HashMap<String, String>>,
}

/// Turns an answer's bytes into events.
struct Follower {
    engine: Engine,
    selector: Selector,
    lines: Lines,
}

type Chunks = BoxStream<'static, std::result::Result<Bytes, Failure>>;

impl Follower {
    /// Ends after the first error; there is always one, because the engine never ends an answer by itself.
    fn follow(self, chunks: Chunks) -> BoxStream<'static, Result<RuntimeEvent>> {
        stream::unfold(Some((self, chunks)), |state| async move {
            let (mut follower, mut chunks) = state?;
            let item = follower.next(&mut chunks).await;
            let next = item.is_ok().then_some((follower, chunks));
            Some((item, next))
        })
        .boxed()
    }

    async fn next(&mut self, chunks: &mut Chunks) -> Result<RuntimeEvent> {
        loop {
            while let Some(line) = self.lines.take() {
                if let Some(mut event) = read(&line, &self.selector)? {
                    self.tell_of_memory(&mut event).await;
                    return Ok(RuntimeEvent::Container(event));
                }
            }
            match chunks.next().await {
                Some(Ok(chunk)) => self.lines.add(&chunk).map_err(|endless| nonsense(DOING, endless))?,
                Some(Err(failure)) => return Err(self.engine.explain.unanswered(DOING, failure)),
                None => return Err(ended()),
            }
        }
    }

    /// The engine has no event for a kill for memory, and its events of an end do not tell; its inspection does.
    async fn tell_of_memory(&self, event: &mut ContainerEvent) {
        if let ContainerChange::Exited(exit) = &mut event.change
            && exit.code == Some(KILLED)
            && self.engine.support.tells_oom()
            && let Ok(Some(seen)) = inspected(&self.engine, &event.id.0).await
        {
            exit.oom = seen.is_oom();
        }
    }
}

/// `None` for what is no change of a selected container.
fn read(line: &[u8], selector: &Selector) -> Result<Option<ContainerEvent>> {
    let message: Message = serde_json::from_slice(line)
        .map_err(|error| nonsense(DOING, format_args!("at column {}", error.column())))?;
    Ok(event(message, selector))
}

fn event(message: Message, selector: &Selector) -> Option<ContainerEvent> {
    let Actor { id, attributes } = message.actor?;
    let attributes = attributes.unwrap_or_default();
    let change = change(&message.action?, &attributes)?;
    let labels = labels(attributes);
    selector.matches(&labels).then_some(ContainerEvent { id: ContainerId(id), labels, change })
}

fn change(action: &str, attributes: &HashMap<String, String>) -> Option<ContainerChange> {
    Some(match action {
        "create" => ContainerChange::Created,
        "start" => ContainerChange::Started,
        "died" => ContainerChange::Exited(Exit {
            code: attributes.get("containerExitCode").and_then(|code| code.parse().ok()),
            oom: false,
        }),
        "remove" => ContainerChange::Removed,
        _ => return None,
    })
}

fn labels(attributes: HashMap<String, String>) -> BTreeMap<String, String> {
    let is_label = |(key, _): &(String, String)| !ADDED_ATTRIBUTES.contains(&key.as_str());
    attributes.into_iter().filter(is_label).collect()
}

fn ended() -> PluginError {
    let text = "podman ended the stream of events: it is shutting down";
    PluginError::new(ErrorKind::Unavailable, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(action: &str, attributes: &str) -> String {
        format!(
            r#"{{"status":"{action}","id":"c1","Type":"container","Action":"{action}","Actor":{{"ID":"c1","Attributes":{attributes}}},"time":1,"timeNano":1}}"#
        )
    }

    fn told(action: &str, attributes: &str, selector: &Selector) -> Option<ContainerEvent> {
        read(line(action, attributes).as_bytes(), selector).unwrap()
    }

    #[test]
    fn a_life_is_read_and_what_is_no_part_of_it_left_out() {
        let selector = Selector::label("k", "v");
        let died = ContainerChange::Exited(Exit { code: Some(137), oom: false });
        for (action, change) in [
            ("create", Some(ContainerChange::Created)),
            ("init", None),
            ("start", Some(ContainerChange::Started)),
            ("exec_died", None),
            ("died", Some(died)),
            ("cleanup", None),
            ("remove", Some(ContainerChange::Removed)),
        ] {
            let attributes = r#"{"k":"v","containerExitCode":"137","image":"x","name":"n","podId":""}"#;
            let event = told(action, attributes, &selector);
            assert_eq!(event.as_ref().map(|event| event.change), change, "{action}");
            if let Some(event) = event {
                assert_eq!(event.labels, BTreeMap::from([("k".to_owned(), "v".to_owned())]));
            }
        }
    }

    #[test]
    fn containers_are_selected_by_key_and_by_value() {
        let any = Selector([("k".to_owned(), None)].into());
        for (selector, attributes, selected) in [
            (&any, r#"{"k":"v"}"#, true),
            (&any, r#"{"other":"v"}"#, false),
            (&Selector::label("k", "v"), r#"{"k":"w"}"#, false),
            (&Selector::default(), "null", true),
        ] {
            assert_eq!(told("start", attributes, selector).is_some(), selected, "{selector:?} {attributes}");
        }
        assert!(read(b"no json\n", &any).is_err());
    }

    #[test]
    fn the_moment_is_told_to_the_nanosecond() {
        let path = path(UNIX_EPOCH + Duration::new(12, 34));
        assert!(path.starts_with("/events?stream=true&since=12.000000034&filters=%7B"), "{path}");
    }
}
