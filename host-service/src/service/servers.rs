//! Everything that listens.

use std::time::Duration;

use anyhow::Context as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{AdminServer, metrics_server::MetricsServer, views::Readiness},
    host::{Host, Listening},
    identity,
    orchestrator::Shared,
    transport::{OnRequest, Options, Server},
};

/// Requests in flight when everything else has ended get this long.
const REQUESTS_END: Duration = Duration::from_secs(4);

/// The three servers of this process.
pub(super) struct Servers {
    transport: Server,
    admin: AdminServer,
    metrics: MetricsServer,
}

impl Servers {
    pub(super) async fn bind(host: &Host, shared: &Shared) -> anyhow::Result<Self> {
        let settings = &shared.settings;
        let (of, metrics, asked) = (host.clone(), shared.metrics.clone(), host.clone());
        let text = move || metrics.text(&of).unwrap_or_default();
        let ready = move || Readiness::of(&asked.condition());
        let user = identity::LOCAL_USER.parse().context("the local user")?;
        let on_request = OnRequest::of(host, user);
        Ok(Self {
            metrics: MetricsServer::bind(settings.metrics.listen, text, ready).await?,
            transport: Server::build(Options::try_from(&**settings)?, shared.lobby.clone(), on_request)
                .await?,
            admin: AdminServer::bind(&settings.admin)?,
        })
    }

    pub(super) fn listening(&self) -> anyhow::Result<Listening> {
        Ok(Listening { http: self.transport.local_addr()?, metrics: self.metrics.local_addr()? })
    }

    /// Serves until `stop`; each server then ends in its own time.
    pub(super) fn run(self, host: &Host, tasks: &TaskTracker, stop: &CancellationToken) {
        tasks.spawn(self.transport.run(stop.clone(), REQUESTS_END));
        tasks.spawn(self.admin.run(host.clone(), stop.clone()));
        tasks.spawn(self.metrics.run(stop.clone()));
    }
}
