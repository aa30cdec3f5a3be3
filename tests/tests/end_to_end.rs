//! The main job, done for real: the real binary, a real Docker Engine, a real application inside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use host_tests::{engine::Engine, service::Service, wait::until};
use rustix::process::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_request_becomes_a_running_mandelbox_and_leaves_nothing() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).start().await?;
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
    let containers = engine.containers_with_label(&service.label()).await?;
    assert_eq!(containers.len(), 1);
    let names = containers[0].names.clone().unwrap_or_default();
    assert_eq!(names, ["/test-mandelbox-loop-1"], "named <app>-<id>");

    // The connection may break before the answer: the server dies of this request.
    let _ = service.post(&answer, "/exit?code=0").await;
    service.idle().await?;
    engine.assert_none_labelled(&service.label()).await?;
    service.end_cleanly().await
}

#[tokio::test]
async fn a_mandelbox_is_confined_as_the_settings_say() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).set("mandelbox.limits.pids=77").start().await?;
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

#[tokio::test]
async fn twenty_at_once_are_twenty_different_mandelboxes() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).set("gpu.sim.count=8").start().await?;
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

#[tokio::test]
async fn startup_data_is_taken_once_and_the_same_request_gets_the_same_answer() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).start().await?;
    let answer = service.spin_up("once").await?;
    let again = service.spin_up("once").await?;
    assert_eq!(answer, again);
    let other = json!({"mandelbox_id": "once", "app_name": "test/mandelbox", "json_data": {"dpi": 1}});
    let other = service.put(&other).await?;
    assert_eq!((other.status, other.code()), (409, Some("already_delivered")));
    assert_eq!(service.facts(&answer).await?["config_json"], r#"{"dpi":96,"id":"once"}"#);
    service.end_cleanly().await
}

#[tokio::test]
async fn a_failed_spin_up_is_undone_and_disturbs_nobody() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).set("mandelbox.timeouts.application=1s").start().await?;
    let healthy = service.spin_up("healthy").await?;
    for app in ["test/exit-at-once", "test/never-ready", "test/does-not-exist"] {
        let answer = service.ask(&app.replace('/', "-"), app).await?;
        assert_eq!((answer.status, answer.code()), (500, Some("spin_up_failed")), "{app}: {answer:?}");
    }
    let one_left = async || {
        let containers = engine.containers_with_label(&service.label()).await.ok()?;
        let held = service.status().ok()?["leases"]["ports"]["held"].as_u64()?;
        (containers.len() == 1 && held == 3).then_some(())
    };
    until("only the healthy one", SOON, one_left).await.with_context(|| service.log())?;
    assert_eq!(service.facts(&healthy).await?["id"], "healthy");
    service.end_cleanly().await
}

#[tokio::test]
async fn exhaustion_says_who_holds_what_and_ends_with_the_holder() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).set("mandelbox.tty_range=10-11").start().await?;
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

#[tokio::test]
async fn links_planted_inside_lead_nowhere() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).start().await?;
    let answer = service.ask("attack", "test/symlink-attack").await?;
    assert_eq!(answer.status, 200, "{answer:?}\n{}", service.log());
    let mappings = service.root().join("attack/resourceMappings");
    let config = mappings.join("config.json").symlink_metadata()?;
    assert!(config.is_file() || config.is_symlink());
    ensure!(!std::path::Path::new("/host-canary").exists(), "a file was written outside");
    service.end_cleanly().await
}

#[tokio::test]
async fn the_row_may_come_before_the_request_or_after() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).set("mandelbox.allocate_on_request=false").start().await?;
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

