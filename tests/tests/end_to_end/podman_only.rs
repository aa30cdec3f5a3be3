//! What only an engine without a daemon over its containers does: it dies, and they run on.

use anyhow::{Context, Result, ensure};
use host_tests::{engine::Engine, ground::Ground, service::Service, wait::until};

use crate::SOON;

#[tokio::test]
async fn without_an_engine_the_start_says_what_to_do() -> Result<()> {
    let endpoint = "unix:///nonexistent/podman.sock";
    let settings = format!("[runtime]\nplugin = \"podman\"\n[runtime.podman]\nendpoint = \"{endpoint}\"\n");
    let builder = Service::with(&settings);
    let mut child = builder.spawn()?;
    let status = until("end", SOON, async || child.try_wait().ok().flatten()).await?;
    assert_eq!(status.code(), Some(1));
    let log = builder.log();
    ensure!(log.contains(endpoint) && log.contains("podman.socket"), "{log}");
    Ok(())
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn sessions_outlive_a_killed_engine() -> Result<()> {
        let engine = Engine::scratch_podman().await?;
        let service = Service::on(&engine).start().await?;
        let session = service.spin_up("session").await?;
        engine.kill().await?;
        let down = async || (service.probe("/readyz").await.ok()?.0 == 503).then_some(());
        until("notice", SOON, down).await?;
        assert_eq!(service.facts(&session).await?["id"], "session", "the session goes on");
        engine.start().await?;
        let up = async || (service.probe("/readyz").await.ok()?.0 == 200).then_some(());
        until("readiness", SOON, up).await.with_context(|| service.log())?;
        assert_eq!(service.facts(&session).await?["id"], "session", "the session goes on");
        // What ends while the connection is new is noticed.
        let _ = service.post(&session, "/exit?code=0").await;
        service.idle().await?;
        let name = service.name().to_owned();
        service.end_cleanly().await?;
        engine.assert_none(&name).await?;
        engine.assert_clean().await
    }
}
