//! From a record, and those before it, to an event.
//!
//! Events are grouped by module and message, which is constant text, and by what varies between faults that share one:
//! the step, the task, the kind of error, the place of a panic. What varies between occurrences is in values and extra data, and
//! groups nothing.

use std::{sync::Arc, time::UNIX_EPOCH};

use host_core::telemetry::{Level, Record};
use sentry::protocol::{self, Breadcrumb, Event, Exception, Map};
use serde_json::Value;
use telemetry_http::text::{harmless, harmless_value};

/// Sentry cuts longer values itself, and refuses events of over a megabyte.
const LONGEST_VALUE_BYTES: usize = 8 << 10;
const LONGEST_CRUMB_BYTES: usize = 1 << 10;
const DEEPEST: usize = 8;
/// More fields than any record has.
const MOST_FIELDS: usize = 64;
/// Longer chains are the same error again and again.
const MOST_CAUSES: usize = 32;

/// The field that holds an error and its causes, `a: b: c`, as `host_core::chain` writes them.
const ERROR: &str = "error";
/// Fields that tell faults apart which share a message.
const DISTINCT: [&str; 6] = ["stage", "task", "kind", "doing", "place", "died"];

/// The event of `record`, with the records that led to it.
pub(crate) fn of(record: &Record, crumbs: &[Arc<Record>]) -> Event<'static> {
    let short = |text: &str| harmless(text, LONGEST_VALUE_BYTES);
    let mut event = Event {
        level: protocol::Level::Error,
        fingerprint: fingerprint(record).into(),
        logger: Some(record.target.to_owned()),
        message: Some(short(&record.message)),
        platform: "native".into(),
        timestamp: record.at.max(UNIX_EPOCH), // Sentry knows none before
        environment: Some(record.environment.to_string().into()),
        tags: tags(record),
        extra: extra(record, LONGEST_VALUE_BYTES),
        breadcrumbs: crumbs.iter().map(|crumb| breadcrumb(crumb)).collect::<Vec<_>>().into(),
        exception: exceptions(record).into(),
        ..Event::default()
    };
    if let Some(facts) = &record.instance {
        event.server_name = Some(facts.name.to_string().into());
        event.release = Some(format!("host-service@{}", facts.commit).into());
    }
    event
}

fn fingerprint(record: &Record) -> Vec<std::borrow::Cow<'static, str>> {
    let distinct = DISTINCT.iter().filter_map(|name| record.fields.get(*name)?.as_str());
    [record.target, &record.message]
        .into_iter()
        .chain(distinct)
        .map(|part| harmless(part, LONGEST_CRUMB_BYTES).into())
        .collect()
}

fn tags(record: &Record) -> Map<String, String> {
    let facts = record.instance.as_deref();
    let of = |name: &str, value: Option<&str>| {
        value.filter(|value| !value.is_empty()).map(|value| (name.to_owned(), harmless(value, 200)))
    };
    [
        of("instance_id", facts.map(|facts| facts.cloud_id.as_str())),
        of("image_id", facts.map(|facts| facts.image_id.as_str())),
        of("region", facts.map(|facts| facts.region.as_str())),
        of("instance_type", facts.map(|facts| facts.instance_type.as_str())),
        of("commit", facts.map(|facts| facts.commit.as_str())),
        of("mandelbox", record.mandelbox()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn extra(record: &Record, longest: usize) -> Map<String, Value> {
    let fields = record.fields.iter().take(MOST_FIELDS);
    fields.map(|(name, value)| (harmless(name, 200), harmless_value(value, longest, DEEPEST))).collect()
}

/// What failed, the first cause first, as Sentry wants them. A record without an error is one by itself.
fn exceptions(record: &Record) -> Vec<Exception> {
    let text = record.fields.get(ERROR).and_then(Value::as_str).unwrap_or_default();
    let causes = text.splitn(MOST_CAUSES, ": ").filter(|cause| !cause.is_empty());
    let mut chain: Vec<_> = causes
        .map(|cause| Exception {
            ty: "caused by".to_owned(),
            value: Some(harmless(cause, LONGEST_VALUE_BYTES)),
            ..Exception::default()
        })
        .collect();
    chain.reverse();
    let outer = chain.pop().and_then(|outermost| outermost.value);
    let ty = harmless(&record.message, LONGEST_CRUMB_BYTES);
    chain.push(Exception {
        ty,
        value: outer,
        module: Some(record.target.to_owned()),
        ..Exception::default()
    });
    chain
}

fn breadcrumb(record: &Record) -> Breadcrumb {
    Breadcrumb {
        timestamp: record.at.max(UNIX_EPOCH), // Sentry knows none before
        category: Some(record.target.to_owned()),
        level: match record.level {
            Level::Error => protocol::Level::Error,
            Level::Warn => protocol::Level::Warning,
            Level::Info => protocol::Level::Info,
            Level::Debug | Level::Trace => protocol::Level::Debug,
        },
        message: Some(harmless(&record.message, LONGEST_CRUMB_BYTES)),
        data: extra(record, LONGEST_CRUMB_BYTES),
        ..Breadcrumb::default()
    }
}
