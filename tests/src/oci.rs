//! Hosts without an engine, for services that run their containers themselves, each in a world of its own.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use host_tests::{oci::OciHost, service::Service};
//!
//! let host = OciHost::scratch().await?;
//! let service = Service::on(&host).start().await?;
//! service.spin_up("m1").await?;
//! service.end_cleanly().await?;
//! host.assert_untouched().await
//! # }
//! ```
//!
//! Services, their supervisors and the containers are all in the world (see [`crate::world`]), so they end with the test
//! whatever becomes of it. A service is dropped before its host, as it comes by itself when it is made later: the kernel
//! keeps a world for as long as a process of it has ended and was not waited for. What is seen of them is seen from outside, with the kernel's means: the plugin is not asked.

mod inside;

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use rustix::process::{Flock, FlockType, Pid, Signal, fcntl_getlk, kill_process};
use serde::Deserialize;

pub use self::inside::on_own_host;
use crate::{
    ground::Ground,
    image::archive,
    leftovers::{Leftovers, control_groups, entries, groups_at, interfaces, mounts, processes},
    wait::until,
    world::{Entrance, World, check_host},
};

const CLEAN_DEADLINE: Duration = Duration::from_secs(10);
const LABEL: &str = "host-service.instance";
/// The first process of the world.
const FIRST: &str = "bash";

/// A host without an engine.
#[derive(Debug)]
pub struct OciHost {
    entrance: Entrance,
    /// An OCI runtime instead of the embedded one.
    binary: Option<PathBuf>,
    /// What there was before any service.
    before: Vec<String>,
    world: World,
}

/// A container, as its directory describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Container {
    /// Its name.
    pub name: String,
    labels: BTreeMap<String, String>,
    cgroup: PathBuf,
    #[serde(skip)]
    directory: PathBuf,
}

impl OciHost {
    /// A fresh host for one test. Dropping it returns when nothing of it is left.
    ///
    /// # Errors
    /// What this machine lacks, with the remedy, or why the world does not come up.
    pub async fn scratch() -> Result<Self> {
        check_host(&["nft"])?;
        let world = World::scratch().await?;
        let mut host = Self { entrance: world.entrance()?, binary: None, before: Vec::new(), world };
        host.before = host.traces()?;
        Ok(host)
    }

    /// The same with an OCI runtime, found in `PATH`, instead of the embedded one.
    ///
    /// # Errors
    /// As [`OciHost::scratch`].
    pub async fn with_binary(binary: &str) -> Result<Self> {
        check_host(&[binary])?;
        let mut host = Self::scratch().await?;
        let path = host.world.path("runtime");
        let script = format!("#!/bin/sh\necho \"$*\" >>'{}'\nexec {binary} \"$@\"\n", host.calls().display());
        fs::write(&path, script)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        host.binary = Some(path);
        Ok(host)
    }

    /// What the OCI runtime was asked for so far, a line each.
    ///
    /// # Errors
    /// It was asked for nothing.
    pub fn asked(&self) -> Result<String> {
        fs::read_to_string(self.calls()).context("it was not called")
    }

    fn calls(&self) -> PathBuf {
        self.world.path("calls")
    }

    /// Where all of it is.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The containers of a service.
    ///
    /// # Errors
    /// One cannot be understood.
    pub fn containers_of(&self, instance: &str) -> Result<Vec<Container>> {
        let all = self.container_directories().into_iter().filter_map(|directory| {
            // One that is being made or removed has none.
            let text = fs::read(directory.join("container.json")).ok()?;
            let container = serde_json::from_slice(&text).map(|seen| Container { directory, ..seen });
            Some(container.context("a container's description"))
        });
        let mut all: Vec<_> = all.collect::<Result<_>>()?;
        all.retain(|container| container.labels.get(LABEL).is_some_and(|label| label == instance));
        Ok(all)
    }

    /// Of every service, in its root and in its state.
    fn container_directories(&self) -> Vec<PathBuf> {
        let roots = entries(self.seen(&self.roots()));
        let states = entries(self.world.directory()).into_iter().map(|path| path.join("state/oci"));
        roots.into_iter().chain(states).flat_map(|root| entries(root.join("containers"))).collect()
    }

