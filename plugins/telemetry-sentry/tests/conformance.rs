//! Runs what every `Telemetry` must do against a server, with errors: nothing else is to arrive.
#![cfg(test)]

use std::sync::Arc;

use async_trait::async_trait;
use conformance::telemetry::{Bench, Destination, behaviours};
use host_core::{
    PluginError,
    telemetry::{Level, Telemetry},
};
use telemetry_sentry::{Config, Sentry};
use telemetry_stand_in::{Mood, Options, Server};

struct Project(Server);

impl Destination for Project {
    fn arrived(&self) -> Vec<String> {
        self.0.arrived(|arrived| arrived.envelopes.iter().map(|envelope| envelope.text.clone()).collect())
    }

    fn stall(&self) {
        self.0.set(Mood::Stalls);
    }

    fn refuse(&self) {
        self.0.set(Mood::answers(503));
    }

    fn resume(&self) {
        self.0.set(Mood::Takes);
    }
}

struct Projects;

#[async_trait]
impl Bench for Projects {
    async fn open(&self) -> Result<(Arc<dyn Telemetry>, Arc<dyn Destination>), PluginError> {
        let server = Server::start(Options::default()).unwrap();
        // Few breadcrumbs: what is tried here are thousands of errors, on processors that others use, too.
        let config = Config { dsn: Some(server.dsn().into()), breadcrumbs: 3, ..Config::default() };
        Ok((Arc::new(Sentry::new(&config)?), Arc::new(Project(server))))
    }

    fn level(&self) -> Level {
        Level::Error
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_every_telemetry_must_do() {
    let report = conformance::report::run("telemetry-sentry", &Projects as &dyn Bench, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}
