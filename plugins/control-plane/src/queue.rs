//! What could not be told while the database was away: mandelboxes' statuses and removals, on disk. What is about one
//! mandelbox is delivered in order, and waits for nothing that is about another.
//!
//! The file has one JSON object a line, and is there only while something is in it. Each line is synced before its
//! write counts as accepted. A line may be delivered twice, after a crash in the middle of a delivery: a status never
//! moves backwards, and each line says which allocation it is about.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use host_core::{ErrorKind, InstanceName, MandelboxId, PluginError, pubsub::MandelboxStatus};
use serde::{Deserialize, Serialize};

use crate::{is_away, outbox::Delivery, rows::Raw};

/// After so many failures in a row that say that nobody is there, the others are not tried either.
const ABSENT: u32 = 3;

/// One write that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Whose row.
    pub instance: InstanceName,
    /// Which.
    pub mandelbox: MandelboxId,
    /// Which allocation, where that is known: the id may have been given away anew when this is delivered.
    pub created_ms: Option<i64>,
    /// What happens to it.
    pub write: Write,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// It moves forward, or stays where it is when it is further.
    Status(MandelboxStatus),
    /// It goes.
    Remove,
}

impl Entry {
    /// What delivering it does: a status moves forward, and nothing happens to another allocation.
    fn foresee(&self, rows: &mut Vec<Raw>) {
        let is_meant = |row: &Raw| {
            row.id == self.mandelbox.as_str()
                && self.created_ms.is_none_or(|created| created == row.created_ms)
        };
        match self.write {
            Write::Remove => rows.retain(|row| !is_meant(row)),
            Write::Status(status) => {
                for row in rows.iter_mut().filter(|row| is_meant(row)) {
                    if MandelboxStatus::parse(&row.status).is_some_and(|earlier| earlier < status) {
                        status.as_str().clone_into(&mut row.status);
                    }
                }
            }
        }
    }
}

/// A write that does not go through.
#[derive(Debug)]
pub(crate) struct Stuck {
    pub(crate) entry: Entry,
    pub(crate) error: PluginError,
}

/// The queue. Cloning it gives another handle of the same.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    path: Arc<PathBuf>,
    waiting: Arc<Mutex<Waiting>>,
    /// Whoever holds this delivers.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    file: Option<File>,
}

impl Queue {
    /// With what an earlier run could not deliver. Blocks.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn open(directory: &Path, name: &str) -> Result<Self, PluginError> {
        let path = directory.join(name);
        let unreadable = |error: io::Error| {
            let message = format!("{}, which holds undelivered statuses, cannot be read", path.display());
            PluginError::new(ErrorKind::Invalid, message).with_source(error)
        };
        let (entries, broken) = match fs::read(&path) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (VecDeque::new(), 0),
            Err(error) => return Err(unreadable(error)),
        };
        if broken > 0 {
            tracing::error!(path = %path.display(), broken, "undelivered statuses cannot be understood; left out");
            replace(&path, &entries).map_err(unreadable)?;
        }
        let waiting = Waiting { entries, file: None };
        Ok(Self { path: Arc::new(path), waiting: Arc::new(Mutex::new(waiting)), turn: Arc::default() })
    }

    /// One that accepts nothing.
    pub(crate) fn nowhere(name: &str) -> Self {
        // No file can be made below one that is no directory.
        let path = Path::new("/dev/null").join(name);
        Self { path: Arc::new(path), waiting: Arc::default(), turn: Arc::default() }
    }

    /// Each change under this lock is whole, also when it panics.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Accepts a write: when this returns, it is on disk.
    pub(crate) async fn push(&self, entry: Entry) -> io::Result<()> {
        self.blocking(move |path, waiting| {
            let file = match &mut waiting.file {
                Some(file) => file,
                none => none.insert(open(path)?),
            };
            append(file, &entry)?;
            waiting.entries.push_back(entry);
            Ok(())
        })
        .await
    }

    /// Forgets what is about this host: its rows are gone.
    pub(crate) async fn forget(&self, instance: &InstanceName) -> io::Result<()> {
        let instance = instance.clone();
        self.blocking(move |path, waiting| {
            waiting.entries.retain(|entry| entry.instance != instance);
            close_if_empty(path, waiting)
        })
        .await
    }

    /// Whether something about this mandelbox waits, which nothing may overtake.
    pub(crate) fn holds(&self, mandelbox: &MandelboxId) -> bool {
        self.lock().entries.iter().any(|entry| entry.mandelbox == *mandelbox)
    }

    /// Tells the database everything, oldest first. What fails stays, and with it what came later about the same
    /// mandelbox; it is returned.
    pub(crate) async fn deliver(&self, to: &dyn Delivery) -> Vec<Stuck> {
        let _turn = self.turn.lock().await;
        let (mut delivered, mut absent) = (0_usize, 0);
        let mut stuck = Vec::new();
        while absent < ABSENT
            && let Some(entry) = self.first_beside(&stuck)
        {
            match to.deliver(&entry).await {
                Ok(()) => {
                    self.take(entry).await;
                    (delivered, absent) = (delivered + 1, 0);
                }
                Err(error) => {
                    absent = if is_absence(&error) { absent + 1 } else { 0 };
                    stuck.push(Stuck { entry, error });
                }
            }
        }
        if delivered > 0 {
            tracing::info!(delivered, "queued statuses are delivered");
        }
        stuck
    }

    fn first_beside(&self, stuck: &[Stuck]) -> Option<Entry> {
        let waiting = self.lock();
        let is_beside = |entry: &&Entry| stuck.iter().all(|stuck| stuck.entry.mandelbox != entry.mandelbox);
        waiting.entries.iter().find(is_beside).cloned()
    }

    /// These rows as they will be when everything is delivered.
    pub(crate) fn foresee(&self, instance: &InstanceName, rows: &mut Vec<Raw>) {
        for entry in self.lock().entries.iter().filter(|entry| entry.instance == *instance) {
            entry.foresee(rows);
        }
    }

    /// An entry is done with.
    pub(crate) async fn take(&self, entry: Entry) {
        let done = self
            .blocking(move |path, waiting| {
                // Unless it was forgotten meanwhile.
                if let Some(place) = waiting.entries.iter().position(|waits| *waits == entry) {
                    waiting.entries.remove(place);
                }
                close_if_empty(path, waiting)
            })
            .await;
        if let Err(error) = done {
            tracing::warn!(%error, "the file of delivered statuses cannot be removed");
        }
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&Path, &mut Waiting) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let queue = self.clone();
        let worked = tokio::task::spawn_blocking(move || work(&queue.path, &mut queue.lock())).await;
        worked.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// It is about no single write: nobody is reached, has room, or believes this host.
