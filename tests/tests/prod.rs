//! A host as in production, with stand-ins for what is EC2's and for the issuer of tokens: it learns who it is from the
//! metadata service, checks tokens with keys that the issuer serves, and drains when it is interrupted.
#![cfg(test)]

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use axum::{Router, routing::get};
use host_tests::{
    engine::Engine,
    postgres::{Cluster, Database},
    service::{Answer, Builder, Service},
    wait::until,
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

use imds::Imds;
use issuer::{AUDIENCE, ISSUER, Issuer, claims_but, now};

#[allow(dead_code, reason = "what it can do besides is tried where it lies")]
#[path = "../../host-service/tests/ec2/imds.rs"]
mod imds;
#[allow(dead_code, reason = "what it can do besides is tried where it lies")]
#[path = "../../host-service/tests/transport/issuer.rs"]
mod issuer;

const SOON: Duration = Duration::from_secs(30);
const COMMIT: &str = "0123456789abcdef";

/// Everything around one host.
struct Cloud {
    imds: Imds,
    issuer: Issuer,
    keys: String,
    database: Database,
    _cluster: Cluster,
    _servers: JoinSet<()>,
}

impl Cloud {
    async fn new() -> Result<Self> {
        let (imds, issuer) = (Imds::start().await, Issuer::new());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let keys = format!("http://{}/jwks.json", listener.local_addr()?);
        let served = issuer.keys().to_string();
        let router = Router::new().route("/jwks.json", get(async move || served));
        let servers = JoinSet::from_iter([async move { axum::serve(listener, router).await.unwrap() }]);
        let cluster = Cluster::scratch().await?;
        let database = cluster.database()?;
        Ok(Self { imds, issuer, keys, database, _cluster: cluster, _servers: servers })
    }

    /// Of profile `prod`, and expected by the control plane.
    fn host(&self, builder: Builder) -> Result<Builder> {
        let builder = builder
            .profile("prod")
            .set("gpu.plugin=sim")
            .set("telemetry.plugins=[\"console\"]")
            .set("pubsub.plugin=postgres")
            .set(format!("pubsub.postgres.url={}", self.database.url()))
            .set(format!("auth.issuer={ISSUER}"))
            .set(format!("auth.audience={AUDIENCE}"))
            .set(format!("auth.jwks_url={}", self.keys))
            .set(format!("instance.metadata_endpoint={}", self.imds.endpoint))
            .set(format!("instance.commit={COMMIT}"))
            .set("mandelbox.image=\"{app}:current-build\"")
            .set("mandelbox.match_local_images=true")
            .set("mandelbox.pull=never")
            .set("interruption.poll=200ms")
            .set("drain.grace=2s");
        let migrated = builder.cli(&["db", "migrate"])?;
        ensure!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        self.database.sql(&format!(
            "INSERT INTO cloud.instance_info VALUES ('', 'eu-west-1', 'ami-0abc', 'g4dn.xlarge', 'i-0123456789', \
             '{}', 1, 0, '{}', 1, 1, 0, 0, 'PRE_CONNECTION')",
            &COMMIT[..8],
            builder.name()
        ))?;
        Ok(builder)
    }

    /// The control plane gives `user` a mandelbox on whatever host has room.
    fn allocate(&self, user: &str) -> Result<String> {
        let id = self.database.sql(&format!(
            "SELECT mandelbox_id FROM cloud.allocate_mandelbox('{user}', 'eu-west-1', 'test/mandelbox', 's')"
        ))?;
        ensure!(!id.is_empty(), "there is no host with room");
        Ok(id)
    }

    /// The rows of hosts, in short.
    fn hosts(&self) -> Result<String> {
        self.database.sql("SELECT status, ip FROM cloud.instance_info")
    }
}

async fn ask(service: &Service, id: &str, token: Option<&str>) -> Result<Answer> {
    service.put(&json!({"mandelbox_id": id, "jwt_access_token": token, "json_data": {"dpi": 96}})).await
}

/// From the row to the session, with tokens; then EC2 takes the instance back.
async fn serves_and_is_interrupted(builder: Builder, cloud: &Cloud) -> Result<()> {
    let mut service = cloud.host(builder)?.set("interruption.reserve=20s").start().await?;
    assert_eq!(cloud.hosts()?, "ACTIVE|203.0.113.7", "the address that the metadata tell");
    let id = cloud.allocate("ann")?;
    let expired = cloud.issuer.rs256(&claims_but(json!({"exp": now() - 3600})));
    let [ann, mallory] = ["ann", "mallory"].map(|user| cloud.issuer.token(user));
    for (token, status, code) in [
        (None, 401, "token_missing"),
        (Some(&expired), 401, "token_expired"),
        (Some(&mallory), 403, "forbidden"),
    ] {
        let answer = ask(&service, &id, token.map(String::as_str)).await?;
        assert_eq!((answer.status, answer.code()), (status, Some(code)));
    }
    let answer = ask(&service, &id, Some(&ann)).await?;
    ensure!(answer.status == 200, "{answer:?}\n{}", service.log());
    ensure!(!service.log().contains(&ann), "a token was logged");

    let at = SystemTime::now() + Duration::from_secs(30);
    let action = format!(r#"{{"action":"terminate","time":"{}"}}"#, humantime::format_rfc3339_seconds(at));
    cloud.imds.set("spot/instance-action", &action);
    let draining = async || (service.status().ok()?["condition"]["draining"] == "interruption").then_some(());
    until("drain", SOON, draining).await.with_context(|| service.log())?;
    assert_eq!(cloud.hosts()?, "DRAINING|203.0.113.7", "nobody else is sent here");
    assert_eq!(service.mandelboxes()?.len(), 1, "the session goes on for now");
    let status = service.ended().await?;
    ensure!(status.success(), "{status}\n{}", service.log());
    ensure!(SystemTime::now() < at, "it took longer than EC2 gives\n{}", service.log());
    assert_eq!(cloud.hosts()?, "", "the host's row goes with it");
    ensure!(!service.root().exists() && !service.state().exists(), "something is left\n{}", service.log());
    Ok(())
}

#[tokio::test]
async fn a_host_serves_with_tokens_until_ec2_takes_it_back() -> Result<()> {
    let builder = Service::with("[runtime]\nplugin = \"sim\"\n");
    serves_and_is_interrupted(builder, &Cloud::new().await?).await
}

#[tokio::test]
async fn a_host_on_docker_serves_with_tokens_until_ec2_takes_it_back() -> Result<()> {
    let engine = Engine::shared().await?;
    let builder = Service::on(&engine);
    let label = format!("host-service.instance={}", builder.name());
    serves_and_is_interrupted(builder, &Cloud::new().await?).await?;
    engine.assert_none_labelled(&label).await
}

#[tokio::test]
async fn only_the_control_planes_drain_switches_the_machine_off() -> Result<()> {
    let cloud = Cloud::new().await?;
    let builder = || {
        let builder = cloud.host(Service::with("[runtime]\nplugin = \"sim\"\n"))?;
        let off = builder.scratch().join("off");
        let builder = builder.set(format!("drain.power_off=[\"touch\", \"{}\"]", off.display()));
        anyhow::Ok((builder, off))
    };
    let (by_signal, off) = builder()?;
    by_signal.start().await?.end_cleanly().await?;
    ensure!(!Path::new(&off).exists(), "a signal is no order to switch the machine off");

    let (ordered, off) = builder()?;
    let mut service = ordered.start().await?;
    cloud.database.sql("UPDATE cloud.instance_info SET status = 'DRAINING'")?;
    let status = service.ended().await?;
    ensure!(status.success(), "{status}\n{}", service.log());
    ensure!(service.log().contains("switching the machine off"), "it says so first\n{}", service.log());
    ensure!(off.exists(), "{}", service.log());
    Ok(())
}
