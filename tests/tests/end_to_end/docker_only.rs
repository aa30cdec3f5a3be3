//! What only an engine can do to a service: not being there, dying, freezing.

use anyhow::{Result, ensure};
use futures::future::join_all;
use host_tests::{engine::Engine, service::Service, wait::until};

use crate::SOON;

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