fn is_absence(error: &PluginError) -> bool {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Exhausted => true,
        ErrorKind::Denied => is_away(error),
        _ => false,
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A line that is not whole is taken back, so that the next one stands alone.
fn append(file: &mut File, entry: &Entry) -> io::Result<()> {
    let before = file.metadata()?.len();
    let mut line = serde_json::to_vec(entry)?;
    line.push(b'\n');
    let written = file.write_all(&line).and_then(|()| file.sync_data());
    if written.is_err() {
        file.set_len(before)?;
    }
    written
}

fn close_if_empty(path: &Path, waiting: &mut Waiting) -> io::Result<()> {
    if !waiting.entries.is_empty() {
        return Ok(());
    }
    waiting.file = None;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The entries, and how many lines are none. A last line without an end was never accepted and does not count.
fn parse(text: &[u8]) -> (VecDeque<Entry>, usize) {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let torn = usize::from(whole < text.len());
    let mut entries = VecDeque::new();
    let mut broken = torn;
    for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(entry) => entries.push_back(entry),
            Err(_) => broken += 1,
        }
    }
    (entries, broken)
}

fn replace(path: &Path, entries: &VecDeque<Entry>) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    for entry in entries {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line)?;
    }
    file.sync_all()?;
    fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "test.queue";

    fn entry(mandelbox: &str, write: Write) -> Entry {
        Entry {
            instance: "host".parse().unwrap(),
            mandelbox: mandelbox.parse().unwrap(),
            created_ms: Some(1),
            write,
        }
    }

    #[tokio::test]
    async fn what_was_accepted_is_there_after_a_restart_in_order() {
        let scratch = tempfile::tempdir().unwrap();
        let queue = Queue::open(scratch.path(), FILE).unwrap();
        let all = [
            entry("a", Write::Status(MandelboxStatus::Dying)),
            entry("b", Write::Remove),
            entry("a", Write::Remove),
        ];
        for entry in &all {
            queue.push(entry.clone()).await.unwrap();
        }
        drop(queue);
        let queue = Queue::open(scratch.path(), FILE).unwrap();
        assert_eq!(queue.lock().entries, all);
        queue.forget(&"other".parse().unwrap()).await.unwrap();
        assert_eq!(queue.len(), 3);
        queue.forget(&"host".parse().unwrap()).await.unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_torn_line_takes_no_other_along() {
        let scratch = tempfile::tempdir().unwrap();
        let queue = Queue::open(scratch.path(), FILE).unwrap();
        queue.push(entry("a", Write::Remove)).await.unwrap();
        drop(queue);
        let mut file = open(&scratch.path().join(FILE)).unwrap();
        file.write_all(b"{\"instance\":\"ho").unwrap();
        let queue = Queue::open(scratch.path(), FILE).unwrap();
        queue.push(entry("b", Write::Remove)).await.unwrap();
        drop(queue);
        let queue = Queue::open(scratch.path(), FILE).unwrap();
        assert_eq!(queue.lock().entries, [entry("a", Write::Remove), entry("b", Write::Remove)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(text in any::<Vec<u8>>()) {
            parse(&text);
        }

        #[test]
        fn whole_lines_survive_whatever_stands_between_them(noise in "[^\n]*", tail in "[^\n]*") {
            let line = |name| serde_json::to_string(&entry(name, Write::Remove)).unwrap();
            let text = format!("{}\n{noise}\n{}\n{tail}", line("a"), line("b"));
            let (entries, _) = parse(text.as_bytes());
            prop_assert!(entries.len() >= 2);
            prop_assert_eq!(&entries[0], &entry("a", Write::Remove));
        }
    }
}
