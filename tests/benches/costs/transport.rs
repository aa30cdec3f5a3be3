//! What `json_transport` and the service's own part of a spin-up cost, on a runtime that costs next to nothing.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;
use host_tests::service::{Builder, Service};
use reqwest::Client;

use crate::{
    client::{Admin, fresh, request, spin_up, timed},
    figures::{MANY, Samples, goal, head, row, title},
};

const REQUESTS: usize = 10_000;
const CONNECTIONS: usize = 1_000;
const SPIN_UPS: usize = 300;
const AT_ONCE: usize = 50;
const CROWDS: usize = 10;
const GOAL_MS: f64 = 1.0;
/// There are 54 TTYs, and each rests for half a second after use.
const REST: Duration = Duration::from_millis(600);

pub(crate) async fn measure() -> Result<()> {
    requests().await?;
    title("The service's own part of a spin-up: runtime sim")?;
    head(MANY)?;
    spin_ups("application not waited for", sim().set("mandelbox.wait_for_application=false")).await?;
    spin_ups("application looks every 5 ms", sim()).await
}

fn sim() -> Builder {
    Service::with("[runtime]\nplugin = \"sim\"\n").set(format!("gpu.sim.count={AT_ONCE}"))
}

/// Requests that need no spin-up, each kind in its turn.
async fn requests() -> Result<()> {
    let service = sim().set("mandelbox.answer_again=1h").start().await?;
    service.spin_up("kept").await?;
    let (http, client) = (service.http(), fresh()?);
    let put = |client: &Client| request(client, &service, "kept");
    let malformed = || client.put(format!("https://{http}/json_transport")).body("{");
    let unknown = || client.get(format!("https://{http}/unknown"));

    let [mut again, mut refused, mut unknown_path, mut probe, mut new] = <[Samples; 5]>::default();
    for _ in 0..REQUESTS {
        again.add(timed(put(&client), 200).await?);
        refused.add(timed(malformed(), 400).await?);
        unknown_path.add(timed(unknown(), 404).await?);
        let begun = Instant::now();
        service.probe("/healthz").await?;
        probe.add(begun.elapsed());
    }
    for _ in 0..CONNECTIONS {
        new.add(timed(put(&fresh()?), 200).await?);
    }
    title("json_transport, client included")?;
    head(MANY)?;
    row("identical request: 200 from memory", &again, MANY)?;
    row("malformed body: 400", &refused, MANY)?;
    row("unknown path: 404", &unknown_path, MANY)?;
    row("for comparison: /healthz, plain HTTP", &probe, MANY)?;
    row("new connection and identical request: 200", &new, MANY)?;
    goal("p99 below 1 ms on a kept connection", again.percentile(0.99) < GOAL_MS)?;
    service.end_cleanly().await
}

async fn spin_ups(what: &str, builder: Builder) -> Result<()> {
    let service = builder.start().await?;
    let admin = Admin::of(&service)?;
    let [mut alone, mut crowd, mut all] = <[Samples; 3]>::default();
    for n in 0..SPIN_UPS {
        let id = format!("alone-{n}");
        alone.add(spin_up(&service, &id).await?);
        admin.stop(&id, Some(Duration::ZERO)).await?;
        if n % AT_ONCE == AT_ONCE - 1 {
            tokio::time::sleep(REST).await;
        }
    }
    for round in 0..CROWDS {
        let ids: Vec<_> = (0..AT_ONCE).map(|n| format!("crowd-{round}-{n}")).collect();
        let begun = Instant::now();
        let took = try_join_all(ids.iter().map(|id| spin_up(&service, id))).await?;
        all.add(begun.elapsed());
        took.into_iter().for_each(|took| crowd.add(took));
        try_join_all(ids.iter().map(|id| admin.stop(id, Some(Duration::ZERO)))).await?;
        tokio::time::sleep(REST).await;
    }
    row(&format!("one at a time; {what}"), &alone, MANY)?;
    row(&format!("{AT_ONCE} at once; {what}"), &crowd, MANY)?;
    row("  the last of a round", &all, MANY)?;
    service.end_cleanly().await
}
