//! `tracing` and panics of the plugin, to the host. There is one of these for each library: the first instance's host
//! gets them, which is the same host for all.

use std::{fmt::Write as _, panic, sync::Once};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
};

use crate::host::Host;

/// Has an effect once.
pub(crate) fn install(host: Host) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Bridge(host));
        // A plugin that has set one itself wants it that way.
        tracing::subscriber::set_global_default(subscriber).ok();
        panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map_or(("", 0), |place| (place.file(), place.line()));
            let text = panic.payload_as_str().unwrap_or("no text");
            host.log(4, "panic", "the plugin panicked", &fields(text), place);
        }));
    });
}

fn fields(text: &str) -> String {
    Value::Object(Map::from_iter([("panic".to_owned(), Value::from(text))])).to_string()
}

#[derive(Debug)]
struct Bridge(Host);

fn number(level: Level) -> u32 {
    match level {
        Level::TRACE => 0,
        Level::DEBUG => 1,
        Level::INFO => 2,
        Level::WARN => 3,
        Level::ERROR => 4,
    }
}

impl<S: Subscriber> Layer<S> for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        number(*metadata.level()) >= self.0.log_level()
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let metadata = event.metadata();
        let place = (metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
        let fields = Value::Object(seen.fields).to_string();
        self.0.log(number(*metadata.level()), metadata.target(), &seen.message, &fields, place);
    }
}

#[derive(Default)]
struct Seen {
    message: String,
    fields: Map<String, Value>,
}

impl Seen {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            // Writing to a text does not fail.
            write!(self.message, "{value:?}").ok();
        } else {
            self.set(field, format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.set(field, value);
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }
}
