//! What this service has in hand, written down before it takes effect, so that a later one finds everything that a
//! crashed one left. `<state>/mandelboxes/<id>.json`, one file each, replaced atomically; `<state>/lock` is held by
//! the one service that uses the directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use host_core::{ContainerName, InstanceName, MandelboxId, lifecycle::Stage};
use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::files::own_directory;

/// One mandelbox on paper. Nothing secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which.
    pub id: MandelboxId,
    /// Whose host service.
    pub instance: InstanceName,
    /// The name its container has, or would have had.
    pub container: ContainerName,
    /// The step about to be taken when this was written.
    pub stage: Stage,
    /// Host ports leased.
    pub ports: Vec<u16>,
    /// Console leased.
    pub tty: u16,
    /// GPU leased.
    pub gpu: Option<String>,
}

const LOCK: &str = "lock";
/// As root, never write through a link that somebody planted.
#[allow(clippy::cast_possible_wrap, reason = "a flag of open(2), which takes an int")]
const NOFOLLOW: i32 = OFlags::NOFOLLOW.bits() as i32;

/// The directory of records, locked.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    _lock: File,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Somebody else uses it.
    #[error("another host-service ({holder}) uses {}; stop it, or set paths.state to another directory", dir.display())]
    InUse {
        /// `pid N`, as the other wrote it.
        holder: String,
        /// `[paths] state`.
        dir: PathBuf,
    },
    /// The file system refused.
    #[error("the state directory {} cannot be used; run as root or set paths.state to a directory of yours", dir.display())]
    Io {
        /// `[paths] state`.
        dir: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl Records {
    /// Locks the state directory, made if it is not there.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn open(state: &Path) -> Result<Self, StateError> {
        let io = |source| StateError::Io { dir: state.to_owned(), source };
        own_directory(state, 0o755).map_err(io)?;
        let lock = lock(state).map_err(io)?;
        let Some(mut lock) = lock else {
            let holder = fs::read_to_string(state.join(LOCK)).unwrap_or_default();
            return Err(StateError::InUse { holder: holder.trim().to_owned(), dir: state.to_owned() });
        };
        lock.set_len(0).and_then(|()| writeln!(lock, "pid {}", std::process::id())).map_err(io)?;
        let dir = state.join("mandelboxes");
        own_directory(&dir, 0o700).map_err(io)?;
        Ok(Self { dir, _lock: lock })
    }

    /// Writes a record in place of an earlier one.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let fresh = self.dir.join(format!(".{}", record.id));
        let written = (|| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).custom_flags(NOFOLLOW);
            options.open(&fresh)?.write_all(&serde_json::to_vec(record)?)?;
            fs::rename(&fresh, self.path(&record.id))
        })();
        if written.is_err() {
            // The error that matters is the first one.
            let _ = fs::remove_file(&fresh);
        }
        written
    }

    /// Removes a record. What is absent is fine.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, id: &MandelboxId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Every record, and the files that are none: cut short by a crash, or of another version.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> io::Result<(Vec<Record>, Vec<PathBuf>)> {
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            match fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok()) {
                Some(record) if self.path(&record.id) == path => records.push(record),
                _ => unreadable.push(path),
            }
        }
        Ok((records, unreadable))
    }

    /// Removes the directories as far as nothing is in them, the lock last.
    pub fn close(&self) {
        // Whatever cannot be removed is not ours or is found by the next start.
        let _ = fs::remove_dir(&self.dir);
        if let Some(state) = self.dir.parent() {
            let _ = fs::remove_file(state.join(LOCK));
            let _ = fs::remove_dir(state);
        }
    }

    fn path(&self, id: &MandelboxId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// The lock file, held; `None` when another process holds it. An ending service removes the file it holds, so what
/// was locked counts only while it is still the file of that name.
fn lock(state: &Path) -> io::Result<Option<File>> {
    let path = state.join(LOCK);
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(NOFOLLOW)
            .open(&path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        if path.metadata().is_ok_and(|named| file.metadata().is_ok_and(|held| held.ino() == named.ino())) {
            return Ok(Some(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: id.parse().unwrap(),
            instance: "host".parse().unwrap(),
            container: format!("app-{id}").parse().unwrap(),
            stage: Stage::Create,
            ports: vec![1, 2, 3],
            tty: 10,
            gpu: None,
        }
    }

    #[test]
    fn what_is_written_is_found_by_the_next_service() {
        let scratch = tempfile::tempdir().unwrap();
        let state = scratch.path().join("state");
        let records = Records::open(&state).unwrap();
        records.write(&record("a")).unwrap();
        records.write(&Record { stage: Stage::Start, ..record("a") }).unwrap();
        drop(records);
        let records = Records::open(&state).unwrap();
        assert_eq!(records.all().unwrap().0, [Record { stage: Stage::Start, ..record("a") }]);
        records.remove(&"a".parse().unwrap()).unwrap();
        records.remove(&"a".parse().unwrap()).unwrap();
        records.close();
        assert!(!state.exists());
    }

    #[test]
    fn a_second_service_is_refused_and_told_who_has_it() {
        let scratch = tempfile::tempdir().unwrap();
        let _first = Records::open(scratch.path()).unwrap();
        let error = Records::open(scratch.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    }

    #[test]
    fn a_broken_record_hides_no_other_and_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let records = Records::open(scratch.path()).unwrap();
        records.write(&record("a")).unwrap();
        let broken = scratch.path().join("mandelboxes/b.json");
        fs::write(&broken, "{").unwrap();
        assert_eq!(records.all().unwrap(), (vec![record("a")], vec![broken]));
    }

    #[test]
    fn a_planted_link_is_not_written_through() {
        let scratch = tempfile::tempdir().unwrap();
        let canary = scratch.path().join("canary");
        fs::write(&canary, "untouched").unwrap();
        let state = scratch.path().join("state");
        fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink(&canary, state.join(LOCK)).unwrap();
        assert!(matches!(Records::open(&state), Err(StateError::Io { .. })));
        assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    }
}
