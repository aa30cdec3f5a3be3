//! What happens to containers, as a stream.
//!
//! The engine acknowledges a subscription just before it makes it. `since` closes that gap: the engine first sends
//! what it remembers (its last 256 events) from that moment on, taken from this host's clock before the request;
//! both sides are on one host, so there is one clock. What the engine has to send goes into its connection's
//! buffers, from which it is read whenever the stream is polled.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{SystemTime, UNIX_EPOCH},
};

use engine_http::{Broken, Doing, Lines};
use futures::{StreamExt, stream, stream::BoxStream};
use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerChange, ContainerEvent, ContainerId, Exit, Result, RuntimeEvent, Selector},
};
use hyper::body::Bytes;
use serde::Deserialize;

use crate::{
    engine::Engine,
    error::{Explain, nonsense},
    seen::label_filters,
};

const DOING: Doing = Doing("follow the events", "");
/// What an engine adds to a container's labels to make an event's attributes.
const ADDED_ATTRIBUTES: &[&str] = &["image", "name", "exitCode", "execDuration", "signal"];

pub(crate) async fn follow(
    engine: &Engine,
    selector: &Selector,
) -> Result<BoxStream<'static, Result<RuntimeEvent>>> {
    let path = path(selector, SystemTime::now());
    let answer = engine.get(DOING, &path).await?;
    let follower = Follower {
        explain: engine.explain.clone(),
        selector: selector.clone(),
        lines: Lines::default(),
        out_of_memory: HashSet::new(),
    };
    Ok(follower.follow(answer.into_stream().boxed()))
}

fn path(selector: &Selector, since: SystemTime) -> String {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let filters = serde_json::json!({
        "type": ["container"],
        "label": label_filters(selector),
    });
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("since", &format!("{}.{:09}", since.as_secs(), since.subsec_nanos()))
        .append_pair("filters", &filters.to_string())
        .finish();
    format!("/events?{query}")
}

/// As much of an event as is read; bollard's model refuses kinds of events that it does not know.
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
    explain: Explain,
    selector: Selector,
    lines: Lines,
    /// Containers of which an `oom` was told: their end says nothing of it.
    out_of_memory: HashSet<String>,
}

type Chunks = BoxStream<'static, std::result::Result<Bytes, Broken>>;

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
                if let Some(event) = self.read(&line)? {
                    return Ok(RuntimeEvent::Container(event));
                }
            }
            match chunks.next().await {
                Some(Ok(chunk)) => self.lines.add(&chunk).map_err(|endless| nonsense(DOING, endless))?,
                Some(Err(error)) => return Err(self.explain.disconnected(DOING, error.as_ref())),
                None => return Err(ended()),
            }
        }
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<ContainerEvent>> {
        let message: Message = serde_json::from_slice(line)
            .map_err(|error| nonsense(DOING, format_args!("at column {}", error.column())))?;
        Ok(self.event(message))
    }

    /// `None` for what is no change of a selected container.
    fn event(&mut self, message: Message) -> Option<ContainerEvent> {
        let Actor { id, attributes } = message.actor?;
        let attributes = attributes.unwrap_or_default();
        let change = self.change(&message.action?, &id, &attributes)?;
        let labels = labels(attributes);
        // Podman's Docker-compatible socket ignores some of the filters sent.
        self.selector.matches(&labels).then_some(ContainerEvent { id: ContainerId(id), labels, change })
    }

    fn change(
        &mut self,
        action: &str,
        id: &str,
        attributes: &HashMap<String, String>,
    ) -> Option<ContainerChange> {
        Some(match action {
            "create" => ContainerChange::Created,
            "start" => ContainerChange::Started,
            "oom" => {
                self.out_of_memory.insert(id.to_owned());
                ContainerChange::Oom
            }
            "die" => ContainerChange::Exited(Exit {
                code: attributes.get("exitCode").and_then(|code| code.parse().ok()),
                oom: self.out_of_memory.remove(id),
            }),
            // `remove` is Podman's word.
            "destroy" | "remove" => {
                self.out_of_memory.remove(id);
                ContainerChange::Removed
            }
            _ => return None,
        })
    }
}

