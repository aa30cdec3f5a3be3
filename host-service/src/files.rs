//! The directory of one mandelbox on the host, shared with processes that must not be trusted.
//!
//! `<root>/<id>/resourceMappings` is writable from inside the mandelbox, so every name in it may be a symbolic link
//! planted there at any time. All access goes through a directory handle that cannot leave the directory, files are
//! created under a fresh name and renamed into place, and nothing is ever opened for writing by a name that the
//! inside could have made.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use cap_std::{
    ambient_authority,
    fs::{Dir, DirBuilder, DirBuilderExt, OpenOptions, OpenOptionsExt},
};
use futures::StreamExt;
use host_core::MandelboxId;
use inotify::{EventStream, Inotify, WatchMask};
use rustix::fs::{AtFlags, Gid, Uid};

/// Created by the application when it can take its client.
pub const READY_FOR_CLIENT: &str = "done_sleeping_until_X_clients";
/// Tells the application that all its files are there.
pub const READY: &str = ".ready";
/// Where the directory is seen inside.
pub const MAPPINGS_INSIDE: &str = "/fractal/resourceMappings";
/// Where the sockets are seen inside.
pub const SOCKETS_INSIDE: &str = "/tmp/sockets";

const MAPPINGS: &str = "resourceMappings";
const SOCKETS: &str = "sockets";

/// `[paths] root`, where mandelboxes have their directories.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    owner: Owner,
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
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(path: &Path, owner: Owner) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).create(path)?;
        Ok(Self { path: path.to_owned(), owner })
    }

    /// Where a mandelbox has its directory.
    pub fn of(&self, id: &MandelboxId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Mandelboxes that have a directory here.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn present(&self) -> io::Result<Vec<MandelboxId>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let id: Option<MandelboxId> = name.to_str().and_then(|name| name.parse().ok());
            ids.extend(id.filter(|id| self.of(id).join(MAPPINGS).is_dir()));
        }
        Ok(ids)
    }

    /// Makes a mandelbox's directories, which must not exist.
    ///
    /// # Errors
    /// `AlreadyExists` for what another mandelbox left, and whatever the file system says.
    pub fn create(&self, id: &MandelboxId) -> io::Result<Files> {
        let root = Dir::open_ambient_dir(&self.path, ambient_authority())?;
        let mut private = DirBuilder::new();
        private.mode(0o700);
        root.create_dir_with(id.as_str(), &private)?;
        let own = root.open_dir(id.as_str())?;
        for name in [MAPPINGS, SOCKETS] {
            own.create_dir_with(name, &private)?;
            let (uid, gid) = self.owner.raw();
            rustix::fs::chownat(&own, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let files = Files { dir: Arc::new(own.open_dir(MAPPINGS)?), path: self.of(id), owner: self.owner };
        Ok(files)
    }

    /// Removes a mandelbox's directories with whatever the inside put there. What is absent is fine.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn remove(&self, id: &MandelboxId) -> io::Result<()> {
        let root = Dir::open_ambient_dir(&self.path, ambient_authority())?;
        match root.remove_dir_all(id.as_str()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the directory itself when nothing is in it.
    pub fn close(&self) {
        // Not empty or a mount point: somebody else's business.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// One mandelbox's directory.
#[derive(Debug, Clone)]
pub struct Files {
    dir: Arc<Dir>,
    path: PathBuf,
    owner: Owner,
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
    ///
    /// # Errors
    /// The kernel has no watch left (`fs.inotify.max_user_watches`).
    pub fn watch(&self, name: &'static str) -> io::Result<Arrival> {
        let inotify = Inotify::init()?;
        inotify.watches().add(self.mappings(), WatchMask::CREATE | WatchMask::MOVED_TO)?;
        let events = inotify.into_event_stream(vec![0; 1024])?;
        Ok(Arrival { files: self.clone(), name, events })
    }
}

/// A file awaited in a mandelbox's directory.
pub struct Arrival {
    files: Files,
    name: &'static str,
    events: EventStream<Vec<u8>>,
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival").field("files", &self.files).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Arrival {
    /// Returns once the file is there: the watch began before, so it looks first and then waits.
    ///
    /// # Errors
    /// The watch broke.
    pub async fn wait(mut self) -> io::Result<()> {
        while self.files.dir.symlink_metadata(self.name).is_err() {
            match self.events.next().await {
                Some(event) => drop(event?),
                None => return Err(io::Error::other("the directory's watch ended")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, Root, MandelboxId) {
        let scratch = tempfile::tempdir().unwrap();
        let meta = scratch.path().metadata().unwrap();
        let owner = Owner { uid: meta.uid(), gid: meta.gid() };
        let root = Root::open(&scratch.path().join("root"), owner).unwrap();
        (scratch, root, "m1".parse().unwrap())
    }

    #[test]
    fn nothing_is_readable_or_writable_by_others() {
        let (_scratch, root, id) = root();
        let files = root.create(&id).unwrap();
        files.write("config.json", b"{}").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&root.of(&id)), 0o700);
        assert_eq!(mode(&files.mappings()), 0o700);
        assert_eq!(mode(&files.sockets()), 0o700);
        assert_eq!(mode(&files.mappings().join("config.json")), 0o600);
    }

    #[test]
    fn a_link_planted_inside_is_replaced_and_never_followed() {
        let (scratch, root, id) = root();
        let files = root.create(&id).unwrap();
        let canary = scratch.path().join("canary");
        std::fs::write(&canary, "untouched").unwrap();
        symlink(&canary, files.mappings().join("config.json")).unwrap();
        files.write("config.json", b"secret").unwrap();
        assert_eq!(std::fs::read(&canary).unwrap(), b"untouched");
        assert_eq!(std::fs::read(files.mappings().join("config.json")).unwrap(), b"secret");
    }

    #[test]
    fn removal_follows_no_link() {
        let (scratch, root, id) = root();
        let files = root.create(&id).unwrap();
        let outside = scratch.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, files.mappings().join("link")).unwrap();
        root.remove(&id).unwrap();
        root.remove(&id).unwrap();
        assert!(outside.join("kept").exists());
        assert!(!root.of(&id).exists());
    }

    #[test]
    fn a_directory_in_the_way_is_an_error_that_leaves_nothing() {
        let (_scratch, root, id) = root();
        let files = root.create(&id).unwrap();
        std::fs::create_dir(files.mappings().join("config.json")).unwrap();
        assert!(files.write("config.json", b"secret").is_err());
        assert_eq!(std::fs::read_dir(files.mappings()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_exists_is_not_taken_over() {
        let (_scratch, root, id) = root();
        root.create(&id).unwrap();
        assert_eq!(root.create(&id).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(root.present().unwrap(), [id]);
    }

    #[tokio::test]
    async fn readiness_is_seen_whether_it_comes_before_or_after_the_wait() {
        let (_scratch, root, id) = root();
        let files = root.create(&id).unwrap();
        let early = files.watch(READY_FOR_CLIENT).unwrap();
        let late = files.watch(READY_FOR_CLIENT).unwrap();
        files.write("something_else", b"").unwrap();
        let path = files.mappings().join(READY_FOR_CLIENT);
        let waiting = late.wait();
        let (arrived, ()) = tokio::join!(waiting, async { std::fs::write(path, "").unwrap() });
        arrived.unwrap();
        early.wait().await.unwrap();
    }
}
