//! Where things lie on disk.
//!
//! ```text
//! <root>/                     0700; on disk
//!   lock                      held by the service
//!   images/                   the image store
//!   network/                  what the networks must not forget
//!   containers/<id>/
//!     log, log.1              its output
//!     rw/{upper,work}         what it changed of its image
//!   trash/                    removed, and not deleted yet
//!
//! <state>/                    0700; in memory, if it can be: making files is what costs most on a disk
//!   containers/<id>/
//!     container.json          what it is; no secrets
//!     status.json             how it is, as its supervisor last saw it
//!     lock                    held by its supervisor as long as that lives
//!     control.sock            where its supervisor listens
//!     supervisor.log          what the supervisor said of itself: nothing, usually
//!     etc/                    hosts, hostname, resolv.conf
//!     bundle/, rootfs/        mount points, in use in the supervisor's mount namespace only
//! ```
//!
//! Both may be the same directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use host_core::runtime::PortMapping;
use rustix::{
    fs::FlockOperation,
    process::{Flock, FlockType, Pid, fcntl_getlk},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use tokio::process::Command;

use crate::protocol::Status;

const CONTAINERS: &str = "containers";

/// Within a container's directories.
pub(crate) mod name {
    pub(crate) const CONTAINER: &str = "container.json";
    pub(crate) const STATUS: &str = "status.json";
    pub(crate) const LOCK: &str = "lock";
    pub(crate) const SOCKET: &str = "control.sock";
    pub(crate) const LOG: &str = "log";
    pub(crate) const OLDER_LOG: &str = "log.1";
    pub(crate) const OWN_LOG: &str = "supervisor.log";
    pub(crate) const ETC: &str = "etc";
    pub(crate) const UPPER: &str = "rw/upper";
    pub(crate) const WORK: &str = "rw/work";
    pub(crate) const BUNDLE: &str = "bundle";
    pub(crate) const ROOTFS: &str = "rootfs";
}

/// The runtime's root, and its state.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    disk: PathBuf,
    state: PathBuf,
}

impl Root {
    /// Where everything is, or is to be.
    pub(crate) fn at(disk: &Path, state: &Path) -> io::Result<Self> {
        // A path through links would name two roots.
        Ok(Self { disk: real(disk)?, state: std::path::absolute(state)? })
    }

    /// Makes what is missing on disk; the state comes and goes with the service.
    pub(crate) fn make(&self) -> io::Result<()> {
        [self.disk.join(CONTAINERS), self.trash(), self.network()].iter().try_for_each(|path| make_all(path))
    }

    /// Makes what is missing of the state.
    pub(crate) fn make_state(&self) -> io::Result<()> {
        make_all(&self.state.join(CONTAINERS))
    }

    /// Removes the state, if no container is in it.
    pub(crate) fn leave_state(&self) {
        if self.state == self.disk {
            return;
        }
        // Whoever removes what is in use leaves it there.
        let _ = fs::remove_dir(self.state.join(CONTAINERS)).and_then(|()| fs::remove_dir(&self.state));
    }

    pub(crate) fn path(&self) -> &Path {
        &self.disk
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.disk.join(name::LOCK)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.disk.join("images")
    }

    pub(crate) fn network(&self) -> PathBuf {
        self.disk.join("network")
    }

    /// A container's directory.
    pub(crate) fn container(&self, id: &str) -> PathBuf {
        self.state.join(CONTAINERS).join(id)
    }

    /// What a container has on disk.
    pub(crate) fn disk(&self, id: &str) -> PathBuf {
        self.disk.join(CONTAINERS).join(id)
    }

    /// Every container that there is anything of.
    pub(crate) fn ids(&self) -> io::Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for directory in [&self.disk, &self.state] {
            match fs::read_dir(directory.join(CONTAINERS)) {
                // There is no state, so nothing is in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                entries => {
                    for entry in entries? {
                        ids.extend(entry?.file_name().into_string());
                    }
                }
            }
        }
        Ok(ids)
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.disk.join("trash")
    }
}

/// What a container is, for those who come later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Its address, with a network of its own.
    pub(crate) address: Option<std::net::Ipv4Addr>,
    pub(crate) ports: Vec<PortMapping>,
    /// Where its control group is, in every hierarchy.
    pub(crate) cgroup: PathBuf,
    /// It has a terminal.
    pub(crate) terminal: bool,
    /// What its image wants to be asked to end with, if not `SIGTERM`.
    pub(crate) stop_signal: Option<i32>,
}

/// A path without links, as far as it exists.
fn real(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let existing = path.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    let Some((ancestor, mut real)) = existing else { return Ok(path) };
    real.extend(path.strip_prefix(ancestor).unwrap_or(&path));
    Ok(real)
}

/// A directory for root alone, with its parents.
pub(crate) fn make_all(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A whole file or none, for root alone.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = create(&new)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    fs::rename(new, path)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// An empty file for root alone.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Deletes a tree that a container has made, which may be deeper than this process's stack or its descriptors reach.
pub(crate) async fn delete(tree: &Path) -> io::Result<()> {
    let output = Command::new("rm").arg("-rf").arg("--").arg(tree).kill_on_drop(true).output().await?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// As its supervisor last saw it.
pub(crate) fn read_status(directory: &Path) -> Status {
    read_json(&directory.join(name::STATUS)).unwrap_or_default()
}

/// Takes the lock in this process's own name. What it forks has no part in it: a container that waits for its start is
/// a copy of its supervisor, with all its descriptors, and may outlive it.
pub(crate) fn hold(lock: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_lock(lock, FlockOperation::NonBlockingLockExclusive)?)
}

/// The supervisor of the container in `directory`, as long as it lives.
pub(crate) fn supervisor(directory: &Path) -> io::Result<Option<Pid>> {
    match File::open(directory.join(name::LOCK)) {
        Ok(lock) => Ok(fcntl_getlk(lock, &Flock::from(FlockType::WriteLock))?.and_then(|held| held.pid)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the supervisor of the container in `directory` lives.
pub(crate) fn is_supervised(directory: &Path) -> io::Result<bool> {
    Ok(supervisor(directory)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_path_whether_it_exists_or_not() {
        let place = tempfile::tempdir().unwrap();
        let (there, link) = (place.path().join("there"), place.path().join("link"));
        fs::create_dir(&there).unwrap();
        std::os::unix::fs::symlink(&there, &link).unwrap();
        for part in ["", "a", "a/b"] {
            let before = real(&link.join(part)).unwrap();
            assert_eq!(before.as_os_str(), real(&there).unwrap().join(part).components().as_path());
            make_all(&before).unwrap();
            assert_eq!(real(&link.join(part)).unwrap(), before);
        }
    }
}
