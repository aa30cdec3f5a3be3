//! The directory of one mandelbox on the host, shared with processes that must not be trusted.
//!
//! `<root>/<id>/resourceMappings` is writable from inside the mandelbox, so every name in it may be a symbolic link
//! planted there at any time. All access goes through a directory handle that cannot leave the directory, files are
//! created under a fresh name and renamed into place, and nothing is ever opened for writing by a name that the
//! inside could have made.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt as _, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cap_fs_ext::DirExt;
use cap_std::{
    ambient_authority,
    fs::{Dir, DirBuilder, DirBuilderExt as _, OpenOptions, OpenOptionsExt},
};
use host_core::MandelboxId;
use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags, Uid, flock};
use tokio::time::{sleep, timeout};

#[cfg(test)]
mod tests;
mod watches;

use watches::{Watch, Watches};

/// Created by the application when it can take its client.
pub const READY_FOR_CLIENT: &str = "done_sleeping_until_X_clients";
/// Tells the application that all its files are there.
pub const READY: &str = ".ready";
/// Where the directory is seen inside.
pub const MAPPINGS_INSIDE: &str = "/fractal/resourceMappings";
/// Where the sockets are seen inside.
pub const SOCKETS_INSIDE: &str = "/tmp/sockets";

/// Says that a directory was made here and may be removed; the first thing in it and the last to go.
const MARK: &str = ".host-service";
const MAPPINGS: &str = "resourceMappings";
const SOCKETS: &str = "sockets";

/// How often a file is looked for where the kernel has no watch left.
const POLL: Duration = Duration::from_millis(25);
/// How often it is looked for all the same where there is one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// `[paths] root`, where mandelboxes have their directories, held by one service. Clones share the hold.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    owner: Owner,
    /// `None` where the kernel gave no inotify instance.
    watches: Option<Watches>,
    _lock: Arc<File>,
}

/// Who owns the files inside a mandelbox.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
}

impl Owner {
    fn raw(self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }
}

impl Root {
    /// Makes the directory if it is not there, and holds it.
    ///
    /// # Errors
    /// It cannot be made; others may write in it; another service holds it (`WouldBlock`).
    pub fn open(path: &Path, owner: Owner) -> io::Result<Self> {
        own_directory(path, 0o755)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let lock = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let watches = Watches::new().inspect_err(|error| {
            tracing::warn!(%error, "no inotify instance left (fs.inotify.max_user_instances); looking for files instead");
        });
        Ok(Self { path: path.to_owned(), owner, watches: watches.ok(), _lock: Arc::new(lock) })
    }

    /// Tells those who wait for files. To be run as long as the service; without it they look now and then.
    pub async fn tell_arrivals(&self) {
        let Some(watches) = &self.watches else { return };
        if let Err(error) = watches.read().await {
            tracing::warn!(%error, "files are no longer watched for; looking for them now and then");
        }
    }

    /// Where a mandelbox has its directory.
    pub fn of(&self, id: &MandelboxId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Mandelboxes that have a directory here. What somebody else put here is none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn present(&self) -> io::Result<Vec<MandelboxId>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let id: Option<MandelboxId> = name.to_str().and_then(|name| name.parse().ok());
            ids.extend(id.filter(|id| self.of(id).join(MARK).symlink_metadata().is_ok()));
        }
        Ok(ids)
    }

    /// Makes a mandelbox's directories, which must not exist. Leaves nothing when it fails.
    ///
    /// # Errors
    /// `AlreadyExists` for what is there and is not ours, and whatever the file system says.
    pub fn create(&self, id: &MandelboxId) -> io::Result<Files> {
        let root = Dir::open_ambient_dir(&self.path, ambient_authority())?;
        let mut private = DirBuilder::new();
        private.mode(0o700);
        root.create_dir_with(id.as_str(), &private)?;
        let made = root.open_dir(id.as_str()).and_then(|own| {
            own.write(MARK, b"")?;
            for name in [MAPPINGS, SOCKETS] {
                own.create_dir_with(name, &private)?;
                let (uid, gid) = self.owner.raw();
                rustix::fs::chownat(&own, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            own.open_dir(MAPPINGS)
        });
        match made {
            Ok(mappings) => Ok(Files {
                dir: Arc::new(mappings),
                path: self.of(id),
                owner: self.owner,
                watches: self.watches.clone(),
            }),
            Err(error) => {
                // The error that matters is the first one.
                let _ = self.remove(id);
                Err(error)
            }
        }
    }

    /// Removes a mandelbox's directories with whatever the inside put there. What is absent is fine.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn remove(&self, id: &MandelboxId) -> io::Result<()> {
        let root = Dir::open_ambient_dir(&self.path, ambient_authority())?;
        let own = match root.open_dir_nofollow(id.as_str()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            own => own?,
        };
        empty(&own)?;
        match own.remove_file(MARK) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        root.remove_dir(id.as_str())
    }

    /// Removes the directory that a service which died was about to mark, or had just taken the mark out of. The caller
    /// knows from its record that there may be one; anything in it, and it is somebody else's.
    ///
    /// # Errors
    /// It cannot be looked at or removed.
    pub fn remove_unmarked(&self, id: &MandelboxId) -> io::Result<()> {
        let path = self.of(id);
        let there = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            there => there?,
        };
        let may_be_ours =
            there.mode() & 0o7777 == 0o700 && there.uid() == rustix::process::geteuid().as_raw();
        if !there.is_dir() || !may_be_ours {
            return Ok(());
        }
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed,
        }
    }

    /// Removes the directory itself when nothing is in it.
    pub fn close(&self) {
        // Not empty or a mount point: somebody else's business.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// A directory for this service alone to write in, made with `mode` where it is not there yet.
///
/// # Errors
/// It cannot be made, or others may write in it: what they plant there would be followed as root.
pub(crate) fn own_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    let there = path.metadata()?;
    if there.mode() & 0o022 != 0 || there.uid() != rustix::process::geteuid().as_raw() {
        let rule = "others may write in it; `chown` it to this service's user and `chmod go-w` it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, rule));
    }
    Ok(())
}

