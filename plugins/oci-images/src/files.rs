//! The store's directory: its parts, its lock, and how things in it come and go whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::{Errno, retry_on_intr},
};

pub(crate) const LAYERS: &str = "l";

/// Where everything is; made by [`Places::make`].
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) root: PathBuf,
    pub(crate) index: PathBuf,
    /// Configurations, named by the hexadecimal part of their digests.
    pub(crate) configs: PathBuf,
    /// Unpacked layers.
    pub(crate) layers: PathBuf,
    /// A directory per operation under way, locked as long as its owner lives.
    pub(crate) tmp: PathBuf,
    /// What is about to be deleted.
    pub(crate) trash: PathBuf,
    /// A symbolic link per user, to the id of the image it uses.
    pub(crate) users: PathBuf,
    lock: PathBuf,
}

impl Places {
    /// Makes what is missing, for the owner alone.
    pub(crate) fn make(root: PathBuf) -> io::Result<Self> {
        let part = |name: &str| root.join(name);
        let places = Self {
            index: part("index.json"),
            configs: part("configs"),
            layers: part(LAYERS),
            tmp: part("tmp"),
            trash: part("trash"),
            users: part("users"),
            lock: part("lock"),
            root,
        };
        let Self { root, configs, layers, tmp, trash, users, .. } = &places;
        for directory in [root, configs, layers, tmp, trash, users] {
            DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
        }
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(places)
    }

    /// Waits for whoever changes the store now. Nobody holds it longer than a few small files take.
    pub(crate) fn lock(&self) -> io::Result<Lock> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.lock)?;
        retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(Lock { _file: file })
    }
}

/// The right to change the store; every process and thread has its own.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// Whether its owner lives, for a directory that its owner locked by [`claim`].
pub(crate) fn is_claimed(directory: &Path) -> io::Result<bool> {
    match flock(&File::open(directory)?, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(true),
        tried => Ok(tried.map(|()| false)?),
    }
}

/// Locks a new directory until the file is closed, which the kernel does for a process that dies.
pub(crate) fn claim(directory: &Path) -> io::Result<File> {
    DirBuilder::new().mode(0o700).create(directory)?;
    let file = File::open(directory)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// A name that nothing else has had.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}-{:x}-{}", process::id(), since.as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Replaces a file's content: whoever reads it sees the old or the new, also after a crash of the host.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    };
    let written = write();
    if written.is_err() {
        // A full disk: what is half written takes room that others need.
        fs::remove_file(&new).or_else(absent)?;
    }
    written
}

/// Names in a directory.
pub(crate) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(directory)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// That something is not there is what a removal wants.
pub(crate) fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Removes a file or a tree, links not followed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).or_else(absent),
        Ok(_) => fs::remove_file(path).or_else(absent),
        Err(error) => absent(error),
    }
}
