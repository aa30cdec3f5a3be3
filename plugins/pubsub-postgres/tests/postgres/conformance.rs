//! Runs what every `PubSub` must do, with SQL as the control plane.

use std::sync::Arc;

use async_trait::async_trait;
use conformance::pubsub::{
    ControlPlane, behaviours,
    sql::{Host, Sql},
};
use host_core::{ErrorKind, PluginError, pubsub::PubSub};
use tokio_postgres::Client;

use crate::stage::Stage;

#[async_trait]
impl Host for Stage {
    async fn connect(&self) -> Result<Arc<dyn PubSub>, PluginError> {
        Ok(Stage::connect(self).await?)
    }

    async fn cut(&self, database: &Client) -> Result<(), PluginError> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let cut = database.query(sql, &[]).await;
        cut.map(drop).map_err(|error| PluginError::new(ErrorKind::Internal, "cutting").with_source(error))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_does_what_every_pubsub_must_do() {
    let stage = Stage::new().await.unwrap();
    let plane = Sql::new(&stage.database.url(), stage).await.unwrap();
    let report =
        conformance::report::run("pubsub-postgres", &plane as &dyn ControlPlane, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}