/// Removes everything but the mark. The inside may have nested directories deeper than any stack or table of open
/// files: each is emptied by moving its directories up here, so two are open at any time.
fn empty(top: &Dir) -> io::Result<()> {
    loop {
        let mut done = true;
        for entry in top.entries()? {
            let entry = entry?;
            let name = entry.file_name();
            if name == MARK {
                continue;
            }
            done = false;
            if entry.file_type()?.is_dir() {
                flatten(&top.open_dir_nofollow(&name)?, top)?;
                top.remove_dir(&name)?;
            } else {
                top.remove_file(&name)?;
            }
        }
        if done {
            return Ok(());
        }
    }
}

fn flatten(dir: &Dir, top: &Dir) -> io::Result<()> {
    for entry in dir.entries()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dir.rename(entry.file_name(), top, format!(".{:032x}", rand::random::<u128>()))?;
        } else {
            dir.remove_file(entry.file_name())?;
        }
    }
    Ok(())
}

/// One mandelbox's directory.
#[derive(Debug, Clone)]
pub struct Files {
    dir: Arc<Dir>,
    path: PathBuf,
    owner: Owner,
    watches: Option<Watches>,
}

impl Files {
    /// The mappings' directory on the host.
    pub fn mappings(&self) -> PathBuf {
        self.path.join(MAPPINGS)
    }

    /// The sockets' directory on the host.
    pub fn sockets(&self) -> PathBuf {
        self.path.join(SOCKETS)
    }

    /// Writes a file that appears whole or not at all, readable by the mandelbox's user only.
    ///
    /// # Errors
    /// The file system's; a name that the inside occupies with a directory.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let fresh = format!(".{name}.{:016x}", rand::random::<u64>());
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let written = self.dir.open_with(&fresh, &options).and_then(|mut file| {
            file.write_all(content)?;
            let (uid, gid) = self.owner.raw();
            Ok(rustix::fs::fchown(&file, Some(uid), Some(gid))?)
        });
        let placed = written.and_then(|()| self.dir.rename(&fresh, &self.dir, name));
        if placed.is_err() {
            // The error that matters is the first one.
            let _ = self.dir.remove_file(&fresh);
        }
        placed
    }

    /// Begins to watch for a file before anybody can create it; see [`Arrival::wait`].
    pub fn watch(&self, name: &'static str) -> Arrival {
        let watch = self.watches.as_ref().and_then(|watches| {
            let told = |error: &io::Error| {
                tracing::warn!(%error, "no watch left (fs.inotify.max_user_watches); looking for the file instead");
            };
            watches.add(&self.mappings()).inspect_err(told).ok()
        });
        Arrival { files: self.clone(), name, watch }
    }
}

/// A file awaited in a mandelbox's directory.
#[derive(Debug)]
pub struct Arrival {
    files: Files,
    name: &'static str,
    watch: Option<Watch>,
}

impl Arrival {
    /// Returns once the file is there: the watch began before, so it looks first and then waits.
    pub async fn wait(self) {
        while self.files.dir.symlink_metadata(self.name).is_err() {
            match &self.watch {
                // Should the kernel or the reader lose an event, a look now and then finds the file all the same.
                Some(watch) => drop(timeout(LOOK_AGAIN, watch.told()).await),
                None => sleep(POLL).await,
            }
        }
    }
}