fn labels(attributes: HashMap<String, String>) -> BTreeMap<String, String> {
    let is_label = |(key, _): &(String, String)| !ADDED_ATTRIBUTES.contains(&key.as_str());
    attributes.into_iter().filter(is_label).collect()
}

fn ended() -> PluginError {
    let text = "docker ended the stream of events: it is shutting down";
    PluginError::new(ErrorKind::Unavailable, text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use engine_http::Endpoint;

    fn follower(selector: Selector) -> Follower {
        Follower {
            explain: Explain::new(Endpoint::Unix("/run/x.sock".into())),
            selector,
            lines: Lines::default(),
            out_of_memory: HashSet::new(),
        }
    }

    fn line(action: &str, attributes: &str) -> String {
        format!(
            r#"{{"status":"{action}","Type":"container","Action":"{action}","Actor":{{"ID":"c1","Attributes":{attributes}}},"time":1,"timeNano":1}}"#
        )
    }

    async fn read(
        selector: Selector,
        chunks: Vec<std::result::Result<Bytes, Broken>>,
    ) -> Vec<Result<RuntimeEvent>> {
        follower(selector).follow(stream::iter(chunks).boxed()).collect().await
    }

    fn changes(items: &[Result<RuntimeEvent>]) -> Vec<ContainerChange> {
        let change = |item: &Result<RuntimeEvent>| match item {
            Ok(RuntimeEvent::Container(event)) => Some(event.change),
            _ => None,
        };
        items.iter().filter_map(change).collect()
    }

    #[tokio::test]
    async fn a_life_is_read_however_it_is_cut() {
        let text = [
            line("create", r#"{"k":"v"}"#),
            line("exec_create: sh", r#"{"k":"v"}"#),
            line("start", r#"{"k":"v"}"#),
            line("oom", r#"{"k":"v"}"#),
            line("die", r#"{"k":"v","exitCode":"137","image":"x"}"#),
            line("destroy", r#"{"k":"v"}"#),
        ]
        .join("\n")
            + "\n";
        let expected = [
            ContainerChange::Created,
            ContainerChange::Started,
            ContainerChange::Oom,
            ContainerChange::Exited(Exit { code: Some(137), oom: true }),
            ContainerChange::Removed,
        ];
        for size in [1, 7, 100, 10_000] {
            let chunks = text.as_bytes().chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk)));
            let items = read(Selector::label("k", "v"), chunks.collect()).await;
            assert_eq!(changes(&items), expected, "in pieces of {size}");
            assert_eq!(items.len(), expected.len() + 1);
            assert_eq!(items.last().unwrap().as_ref().unwrap_err().kind(), ErrorKind::Unavailable);
        }
    }

    #[tokio::test]
    async fn what_was_not_selected_is_left_out_and_labels_are_told() {
        let text = line("start", r#"{"k":"w"}"#) + "\n" + &line("start", r#"{"k":"v","name":"n"}"#) + "\n";
        let items = read(Selector::label("k", "v"), vec![Ok(text.into())]).await;
        assert_eq!(changes(&items), [ContainerChange::Started]);
        let Ok(RuntimeEvent::Container(event)) = &items[0] else { panic!("{items:?}") };
        assert_eq!(event.labels, BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    }

    #[tokio::test]
    async fn a_broken_engine_ends_the_stream() {
        let items = read(Selector::default(), vec![Ok("no json\n".into()), Ok("more\n".into())]).await;
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].as_ref().unwrap_err().kind(), ErrorKind::Internal);

        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        let endless = (0..3).map(|_| Ok(piece.clone()));
        let items = read(Selector::default(), endless.collect()).await;
        assert_eq!(items.len(), 1);
        assert!(items[0].is_err());
    }

    #[test]
    fn the_moment_is_told_to_the_nanosecond() {
        let since = UNIX_EPOCH + Duration::new(12, 34);
        let path = path(&Selector::label("k", "v"), since);
        assert!(path.starts_with("/events?since=12.000000034&filters=%7B"), "{path}");
    }
}
