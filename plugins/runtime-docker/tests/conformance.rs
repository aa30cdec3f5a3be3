//! What every `Runtime` must do, on a real Docker engine.
#![cfg(test)]

use std::{path::PathBuf, thread};

use async_trait::async_trait;
use conformance::{
    Unmet, Verdict,
    runtime::{Fixture, run},
    table::keep,
};
use host_core::{ImageRef, runtime::Runtime};
use host_tests::{engine::Engine, image, registry::Registry};
use runtime_docker::{Config, DockerRuntime};

struct Docker {
    runtime: DockerRuntime,
    engine: Engine,
    archive: PathBuf,
    registry: Registry,
}

#[async_trait]
impl Fixture for Docker {
    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }

    fn image(&self) -> ImageRef {
        "test/mandelbox:current-build".parse().unwrap()
    }

    fn archive(&self) -> Option<PathBuf> {
        Some(self.archive.clone())
    }

    fn pullable(&self) -> Option<ImageRef> {
        Some(self.registry.image().parse().unwrap())
    }

    /// On a thread of its own, because the harness's futures cannot be sent.
    async fn restart(&self) -> Verdict {
        let restart = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(self.engine.restart())
        };
        let restarted = thread::scope(|scope| scope.spawn(restart).join());
        match restarted {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Unmet::Broken(format!("{error:#}"))),
            Err(_) => Err(Unmet::Broken("restarting panicked".to_owned())),
        }
    }
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn it_does_what_every_runtime_must_do() {
        let engine = Engine::scratch().await.unwrap();
        let config = Config { endpoint: engine.endpoint().parse().unwrap(), ..Config::default() };
        let runtime = DockerRuntime::connect(config).await.unwrap();
        // In the engine's network, because the engine is there already.
        let archive = image::archive().unwrap();
        let registry = Registry::offering(&archive, "docker.io/test/mandelbox:current-build").await.unwrap();
        let docker = Docker { runtime, engine, archive, registry };
        let report = run("docker", &docker).await;
        println!("{report}");
        assert!(report.holds(), "{report}");
        keep(&report).unwrap();
        docker.engine.assert_clean().await.unwrap();
    }
}