#[tokio::test]
async fn nothing_allocated_is_told_in_time() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine)
        .set("mandelbox.allocate_on_request=false")
        .set("mandelbox.timeouts.client=200ms")
        .start()
        .await?;
    let answer = service.ask("nobody", "test/mandelbox").await?;
    assert_eq!((answer.status, answer.code()), (408, Some("not_allocated")));
    service.end_cleanly().await
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_nothing() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).start().await?;
    let impatient = tokio::time::timeout(Duration::from_millis(20), service.spin_up("impatient")).await;
    ensure!(impatient.is_err(), "the spin-up was too fast for this test");
    let answer = service.spin_up("impatient").await?;
    assert_eq!(service.facts(&answer).await?["id"], "impatient");
    assert_eq!(service.mandelboxes()?.len(), 1);
    service.end_cleanly().await
}

#[tokio::test]
async fn an_operator_sees_and_stops_a_mandelbox() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).start().await?;
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

#[tokio::test]
async fn probes_and_metrics_tell_the_state() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).start().await?;
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

#[tokio::test]
async fn a_drain_lets_sessions_end_and_refuses_new_ones() -> Result<()> {
    let engine = Engine::shared().await?;
    let mut service = Service::on(&engine).set("drain.deadline=5m").start().await?;
    let session = service.spin_up("session").await?;
    service.signal(Signal::TERM)?;
    let draining = async || (service.probe("/readyz").await.ok()?.0 == 503).then_some(());
    until("drain", SOON, draining).await?;
    let refused = service.ask("late", "test/mandelbox").await?;
    assert_eq!((refused.status, refused.code()), (503, Some("draining")));
    assert_eq!(service.facts(&session).await?["id"], "session", "the session goes on");
    let _ = service.post(&session, "/exit?code=0").await;
    ensure!(service.ended().await?.success(), "{}", service.log());
    engine.assert_none_labelled(&service.label()).await
}

#[tokio::test]
async fn a_second_signal_hurries() -> Result<()> {
    let engine = Engine::shared().await?;
    let mut service = Service::on(&engine).set("drain.deadline=5m").start().await?;
    let answer = service.ask("stubborn", "test/ignore-sigterm").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    service.signal(Signal::INT)?;
    let draining = async || (service.probe("/readyz").await.ok()?.0 == 503).then_some(());
    until("drain", SOON, draining).await?;
    service.signal(Signal::INT)?;
    ensure!(service.ended().await?.success(), "{}", service.log());
    engine.assert_none_labelled(&service.label()).await
}

#[tokio::test]
async fn what_a_killed_service_leaves_is_found_and_purged_exactly() -> Result<()> {
    let engine = Engine::shared().await?;
    let bystander = Service::on(&engine).start().await?;
    bystander.spin_up("bystander").await?;
    let service = Service::on(&engine).start().await?;
    let label = service.label();
    service.spin_up("orphan").await?;
    let builder = service.kill().await?;

    let mut refused = builder.spawn()?;
    let refused = until("refusal", SOON, async || refused.try_wait().ok().flatten()).await?;
    assert_eq!(refused.code(), Some(1));
    let log = builder.log();
    ensure!(log.contains("orphan") && log.contains("--purge-leftovers"), "{log}");
    assert_eq!(engine.containers_with_label(&label).await?.len(), 1, "a refusal touches nothing");

    let service = builder.argument("--purge-leftovers").start().await?;
    engine.assert_none_labelled(&label).await?;
    service.spin_up("orphan").await?;
    service.end_cleanly().await?;
    assert_eq!(engine.containers_with_label(&bystander.label()).await?.len(), 1, "another host's stays");
    bystander.end_cleanly().await
}

#[tokio::test]
async fn without_an_engine_the_start_says_what_to_do() -> Result<()> {
    let builder = Service::with(
        "[runtime]\nplugin = \"docker\"\n[runtime.docker]\nendpoint = \"unix:///nonexistent/docker.sock\"\n",
    );
    let mut child = builder.spawn()?;
    let status = until("end", SOON, async || child.try_wait().ok().flatten()).await?;
    assert_eq!(status.code(), Some(1));
    let log = builder.log();
    ensure!(log.contains("/nonexistent/docker.sock"), "{log}");
    ensure!(
        !builder.scratch().join("root").exists() && !builder.scratch().join("state").exists(),
        "something is left"
    );
    Ok(())
}

