//! What every `Runtime` must do, without a daemon: with the OCI runtime inside, and with others.
#![cfg(test)]

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use conformance::{
    runtime::{Fixture, run},
    table::keep,
};
use host_core::{ImageRef, runtime::Runtime};
use host_tests::{image, oci::on_own_host, registry::Registry};
use runtime_oci::{Config, OciRuntime, Program};
use tempfile::TempDir;

struct Oci {
    runtime: OciRuntime,
    archive: PathBuf,
    registry: Registry,
    _root: TempDir,
}

impl Oci {
    async fn with(binary: Option<&str>, cgroup_parent: &Path) -> Self {
        let archive = image::archive().unwrap();
        let registry = Registry::offering(&archive, "docker.io/test/mandelbox:current-build").await.unwrap();
        let root = tempfile::tempdir().unwrap();
        let mut config = Config {
            root: root.path().join("oci"),
            binary: binary.map(Into::into),
            cgroup_parent: cgroup_parent.join("conformance"),
            ..Config::default()
        };
        let plain = oci_images::Registry { plain_http: true, ..Default::default() };
        config.images.registries.insert(registry.host().to_owned(), plain);
        let program = Program::at(env!("CARGO_BIN_EXE_oci-supervisor"));
        let runtime = OciRuntime::open(config, program).await.unwrap();
        runtime.load_image(&archive).await.unwrap();
        Self { runtime, archive, registry, _root: root }
    }
}

#[async_trait]
impl Fixture for Oci {
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
}

async fn conforms(test: &str, binary: Option<&str>) {
    let conforms = async |group: &Path| {
        let oci = Oci::with(binary, group).await;
        let report = run(&format!("oci ({})", binary.unwrap_or("libcontainer")), &oci).await;
        println!("{report}");
        assert!(report.holds(), "{report}");
        keep(&report).unwrap();
        oci.runtime.close().await.unwrap();
    };
    on_own_host(test, conforms).await.unwrap();
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn libcontainer_does_what_every_runtime_must_do() {
        conforms("scratch::libcontainer_does_what_every_runtime_must_do", None).await;
    }

    #[tokio::test]
    async fn crun_does_what_every_runtime_must_do() {
        conforms("scratch::crun_does_what_every_runtime_must_do", Some("crun")).await;
    }

    #[tokio::test]
    async fn runc_does_what_every_runtime_must_do() {
        conforms("scratch::runc_does_what_every_runtime_must_do", Some("runc")).await;
    }
}
