//! What every `Runtime` must do, by this plugin on Podman's Docker-compatible socket. What is otherwise there is known.
#![cfg(test)]

use async_trait::async_trait;
use conformance::{
    Unmet, Verdict,
    runtime::{Fixture, run},
    table::keep,
};
use host_core::{ImageRef, runtime::Runtime};
use host_tests::{engine::Engine, image, registry::Registry};
use runtime_docker::{Config, DockerRuntime};

/// Why to prefer the plugin `podman`.
const DIFFERENCES: &[(&[&str], &str)] = &[
    (&["a_present_image_is_described"], "Podman tells what was loaded as localhost/…"),
    (
        &["an_image_is_pulled"],
        "Podman wants encryption even of a registry on this host, unless its registries.conf says otherwise",
    ),
    (&["an_image_for_another_processor_is_refused"], "Podman starts it, and it ends with code 1"),
    (&["system_calls_are_filtered_as_said"], "Podman takes the text of a filter for the name of its file"),
    (
        &["limits_are_in_force"],
        "to a limit of open files Podman adds one of processes, which needs CAP_SYS_RESOURCE",
    ),
    (&["an_out_of_memory_kill_is_told"], "until Podman 5, conmon marks the kill where Podman does not look"),
    (&["a_missing_bind_source_is_refused"], "Podman makes a missing source, as a directory of root's"),
    (
        &["a_log_is_complete_and_ends", "a_terminals_log_is_complete_and_ends"],
        "Podman takes pieces for lines, and may end a followed log before its last ones",
    ),
];

struct Compatible {
    runtime: DockerRuntime,
    engine: Engine,
    archive: std::path::PathBuf,
    registry: Registry,
}

#[async_trait]
impl Fixture for Compatible {
    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }

    fn image(&self) -> ImageRef {
        "test/mandelbox:current-build".parse().unwrap()
    }

    fn archive(&self) -> Option<std::path::PathBuf> {
        Some(self.archive.clone())
    }

    fn pullable(&self) -> Option<ImageRef> {
        Some(self.registry.image().parse().unwrap())
    }

    fn differs(&self, behaviour: &str) -> Option<&'static str> {
        let known = DIFFERENCES.iter().find(|(behaviours, _)| behaviours.contains(&behaviour));
        known.map(|(_, why)| *why)
    }

    async fn restart(&self) -> Verdict {
        let restart = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(self.engine.restart())
        };
        match std::thread::scope(|scope| scope.spawn(restart).join()) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Unmet::Broken(format!("{error:#}"))),
            Err(_) => Err(Unmet::Broken("restarting panicked".to_owned())),
        }
    }
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn it_does_most_of_what_every_runtime_must_do() {
        let engine = Engine::scratch_podman().await.unwrap();
        let config = Config { endpoint: engine.endpoint().parse().unwrap(), ..Config::default() };
        let runtime = DockerRuntime::connect(config).await.unwrap();
        let archive = image::archive().unwrap();
        let registry = Registry::offering(&archive, "docker.io/test/mandelbox:current-build").await.unwrap();
        let compatible = Compatible { runtime, engine, archive, registry };
        let report = run("docker plugin on podman", &compatible).await;
        println!("{report}");
        assert!(report.holds(), "{report}");
        keep(&report).unwrap();
        compatible.engine.assert_clean().await.unwrap();
    }
}
