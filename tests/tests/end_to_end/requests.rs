//! What becomes of requests.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use host_tests::{ground::Ground, service::Service, wait::until};
use serde_json::json;

use crate::SOON;

pub(crate) async fn a_request_becomes_a_running_mandelbox_and_leaves_nothing(
    ground: &dyn Ground,
) -> Result<()> {
    let service = Service::on(ground).start().await?;
    let answer = service.spin_up("loop-1").await?;

    let facts = service.facts(&answer).await?;
    assert_eq!(facts["id"], "loop-1");
    assert_eq!(facts["aes_key"].as_str(), answer.aes_key(), "client and mandelbox share the key");
    assert_eq!(facts["aes_key_is_32_hex_digits"], true);
    assert_eq!(facts["config_json"], r#"{"dpi":96,"id":"loop-1"}"#);
    assert_eq!(facts["host_ports"]["32262/tcp"], answer.port(32262)?);
    assert_eq!(facts["timeout_seconds"], -1);
    let tty = facts["tty"].as_u64().context("a TTY")?;
    assert!((10..=63).contains(&tty), "{tty}");

    let mandelboxes = service.mandelboxes()?;
    assert_eq!(mandelboxes.len(), 1);
    assert_eq!(mandelboxes[0]["phase"], "running");
    assert_eq!(mandelboxes[0]["tty"], tty);
    assert_eq!(ground.containers(service.name()).await?, ["test-mandelbox-loop-1"], "named <app>-<id>");

    // The connection may break before the answer: the server dies of this request.
    let _ = service.post(&answer, "/exit?code=0").await;
    service.idle().await?;
    ground.assert_none(service.name()).await?;
    service.end_cleanly().await
}

pub(crate) async fn a_mandelbox_is_confined_as_the_settings_say(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).set("mandelbox.limits.pids=77").start().await?;
    let answer = service.spin_up("confined").await?;
    let facts = service.facts(&answer).await?;
    // SETPCAP MKNOD AUDIT_WRITE CHOWN NET_RAW DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID NET_BIND_SERVICE SYS_CHROOT
    // SETFCAP SYS_NICE: bits 8 27 29 0 13 1 3 4 5 6 7 10 18 31 23 of capability.h.
    assert_eq!(facts["cap_bnd"], "00000000a88425fb");
    assert_eq!(facts["pids_limit"].to_string().trim_matches('"'), "77");
    assert_eq!(
        facts["memory_limit_bytes"].to_string().trim_matches('"'),
        "6552547328",
        "whole pages of 6552550944"
    );
    assert_eq!(facts["seccomp"].to_string(), "2", "a filter is in force");
    assert_eq!(facts["nvidia_visible_devices"], "void", "a simulated GPU opens no real one");
    service.end_cleanly().await
}

pub(crate) async fn twenty_at_once_are_twenty_different_mandelboxes(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).set("gpu.sim.count=8").start().await?;
    let ids: Vec<_> = (0..20).map(|n| format!("crowd-{n}")).collect();
    let answers = join_all(ids.iter().map(|id| service.spin_up(id))).await;
    let mut ports = Vec::new();
    for (id, answer) in ids.iter().zip(answers) {
        let answer = answer?;
        assert_eq!(service.facts(&answer).await?["id"].as_str(), Some(id.as_str()));
        for port in [32262, 32263, 32273] {
            ports.push(answer.port(port)?);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 60, "no port is given twice");
    let mandelboxes = service.mandelboxes()?;
    let mut ttys: Vec<_> = mandelboxes.iter().map(|mandelbox| mandelbox["tty"].as_u64()).collect();
    ttys.sort_unstable();
    ttys.dedup();
    assert_eq!(ttys.len(), 20, "no TTY is given twice");
    service.end_cleanly().await?;
    Ok(())
}

pub(crate) async fn startup_data_is_taken_once_and_the_same_request_gets_the_same_answer(
    ground: &dyn Ground,
) -> Result<()> {
    let service = Service::on(ground).start().await?;
    let answer = service.spin_up("once").await?;
    let again = service.spin_up("once").await?;
    assert_eq!(answer, again);
    let other = json!({"mandelbox_id": "once", "app_name": "test/mandelbox", "json_data": {"dpi": 1}});
    let other = service.put(&other).await?;
    assert_eq!((other.status, other.code()), (409, Some("already_delivered")));
    assert_eq!(service.facts(&answer).await?["config_json"], r#"{"dpi":96,"id":"once"}"#);
    service.end_cleanly().await
}

pub(crate) async fn a_failed_spin_up_is_undone_and_disturbs_nobody(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).set("mandelbox.timeouts.application=1s").start().await?;
    let healthy = service.spin_up("healthy").await?;
    for app in ["test/exit-at-once", "test/never-ready", "test/does-not-exist"] {
        let answer = service.ask(&app.replace('/', "-"), app).await?;
        assert_eq!((answer.status, answer.code()), (500, Some("spin_up_failed")), "{app}: {answer:?}");
    }
    let one_left = async || {
        let containers = ground.containers(service.name()).await.ok()?;
        let held = service.status().ok()?["leases"]["ports"]["held"].as_u64()?;
        (containers.len() == 1 && held == 3).then_some(())
    };
    until("only the healthy one", SOON, one_left).await.with_context(|| service.log())?;
    assert_eq!(service.facts(&healthy).await?["id"], "healthy");
    service.end_cleanly().await
}

