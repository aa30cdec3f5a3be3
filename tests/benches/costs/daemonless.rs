//! The daemonless runtime: against the same service on Docker, and against what the kernel and libcontainer take alone.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use host_tests::{
    engine::Engine,
    image::archive,
    service::{Builder, Service},
};
use tempfile::TempDir;

use crate::{
    alone::{Bundle, Network},
    client::{Admin, spin_up},
    figures::{FEW, Samples, compare, goal, head, row, say, title},
    memory, rounds, settle,
};

const AT_ONCE: usize = 50;
const ALONE_MS: f64 = 40.0;
const OVER_FLOOR_MS: f64 = 10.0;
const TIMES_FASTER: f64 = 6.0;
const TIMES_MORE: f64 = 5.0;
const REMOVAL_MS: f64 = 20.0;
const SUPERVISOR_MB: f64 = 3.0;

/// A service without an engine, with all that it has on disk.
struct Oci {
    service: Service,
    admin: Admin,
    _root: TempDir,
}

/// What was measured, one mandelbox at a time.
#[derive(Default)]
struct Alone {
    docker: Samples,
    oci: Samples,
    container: Samples,
    network: Samples,
    publish: Samples,
    removal: Samples,
    docker_removal: Samples,
}

pub(crate) async fn measure(engine: &Engine) -> Result<()> {
    let slots = format!("gpu.sim.count={AT_ONCE}");
    let docker = Service::on(engine).set(&slots).start().await?;
    let docker_admin = Admin::of(&docker)?;
    docker.spin_up("warm").await?;
    let bundle = recorded().await?;
    let network = Network::open().await?;
    let oci = Oci::start(&slots).await?;
    oci.service.spin_up("warm").await?;

    let mut alone = Alone::default();
    for round in 0..rounds()? {
        let id = format!("alone-{round}");
        settle().await?;
        alone.docker.add(spin_up(&docker, &id).await?);
        settle().await?;
        alone.docker_removal.add(docker_admin.stop(&id, Some(Duration::ZERO)).await?);
        settle().await?;
        alone.oci.add(spin_up(&oci.service, &id).await?);
        settle().await?;
        alone.removal.add(oci.admin.stop(&id, Some(Duration::ZERO)).await?);
        settle().await?;
        alone.container.add(bundle.run()?);
        settle().await?;
        let (made, published) = network.make_and_publish().await?;
        alone.network.add(made);
        alone.publish.add(published);
    }
    alone.report()?;
    network.close().await?;
    crowds(&docker, &docker_admin, &oci).await?;
    docker.end_cleanly().await?;
    oci.service.end_cleanly().await
}

impl Oci {
    async fn start(slots: &str) -> Result<Self> {
        let root = tempfile::Builder::new().prefix("bench").tempdir()?;
        let service = loaded(Service::with(&settings(root.path())).set(slots))?.start().await?;
        let admin = Admin::of(&service)?;
        Ok(Self { service, admin, _root: root })
    }

    /// The processes that stand beside its containers.
    fn supervisors(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for container in fs::read_dir(self.service.state().join("oci/containers"))? {
            found.push(fs::read_to_string(container?.path().join("lock"))?.parse()?);
        }
        Ok(found)
    }
}

fn settings(root: &Path) -> String {
    let group = root.file_name().unwrap_or_default().display();
    format!(
        "[runtime]\nplugin = \"oci\"\n[runtime.oci]\nroot = \"{}/oci\"\ncgroup_parent = \"/{group}\"\n",
        root.display()
    )
}

fn loaded(builder: Builder) -> Result<Builder> {
    let output = builder.cli(&["image", "load", &archive()?.display().to_string()])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(builder)
}

