//! The file that keeps mandelboxes' rows over a restart.
//!
//! One thread writes it, always the latest rows, replacing the file as a whole (mode 0600). Calls don't wait for it:
//! a process that is killed may lose the last few milliseconds. A lock beside the file keeps a second process away.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use host_core::{
    ErrorKind, InstanceName, PluginError,
    pubsub::{MandelboxRow, Result},
};
use serde::{Deserialize, Serialize};

use crate::tables::Mandelboxes;

/// Raised when an older version could not read the file any more.
const FORMAT: u64 = 1;

/// A disk that hangs must not hold up the end of the service.
const PATIENCE_AT_END: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u64,
    /// By host.
    mandelboxes: BTreeMap<InstanceName, Vec<MandelboxRow>>,
}

/// The part that every format has.
#[derive(Deserialize)]
struct Header {
    format: u64,
}

/// The file, locked, with the thread that writes it.
#[derive(Debug)]
pub(crate) struct StateFile {
    slot: Arc<Slot>,
    _lock: File,
}

/// What is to be written next.
#[derive(Debug, Default)]
struct Slot {
    next: Mutex<Next>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Next {
    rows: Option<Mandelboxes>,
    /// There will be no more.
    closed: bool,
    /// The writer has written its last.
    ended: bool,
}

impl StateFile {
    /// Locks the file, reads what it keeps and starts the writer.
    ///
    /// # Errors
    /// `Conflict` when another process has it, `Invalid` when it cannot be understood, each with the remedy.
    pub(crate) fn open(path: &Path) -> Result<(Self, Mandelboxes)> {
        let lock = lock(path)?;
        let rows = read(path)?;
        let slot = Arc::new(Slot::default());
        let writer = Writer { path: path.to_owned(), slot: Arc::clone(&slot) };
        thread::Builder::new().name("pubsub-file".to_owned()).spawn(move || writer.run()).map_err(
            |error| {
                PluginError::new(ErrorKind::Exhausted, "no thread to write the state file").with_source(error)
            },
        )?;
        let file = Self { slot, _lock: lock };
        Ok((file, rows))
    }

    /// Has these rows written, unless later ones come first.
    pub(crate) fn keep(&self, rows: Mandelboxes) {
        self.slot.lock().rows = Some(rows);
        self.slot.changed.notify_all();
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        self.slot.lock().closed = true;
        self.slot.changed.notify_all();
        if !self.slot.has_ended_within(PATIENCE_AT_END) {
            tracing::error!("the pubsub's state file was not written in time");
        }
    }
}

impl Slot {
    /// No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for rows; `None` when there will be none.
    fn take(&self) -> Option<Mandelboxes> {
        let idle = |next: &mut Next| next.rows.is_none() && !next.closed;
        let mut next = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        next.rows.take()
    }

    fn has_ended_within(&self, patience: Duration) -> bool {
        let working = |next: &mut Next| !next.ended;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, working);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

struct Writer {
    path: PathBuf,
    slot: Arc<Slot>,
}

impl Writer {
    fn run(self) {
        while let Some(rows) = self.slot.take() {
            if let Err(error) = write(&self.path, &rows) {
                let path = self.path.display();
                tracing::error!(%path, %error, "the pubsub's state file cannot be written");
            }
        }
    }
}

/// Also when it panics.
impl Drop for Writer {
    fn drop(&mut self) {
        self.slot.lock().ended = true;
        self.slot.changed.notify_all();
    }
}

/// `x.json` + `.lock` = `x.json.lock`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock(path: &Path) -> Result<File> {
    let lock_path = beside(path, ".lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|error| unusable(&lock_path, "cannot be opened; does its directory exist?", error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "{} is in use by another host service; end it, or set pubsub.memory.file to another path",
                path.display()
            );
            Err(PluginError::new(ErrorKind::Conflict, message))
        }
        Err(TryLockError::Error(error)) => Err(unusable(&lock_path, "cannot be locked", error)),
    }
}

fn read(path: &Path) -> Result<Mandelboxes> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mandelboxes::new()),
        Err(error) => return Err(unusable(path, "cannot be read", error)),
    };
    let header: Header = serde_json::from_slice(&text).map_err(|error| corrupt(path, error))?;
    if header.format != FORMAT {
        let message = format!(
            "{} has format {}, and this version knows format {FORMAT}: run the version that wrote it, or move the \
             file away to begin with no mandelboxes",
            path.display(),
            header.format
        );
        return Err(PluginError::new(ErrorKind::Invalid, message));
    }
    let kept: Kept = serde_json::from_slice(&text).map_err(|error| corrupt(path, error))?;
    let mut all = Mandelboxes::new();
    for (host, rows) in kept.mandelboxes {
        for row in rows {
            let id = row.id.clone();
            if all.insert(id.clone(), (host.clone(), row)).is_some() {
                return Err(corrupt(path, format!("mandelbox {id} is in it twice")));
            }
        }
    }
    Ok(all)
}

fn write(path: &Path, rows: &Mandelboxes) -> io::Result<()> {
    let mut mandelboxes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (host, row) in rows.values() {
        mandelboxes.entry(host.clone()).or_default().push(row.clone());
    }
    let kept = Kept { format: FORMAT, mandelboxes };
    let mut text = serde_json::to_vec_pretty(&kept)?;
    text.push(b'\n');
    let new = beside(path, ".new");
    let written =
        create_private(&new).and_then(|mut file| file.write_all(&text)).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        fs::remove_file(&new).ok();
    }
    written
}

/// A new file of our own, never one that a link leads to.
fn create_private(path: &Path) -> io::Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        created => created,
    }
}

fn unusable(path: &Path, what: &str, error: io::Error) -> PluginError {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::Invalid,
    };
    PluginError::new(kind, format!("{} {what}", path.display())).with_source(error)
}

fn corrupt(path: &Path, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PluginError {
    let message = format!(
        "{} is not a state file of this service: repair it, or move it away to begin with no mandelboxes",
        path.display()
    );
    PluginError::new(ErrorKind::Invalid, message).with_source(why)
}
