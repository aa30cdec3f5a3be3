//! What every `Runtime` must do, without a daemon.
#![cfg(test)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use async_trait::async_trait;
use conformance::runtime::{Fixture, run};
use host_core::{ImageRef, runtime::Runtime};
use runtime_oci::{Config, OciRuntime, Program};
use tempfile::TempDir;

struct Oci {
    runtime: OciRuntime,
    _root: TempDir,
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
        Some(archive())
    }
}

fn archive() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/test-mandelbox.tar");
    std::env::var_os("HOST_TESTS_IMAGE").map_or(built, PathBuf::from)
}

fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

async fn conforms(binary: Option<&str>) {
    own_network();
    let root = tempfile::tempdir().unwrap();
    let config =
        Config { root: root.path().join("oci"), binary: binary.map(Into::into), ..Config::default() };
    let program = Program::at(env!("CARGO_BIN_EXE_oci-supervisor"));
    let runtime = OciRuntime::open(config, program).await.unwrap();
    runtime.load_image(&archive()).await.unwrap();
    let oci = Oci { runtime, _root: root };
    let report = run(binary.unwrap_or("libcontainer"), &oci).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
    oci.runtime.close().await.unwrap();
}

mod scratch {
    use super::*;

    #[tokio::test]
    async fn libcontainer_does_what_every_runtime_must_do() {
        conforms(None).await;
    }

    #[tokio::test]
    async fn crun_does_what_every_runtime_must_do() {
        conforms(Some("crun")).await;
    }
}
