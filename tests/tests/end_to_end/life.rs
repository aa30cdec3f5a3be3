//! How a service lives and ends, and what it leaves.

use anyhow::{Result, ensure};
use host_tests::{ground::Ground, service::Service, wait::until};
use rustix::process::Signal;
use serde_json::Value;

use crate::SOON;

pub(crate) async fn an_operator_sees_and_stops_a_mandelbox(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).start().await?;
    service.spin_up("seen").await?;
    let inspect = service.cli(&["mandelbox", "inspect", "seen"])?;
    ensure!(inspect.status.success() && String::from_utf8_lossy(&inspect.stdout).contains("seen"));
    let logs = service.cli(&["mandelbox", "logs", "seen"])?;
    ensure!(logs.status.success() && !logs.stdout.is_empty(), "{logs:?}");
    let stop = service.cli(&["mandelbox", "stop", "seen"])?;
    ensure!(stop.status.success(), "{}", String::from_utf8_lossy(&stop.stderr));
    service.idle().await?;
    assert_eq!(service.cli(&["mandelbox", "inspect", "seen"])?.status.code(), Some(1));
    service.end_cleanly().await
}

pub(crate) async fn probes_and_metrics_tell_the_state(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).start().await?;
    service.spin_up("measured").await?;
    let ready = async || (service.probe("/readyz").await.ok()?.0 == 200).then_some(());
    until("readiness", SOON, ready).await?;
    assert_eq!(service.probe("/healthz").await?.0, 200);
    let (_, metrics) = service.probe("/metrics").await?;
    for line in [
        "host_service_mandelboxes{phase=\"running\"} 1",
        "host_service_leases_held{resource=\"port\"} 3",
        "host_service_up{component=\"runtime\"} 1",
        "host_service_spin_up_seconds_count 1",
        "host_service_spin_up_stage_seconds_count{stage=\"start\"} 1",
        "# EOF",
    ] {
        ensure!(metrics.contains(line), "no {line:?} in\n{metrics}");
    }
    service.end_cleanly().await
}

pub(crate) async fn a_drain_lets_sessions_end_and_refuses_new_ones(ground: &dyn Ground) -> Result<()> {
    let mut service = Service::on(ground).set("drain.deadline=5m").start().await?;
    let session = service.spin_up("session").await?;
    service.signal(Signal::TERM)?;
    let draining = async || (service.probe("/readyz").await.ok()?.0 == 503).then_some(());
    until("drain", SOON, draining).await?;
    let refused = service.ask("late", "test/mandelbox").await?;
    assert_eq!((refused.status, refused.code()), (503, Some("draining")));
    assert_eq!(service.facts(&session).await?["id"], "session", "the session goes on");
    let _ = service.post(&session, "/exit?code=0").await;
    ensure!(service.ended().await?.success(), "{}", service.log());
    ground.assert_none(service.name()).await
}

pub(crate) async fn a_second_signal_hurries(ground: &dyn Ground) -> Result<()> {
    let mut service = Service::on(ground).set("drain.deadline=5m").start().await?;
    let answer = service.ask("stubborn", "test/ignore-sigterm").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    service.signal(Signal::INT)?;
    let draining = async || (service.probe("/readyz").await.ok()?.0 == 503).then_some(());
    until("drain", SOON, draining).await?;
    service.signal(Signal::INT)?;
    ensure!(service.ended().await?.success(), "{}", service.log());
    ground.assert_none(service.name()).await
}

pub(crate) async fn the_drain_command_ends_the_service(ground: &dyn Ground) -> Result<()> {
    let mut service = Service::on(ground).set("drain.deadline=5m").start().await?;
    service.spin_up("session").await?;
    let drain = service.cli(&["drain", "--deadline", "0s", "--force"])?;
    ensure!(drain.status.success(), "{}", String::from_utf8_lossy(&drain.stderr));
    ensure!(service.ended().await?.success(), "{}", service.log());
    assert_eq!(service.cli(&["status"])?.status.code(), Some(69), "no service at the socket");
    ground.assert_none(service.name()).await
}

pub(crate) async fn what_a_killed_service_leaves_is_found_and_purged_exactly(
    ground: &dyn Ground,
) -> Result<()> {
    let bystander = Service::on(ground).start().await?;
    bystander.spin_up("bystander").await?;
    let service = Service::on(ground).start().await?;
    let name = service.name().to_owned();
    let orphan = service.spin_up("orphan").await?;
    let builder = service.kill().await?;
    assert_eq!(bystander.facts(&orphan).await?["id"], "orphan", "a mandelbox outlives its service");

    let mut refused = builder.spawn()?;
    let refused = until("refusal", SOON, async || refused.try_wait().ok().flatten()).await?;
    assert_eq!(refused.code(), Some(1));
    let log = builder.log();
    ensure!(log.contains("orphan") && log.contains("--purge-leftovers"), "{log}");
    assert_eq!(ground.containers(&name).await?.len(), 1, "a refusal touches nothing");
    assert_eq!(bystander.facts(&orphan).await?["id"], "orphan", "nor what runs");

    let service = builder.argument("--purge-leftovers").start().await?;
    ground.assert_none(&name).await?;
    service.spin_up("orphan").await?;
    service.end_cleanly().await?;
    assert_eq!(ground.containers(bystander.name()).await?.len(), 1, "another host's stays");
    bystander.end_cleanly().await
}

pub(crate) async fn a_restarted_development_host_remembers_its_rows(ground: &dyn Ground) -> Result<()> {
    let builder = Service::on(ground);
    let file = builder.scratch().join("rows.json");
    let builder = builder.set(format!("pubsub.memory.file={}", file.display()));
    let service = builder.start().await?;
    service.spin_up("remembered").await?;
    let builder = service.kill().await?;
    let rows: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    ensure!(rows.to_string().contains("remembered"), "{rows}");
    let service = builder.argument("--purge-leftovers").start().await?;
    // Its row says RUNNING and nothing here runs it: the row goes.
    let gone = async || (!std::fs::read_to_string(&file).ok()?.contains("remembered")).then_some(());
    until("end of the stale row", SOON, gone).await?;
    service.end_cleanly().await
}

pub(crate) async fn a_busy_port_is_named(ground: &dyn Ground) -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let builder = Service::on(ground).set(format!("http.listen={address}"));
    let mut child = builder.spawn()?;
    let status = until("end", SOON, async || child.try_wait().ok().flatten()).await?;
    assert_eq!(status.code(), Some(1));
    ensure!(builder.log().contains(&format!("port {} is taken", address.port())), "{}", builder.log());
    Ok(())
}