pub(crate) async fn exhaustion_says_who_holds_what_and_ends_with_the_holder(
    ground: &dyn Ground,
) -> Result<()> {
    let service = Service::on(ground).set("mandelbox.tty_range=10-11").start().await?;
    let first = service.spin_up("first").await?;
    service.spin_up("second").await?;
    assert_eq!(service.ask("third", "test/mandelbox").await?.status, 500);
    // Records are written by a thread of their own.
    let told = async || {
        let log = service.log();
        ["no TTY is free", "by first", "by second"].iter().all(|text| log.contains(text)).then_some(())
    };
    until("record of who holds what", SOON, told).await.with_context(|| service.log())?;
    let _ = service.post(&first, "/exit?code=0").await;
    let free = async || (service.mandelboxes().ok()?.len() == 1).then_some(());
    until("end of the first", SOON, free).await?;
    // A TTY rests for a moment after use.
    let again = async || (service.ask("fourth", "test/mandelbox").await.ok()?.status == 200).then_some(());
    until("spin-up on the freed TTY", SOON, again).await?;
    service.end_cleanly().await
}

pub(crate) async fn links_planted_inside_lead_nowhere(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).start().await?;
    let answer = service.ask("attack", "test/symlink-attack").await?;
    assert_eq!(answer.status, 200, "{answer:?}\n{}", service.log());
    let mappings = service.root().join("attack/resourceMappings");
    let config = mappings.join("config.json").symlink_metadata()?;
    assert!(config.is_file() || config.is_symlink());
    ensure!(!std::path::Path::new("/host-canary").exists(), "a file was written outside");
    service.end_cleanly().await
}

pub(crate) async fn the_row_may_come_before_the_request_or_after(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).set("mandelbox.allocate_on_request=false").start().await?;
    let allocate = |id: &str| service.cli(&["mandelbox", "allocate", "test/mandelbox", "--id", id]);

    ensure!(allocate("row-first")?.status.success());
    service.spin_up("row-first").await?;

    let (answer, allocated) = tokio::join!(service.spin_up("request-first"), async {
        let waiting =
            async || service.probe("/metrics").await.ok()?.1.contains("waiting_requests 1.0").then_some(());
        until("waiting request", SOON, waiting).await?;
        allocate("request-first")
    });
    ensure!(allocated?.status.success());
    answer?;
    service.end_cleanly().await
}

pub(crate) async fn nothing_allocated_is_told_in_time(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground)
        .set("mandelbox.allocate_on_request=false")
        .set("mandelbox.timeouts.client=200ms")
        .start()
        .await?;
    let answer = service.ask("nobody", "test/mandelbox").await?;
    assert_eq!((answer.status, answer.code()), (408, Some("not_allocated")));
    service.end_cleanly().await
}

pub(crate) async fn a_client_that_hangs_up_cancels_nothing(ground: &dyn Ground) -> Result<()> {
    let service = Service::on(ground).start().await?;
    // It takes a second and a half to be ready.
    let ask = || service.ask("impatient", "test/slow-ready");
    let impatient = tokio::time::timeout(Duration::from_millis(200), ask()).await;
    ensure!(impatient.is_err(), "it answered at once");
    let answer = ask().await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(service.facts(&answer).await?["id"], "impatient");
    assert_eq!(service.mandelboxes()?.len(), 1);
    service.end_cleanly().await
}

pub(crate) async fn a_thousand_requests_at_once_harm_nobody(ground: &dyn Ground) -> Result<()> {
    // Both ends of a thousand handshakes share the machine's few cores.
    let service = Service::on(ground)
        .set("mandelbox.allocate_on_request=false")
        .set("http.handshake_timeout=60s")
        .set("http.header_timeout=60s")
        .set("http.body_timeout=60s")
        .start()
        .await?;
    let allocated = service.cli(&["mandelbox", "allocate", "test/mandelbox", "--id", "wanted"])?;
    ensure!(allocated.status.success());
    let strangers = join_all((0..1000).map(|n| {
        let body = json!({"mandelbox_id": format!("../{n}"), "json_data": "{"});
        let service = &service;
        async move { service.put(&body).await }
    }));
    let (wanted, strangers) = tokio::join!(service.spin_up("wanted"), strangers);
    wanted?;
    for answer in strangers {
        assert_eq!(answer?.status, 400);
    }
    service.end_cleanly().await
}
