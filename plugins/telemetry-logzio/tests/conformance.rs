//! Runs what every `Telemetry` must do against a listener.
#![cfg(test)]

use std::sync::Arc;

use async_trait::async_trait;
use conformance::telemetry::{Bench, Destination, behaviours};
use host_core::{PluginError, telemetry::Telemetry};
use telemetry_logzio::{Config, Logzio};
use telemetry_stand_in::{Mood, Options, Server, TOKEN};
use tempfile::TempDir;

struct Listener {
    server: Server,
    _spool: TempDir,
}

impl Destination for Listener {
    fn arrived(&self) -> Vec<String> {
        self.server.arrived(|arrived| arrived.lines.clone())
    }

    fn stall(&self) {
        self.server.set(Mood::Stalls);
    }

    fn refuse(&self) {
        self.server.set(Mood::answers(503));
    }

    fn resume(&self) {
        self.server.set(Mood::Takes);
    }
}

struct Listeners;

#[async_trait]
impl Bench for Listeners {
    async fn open(&self) -> Result<(Arc<dyn Telemetry>, Arc<dyn Destination>), PluginError> {
        let server = Server::start(Options::default()).unwrap();
        let spool = tempfile::tempdir().unwrap();
        let config = Config {
            url: server.url().parse().unwrap(),
            token: Some(TOKEN.into()),
            spool: spool.path().to_owned(),
            ..Config::default()
        };
        let logzio = Logzio::new(&config)?;
        Ok((Arc::new(logzio), Arc::new(Listener { server, _spool: spool })))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_every_telemetry_must_do() {
    let report = conformance::report::run("telemetry-logzio", &Listeners as &dyn Bench, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}