#[tokio::test]
async fn a_busy_port_is_named() -> Result<()> {
    let engine = Engine::shared().await?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let builder = Service::on(&engine).set(format!("http.listen={address}"));
    let mut child = builder.spawn()?;
    let status = until("end", SOON, async || child.try_wait().ok().flatten()).await?;
    assert_eq!(status.code(), Some(1));
    ensure!(builder.log().contains(&format!("port {} is taken", address.port())), "{}", builder.log());
    Ok(())
}

#[tokio::test]
async fn a_restarted_development_host_remembers_its_rows() -> Result<()> {
    let engine = Engine::shared().await?;
    let builder = Service::on(&engine);
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

#[tokio::test]
async fn the_drain_command_ends_the_service() -> Result<()> {
    let engine = Engine::shared().await?;
    let mut service = Service::on(&engine).set("drain.deadline=5m").start().await?;
    service.spin_up("session").await?;
    let drain = service.cli(&["drain", "--deadline", "0s", "--force"])?;
    ensure!(drain.status.success(), "{}", String::from_utf8_lossy(&drain.stderr));
    ensure!(service.ended().await?.success(), "{}", service.log());
    assert_eq!(service.cli(&["status"])?.status.code(), Some(69), "no service at the socket");
    engine.assert_none_labelled(&service.label()).await
}

#[tokio::test]
async fn a_thousand_requests_at_once_harm_nobody() -> Result<()> {
    let engine = Engine::shared().await?;
    let service = Service::on(&engine).set("mandelbox.allocate_on_request=false").start().await?;
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

/// Tests that do to their engine what nobody else could bear.
mod scratch {
    use super::*;

    #[tokio::test]
    async fn an_engine_killed_in_the_middle_loses_nothing_for_good() -> Result<()> {
        let engine = Engine::scratch().await?;
        let service = Service::on(&engine).set("gpu.sim.count=8").start().await?;
        service.spin_up("before").await?;
        let ids: Vec<_> = (0..10).map(|n| format!("during-{n}")).collect();
        let asked = join_all(ids.iter().map(|id| service.ask(id, "test/mandelbox")));
        let (answers, killed) = tokio::join!(asked, async {
            let begun = async || {
                let listed = service.mandelboxes().ok()?;
                listed.iter().any(|m| m["phase"] == "launching").then_some(())
            };
            until("spin-ups under way", SOON, begun).await?;
            engine.kill().await?;
            let down = async || (service.probe("/readyz").await.ok()?.0 == 503).then_some(());
            until("notice", SOON, down).await?;
            engine.start().await
        });
        killed?;
        for answer in answers {
            let answer = answer?;
            ensure!([200, 500, 503].contains(&answer.status), "{answer:?}");
        }
        // An engine that comes back without live restore ends what it finds running.
        service.idle().await?;
        // What dockerd itself had half made when it was killed, a mount or an interface, it does not find again.
        engine.assert_none_labelled(&service.label()).await?;
        service.spin_up("after").await?;
        let label = service.label();
        service.end_cleanly().await?;
        engine.assert_none_labelled(&label).await
    }

    #[tokio::test]
    async fn a_frozen_engine_fails_the_spin_up_in_time() -> Result<()> {
        let engine = Engine::scratch().await?;
        let service = Service::on(&engine)
            .set("mandelbox.timeouts.create=1s")
            .set("mandelbox.timeouts.image=1s")
            .set("mandelbox.timeouts.remove=1s")
            .start()
            .await?;
        engine.freeze().await?;
        let answer = service.ask("frozen", "test/mandelbox").await?;
        assert_eq!((answer.status, answer.code()), (500, Some("spin_up_failed")), "{answer:?}");
        engine.thaw().await?;
        service.idle().await?;
        engine.assert_clean().await?;
        service.end_cleanly().await
    }
}