/// What the service asks libcontainer for, caught by a program in libcontainer's place.
async fn recorded() -> Result<Bundle> {
    let root = tempfile::Builder::new().prefix("bench").tempdir()?;
    let (program, caught) = (root.path().join("record"), root.path().join("config.json"));
    fs::write(&program, format!("#!/bin/sh\n{}", RECORD.replace("CAUGHT", &caught.display().to_string())))?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let config = format!("{}binary = \"{}\"\n", settings(root.path()), program.display());
    let service = loaded(Service::with(&config))?.start().await?;
    // It never runs.
    let answer = service.spin_up("model").await;
    ensure!(answer.is_err(), "a container without a runtime: {answer:?}");
    service.end_cleanly().await?;
    Bundle::new(&caught, root)
}

const RECORD: &str = r#"
while [ $# -gt 0 ]; do
    case $1 in
        --version) echo record; exit 0 ;;
        --bundle) cp "$2/config.json" CAUGHT ;;
    esac
    shift
done
exit 1
"#;

impl Alone {
    fn report(&self) -> Result<()> {
        title("Without a daemon: spin-up, one at a time, three ports")?;
        compare(("service on oci, from request to answer", &self.oci), ("service on docker", &self.docker))?;
        let faster = self.docker.p50() / self.oci.p50();
        goal(&format!("{TIMES_FASTER} times faster than on Docker ({faster:.1})"), faster >= TIMES_FASTER)?;
        goal(&format!("at most {ALONE_MS} ms at p50"), self.oci.p50() <= ALONE_MS)?;
        title("  its floor")?;
        head(FEW)?;
        row("libcontainer alone: create, start, ready", &self.container, FEW)?;
        row("network alone: namespace, veth pair", &self.network, FEW)?;
        row("network alone: three ports published", &self.publish, FEW)?;
        let floor = self.container.p50() + self.network.p50() + self.publish.p50();
        say(format_args!("sum of the medians {floor:.2} ms, the service {:+.2} ms", self.oci.p50() - floor))?;
        goal(&format!("at most {OVER_FLOOR_MS} ms over it"), self.oci.p50() <= floor + OVER_FLOOR_MS)?;
        title("Without a daemon: removal, until all leases are free")?;
        compare(("service on oci", &self.removal), ("service on docker", &self.docker_removal))?;
        goal(&format!("below {REMOVAL_MS} ms"), self.removal.p50() < REMOVAL_MS)
    }
}

async fn crowds(docker: &Service, docker_admin: &Admin, oci: &Oci) -> Result<()> {
    let [mut on_docker, mut on_oci] = <[Samples; 2]>::default();
    let mut supervisors = Vec::new();
    for round in 0..(rounds()? / 10).max(1) {
        on_oci.add(crowd(&oci.service, round).await?);
        for pid in oci.supervisors()? {
            supervisors.push(memory::read(pid)?.pss());
        }
        end(&oci.admin, round).await?;
        on_docker.add(crowd(docker, round).await?);
        end(docker_admin, round).await?;
    }
    title(&format!("Without a daemon: {AT_ONCE} at once, until the last has its answer"))?;
    compare(("service on oci", &on_oci), ("service on docker", &on_docker))?;
    let more = on_docker.p50() / on_oci.p50();
    goal(&format!("{TIMES_MORE} times the throughput of Docker ({more:.1})"), more >= TIMES_MORE)?;
    let largest = supervisors.into_iter().fold(0.0, f64::max);
    goal(&format!("a supervisor below {SUPERVISOR_MB} MB PSS ({largest:.2})"), largest < SUPERVISOR_MB)
}

fn ids(round: usize) -> Vec<String> {
    (0..AT_ONCE).map(|n| format!("crowd-{round}-{n}")).collect()
}

async fn crowd(service: &Service, round: usize) -> Result<Duration> {
    let begun = Instant::now();
    try_join_all(ids(round).iter().map(|id| service.spin_up(id))).await.context("a crowd")?;
    Ok(begun.elapsed())
}

async fn end(admin: &Admin, round: usize) -> Result<()> {
    try_join_all(ids(round).iter().map(|id| admin.stop(id, Some(Duration::ZERO)))).await.map(drop)
}
