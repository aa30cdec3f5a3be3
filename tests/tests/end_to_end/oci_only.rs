//! What can happen only to a service that runs its containers itself.

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use host_tests::{
    ground::Ground,
    oci::{Container, OciHost},
    service::{Builder, Service},
    wait::until,
};

use crate::{SOON, requests};

/// The only container of a service.
fn only(host: &OciHost, service: &Service) -> Result<Container> {
    let mut all = host.containers_of(service.name())?;
    ensure!(all.len() == 1, "{all:?}");
    all.pop().context("no container")
}

/// What a service says that cannot start.
async fn refusal(builder: &Builder) -> Result<String> {
    let mut child = builder.spawn()?;
    let status = until("end", SOON, async || child.try_wait().ok().flatten()).await?;
    ensure!(status.code() == Some(1), "{status}\n{}", builder.log());
    Ok(builder.log())
}

#[tokio::test]
async fn an_external_runtime_does_the_same() -> Result<()> {
    let host = OciHost::with_binary("crun").await?;
    requests::a_request_becomes_a_running_mandelbox_and_leaves_nothing(&host).await?;
    requests::a_failed_spin_up_is_undone_and_disturbs_nobody(&host).await?;
    let asked = host.asked()?;
    ensure!([" create ", " start ", " delete "].iter().all(|what| asked.contains(what)), "{asked}");
    host.assert_untouched().await
}

#[tokio::test]
async fn a_mandelbox_whose_process_is_killed_ends() -> Result<()> {
    let host = OciHost::scratch().await?;
    let service = Service::on(&host).start().await?;
    service.spin_up("killed").await?;
    only(&host, &service)?.kill()?;
    service.idle().await?;
    service.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn a_mandelbox_that_loses_its_supervisor_ends_and_disturbs_nobody() -> Result<()> {
    let host = OciHost::scratch().await?;
    let service = Service::on(&host).start().await?;
    service.spin_up("lost").await?;
    let lost = only(&host, &service)?;
    let other = service.spin_up("other").await?;
    host.kill_supervisor(&lost)?;
    let gone = async || (service.mandelboxes().ok()?.len() == 1).then_some(());
    until("end of the mandelbox", SOON, gone).await.with_context(|| service.log())?;
    let ended = async || lost.processes().is_empty().then_some(());
    until("end of its processes", SOON, ended).await?;
    assert_eq!(service.facts(&other).await?["id"], "other");
    assert_eq!(host.containers(service.name()).await?, ["test-mandelbox-other"]);
    service.spin_up("lost").await?;
    service.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn what_loses_its_supervisor_while_no_service_runs_is_purged_too() -> Result<()> {
    let host = OciHost::scratch().await?;
    let service = Service::on(&host).start().await?;
    service.spin_up("forsaken").await?;
    let forsaken = only(&host, &service)?;
    let builder = service.kill().await?;
    host.kill_supervisor(&forsaken)?;
    let log = refusal(&builder).await?;
    ensure!(log.contains("forsaken"), "{log}");
    ensure!(forsaken.processes().is_empty(), "it goes on and nobody would see its end");
    let service = builder.argument("--purge-leftovers").start().await?;
    host.assert_none(service.name()).await?;
    service.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn a_service_killed_in_the_middle_of_many_spin_ups_leaves_nothing_for_good() -> Result<()> {
    let host = OciHost::scratch().await?;
    let mut builder = Service::on(&host).set("gpu.sim.count=8");
    for round in 0..3 {
        let service = builder.start().await?;
        let ids: Vec<_> = (0..10).map(|n| format!("during-{round}-{n}")).collect();
        let name = service.name().to_owned();
        let asked = join_all(ids.iter().map(|id| service.ask(id, "test/mandelbox")));
        // Each round a little later.
        let begun = async || (host.containers(&name).await.ok()?.len() > 3 * round).then_some(());
        tokio::select! {
            _ = asked => {}
            begun = until("spin-ups under way", SOON, begun) => begun?,
        }
        builder = service.kill().await?;
        if round == 0 {
            builder = builder.argument("--purge-leftovers");
        }
    }
    let service = builder.start().await?;
    host.assert_none(service.name()).await?;
    service.spin_up("after").await?;
    service.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn two_services_do_not_share_a_root() -> Result<()> {
    let host = OciHost::scratch().await?;
    let first = Service::on(&host).start().await?;
    let kept = first.spin_up("kept").await?;
    let root = host.root(first.name());
    let second = Service::on(&host).set(format!("runtime.oci.root={}", root.display()));
    let log = refusal(&second).await?;
    ensure!(log.contains("runtime.oci.root"), "{log}");
    assert_eq!(first.facts(&kept).await?["id"], "kept");
    first.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn what_the_host_lacks_is_named() -> Result<()> {
    let host = OciHost::scratch().await?;
    let file = Service::on(&host).set("runtime.oci.root=/proc/version");
    let log = refusal(&file).await?;
    ensure!(log.contains("/proc/version") && log.contains("runtime.oci.root"), "{log}");
    let absent = Service::on(&host).set("runtime.oci.binary=/absent/crun");
    let log = refusal(&absent).await?;
    ensure!(log.contains("/absent/crun") && log.contains("runtime.oci.binary"), "{log}");
    let poor = Service::on(&host).variable("PATH", "/absent");
    let log = refusal(&poor).await?;
    ensure!(log.contains("nftables"), "{log}");
    for builder in [file, absent, poor] {
        let left = ["root", "state"].map(|name| builder.scratch().join(name).exists());
        ensure!(left == [false, false], "something is left");
    }
    host.assert_untouched().await
}
