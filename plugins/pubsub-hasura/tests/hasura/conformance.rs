//! Runs what every `PubSub` must do, with SQL as the control plane, in both subprotocols.

use std::sync::Arc;

use async_trait::async_trait;
use conformance::pubsub::{
    ControlPlane, behaviours,
    sql::{Host, Sql},
};
use host_core::{PluginError, pubsub::PubSub};
use tokio_postgres::Client;

use crate::stage::Stage;

#[async_trait]
impl Host for Stage {
    async fn connect(&self) -> Result<Arc<dyn PubSub>, PluginError> {
        Ok(Stage::connect(self).await?)
    }

    async fn cut(&self, _: &Client) -> Result<(), PluginError> {
        self.hasura.cut();
        Ok(())
    }
}

async fn conforms(protocol: &'static str) {
    let stage = Stage { protocol, ..Stage::new().await.unwrap() };
    let plane = Sql::new(&stage.database.url(), stage).await.unwrap();
    let name = format!("pubsub-hasura over {protocol}");
    let report = conformance::report::run(&name, &plane as &dyn ControlPlane, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_does_what_every_pubsub_must_do_over_graphql_transport_ws() {
    conforms("graphql-transport-ws").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_does_what_every_pubsub_must_do_over_legacy_graphql_ws() {
    conforms("graphql-ws").await;
}
