//! From `tracing` to the telemetry plugins. Every event of this process becomes one [`Record`] that carries the fields
//! of its spans and who this host is; a panic anywhere becomes one too. Every plugin gets every record, without what
//! looks like a secret, and decides by itself which it sends where.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    thread,
    time::{Duration, SystemTime},
};

use futures::future::join_all;
use host_core::{
    chain,
    pubsub::InstanceFacts,
    telemetry::{Level, Record, TELEMETRY_THREADS, Telemetry},
};
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{
    EnvFilter, Layer, layer::Context, layer::SubscriberExt, registry::LookupSpan, util::SubscriberInitExt,
};

mod scrub;

/// All telemetry plugins of this process.
#[derive(Debug, Clone)]
pub struct Dispatch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plugins: Vec<Arc<dyn Telemetry>>,
    environment: Arc<str>,
    facts: RwLock<Option<Arc<InstanceFacts>>>,
}

impl Dispatch {
    /// Records go to all of `plugins`.
    pub fn new(plugins: Vec<Arc<dyn Telemetry>>, environment: &str) -> Self {
        Self(Arc::new(Inner { plugins, environment: environment.into(), facts: RwLock::default() }))
    }

    /// Takes over this process's `tracing` events and panics.
    ///
    /// # Errors
    /// `filter` is no list of directives.
    pub fn install(&self, filter: &str) -> anyhow::Result<()> {
        let filter = EnvFilter::builder().parse(filter)?;
        let subscriber = tracing_subscriber::registry().with(filter).with(RecordLayer(self.clone()));
        // Already installed, as in a test that starts several services: the first one keeps the records.
        let _ = subscriber.try_init();
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            let message = panic.payload_as_str().unwrap_or("no message");
            tracing::error!(message, place, thread = std::thread::current().name(), "panic");
        }));
        Ok(())
    }

    /// From now on records say who this host is.
    pub fn identify(&self, facts: Arc<InstanceFacts>) {
        *self.0.facts.write().unwrap_or_else(PoisonError::into_inner) = Some(facts);
    }

    /// Waits until every plugin has delivered what it holds, at most `deadline`, even for a plugin that hangs.
    pub async fn flush(&self, deadline: Duration) {
        let flushes =
            self.0.plugins.iter().map(|plugin| tokio::time::timeout(deadline, plugin.flush(deadline)));
        for error in join_all(flushes).await.into_iter().filter_map(|flush| flush.unwrap_or(Ok(())).err()) {
            tracing::warn!(error = %chain(&error), "a telemetry plugin may have kept records");
        }
    }

    /// How many records the plugins have dropped so far.
    pub fn dropped(&self) -> u64 {
        self.0.plugins.iter().map(|plugin| plugin.dropped()).sum()
    }

    fn facts(&self) -> Option<Arc<InstanceFacts>> {
        self.0.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn record(&self, mut record: Record) {
        scrub::scrub(&mut record);
        let record = Arc::new(record);
        self.0.plugins.iter().for_each(|plugin| plugin.record(&record));
    }
}

struct RecordLayer(Dispatch);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for RecordLayer {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if is_of_sending(event.metadata().target()) {
            return;
        }
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(outer) = span.extensions().get::<Fields>() {
                fields.values.extend(outer.values.clone());
            }
        }
        event.record(&mut fields);
        self.0.record(Record {
            at: SystemTime::now(),
            level: level(*event.metadata().level()),
            target: event.metadata().target(),
            message: fields.message,
            fields: fields.values,
            instance: self.0.facts(),
            environment: self.0.0.environment.clone(),
        });
    }
}

/// What libraries say on the threads that send records would be sent, and sending it said, and so on.
fn is_of_sending(target: &str) -> bool {
    let sends = thread::current().name().is_some_and(|name| name.starts_with(TELEMETRY_THREADS));
    sends && !target.starts_with("telemetry_")
}

fn level(level: tracing::Level) -> Level {
    match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        tracing::Level::DEBUG => Level::Debug,
        tracing::Level::TRACE => Level::Trace,
    }
}

/// Fields of a span or an event, as JSON values; the message apart.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    values: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.values.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.put(field, format!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}