    /// Kills the supervisor of a container, as nothing in the product does.
    ///
    /// # Errors
    /// There is none.
    pub fn kill_supervisor(&self, container: &Container) -> Result<()> {
        let lock = File::open(container.directory.join("lock"))?;
        // The kernel knows who holds it, by the number that this process knows it by.
        let held = fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock))?;
        let supervisor = held.and_then(|held| held.pid).context("no supervisor")?;
        Ok(kill_process(supervisor, Signal::KILL)?)
    }

    /// What changed on the host since it was made, images aside.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn leftovers(&self) -> Result<Leftovers> {
        let mut left = self.traces()?;
        left.retain(|trace| !self.before.contains(trace));
        Ok(Leftovers(left))
    }

    /// Succeeds once the host is as it was before any service: no container, process, mount, interface, route, packet
    /// filter rule or control group more.
    ///
    /// # Errors
    /// When something is still there after ten seconds; it is named.
    pub async fn assert_untouched(&self) -> Result<()> {
        let clean = async || self.leftovers().is_ok_and(|left| left.is_empty()).then_some(());
        match until("clean host", CLEAN_DEADLINE, clean).await {
            Ok(()) => Ok(()),
            Err(_) => bail!("left on the host: {}", self.leftovers()?),
        }
    }

    fn traces(&self) -> Result<Vec<String>> {
        let first = self.world.first();
        let mut found = self.files();
        found.extend(processes(first, &[FIRST]));
        found.extend(mounts(first));
        found.extend(interfaces(first));
        found.extend(control_groups(&self.world.name()));
        // This thread is in the host's network.
        for list in ["nft list ruleset", "ip route show table all", "ip rule"] {
            found.extend(lines(list)?);
        }
        let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
        found.push(format!("forwarding {}", forwarding.trim_end()));
        Ok(found)
    }

    /// What containers have on disk, of every service.
    fn files(&self) -> Vec<String> {
        let roots = entries(self.seen(&self.roots()));
        let kept = roots.iter().flat_map(|root| ["network", "trash"].map(|name| root.join(name)));
        let kept = kept.flat_map(entries).chain(self.container_directories());
        kept.map(|path| format!("file {}", path.display())).collect()
    }

    fn roots(&self) -> PathBuf {
        self.world.disk().join("oci")
    }

    /// `runtime.oci.root` of a service, as the service sees it.
    #[must_use]
    pub fn root(&self, instance: &str) -> PathBuf {
        self.roots().join(instance)
    }

    fn seen(&self, path: &Path) -> PathBuf {
        self.world.seen_outside(path)
    }
}

impl Container {
    /// The processes in its control group.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let group = self.cgroup.strip_prefix("/").unwrap_or(&self.cgroup).display().to_string();
        let lists = groups_at(&group).into_iter().map(|path| fs::read_to_string(path.join("cgroup.procs")));
        let mut all: Vec<u32> = lists
            .flat_map(|list| {
                list.unwrap_or_default().lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Kills the first of its processes, as an administrator may.
    ///
    /// # Errors
    /// There is none.
    pub fn kill(&self) -> Result<()> {
        let first = self.processes().into_iter().next().context("no process")?;
        Ok(kill_process(Pid::from_raw(i32::try_from(first)?).context("a process id")?, Signal::KILL)?)
    }
}

fn lines(command: &str) -> Result<Vec<String>> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap_or_default()).args(words).output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| format!("{command}: {}", line.trim()))
        .collect())
}

#[async_trait(?Send)]
impl Ground for OciHost {
    fn settings(&self, instance: &str) -> String {
        let group = format!("/{}/{instance}", self.world.name());
        let mut settings = format!(
            "[runtime]\nplugin = \"oci\"\n[runtime.oci]\nroot = \"{}\"\ncgroup_parent = \"{group}\"\n",
            self.root(instance).display()
        );
        if let Some(binary) = &self.binary {
            settings.push_str(&format!("binary = \"{}\"\n", binary.display()));
        }
        settings
    }

    fn directory(&self) -> PathBuf {
        self.world.directory().to_owned()
    }

    fn entrance(&self) -> Option<Entrance> {
        Some(self.entrance.clone())
    }

    fn archive(&self) -> Result<Option<PathBuf>> {
        archive().map(Some)
    }

    async fn containers(&self, instance: &str) -> Result<Vec<String>> {
        Ok(self.containers_of(instance)?.into_iter().map(|container| container.name).collect())
    }
}
