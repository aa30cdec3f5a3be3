//! Lines on disk until they are delivered.
//!
//! A line's place is how many bytes were ever spooled before it. Files are named by the place of their first byte:
//! `00000000000000000000.ndjson`, `00000000000008388608.ndjson`, …; `position` holds the place up to which all is
//! delivered, and is replaced by rename. So a file never changes but at its end, and whatever a crash interrupts
//! is either a last line without an end, which was never accepted, or a batch that is delivered twice.
//!
//! `lock` is held by the one process that uses the directory. A line is accepted when it is written: it survives the
//! end of the process, however that comes, and from the next [`Writer::sync`] on a power failure.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    process::geteuid,
};

const LOCK: &str = "lock";
const POSITION: &str = "position";
/// Given back whole, when all of it is delivered.
const SEGMENT_BYTES: u64 = 8 << 20;
/// Longer than any line.
const LOOK_BACK_BYTES: u64 = 1 << 20;
/// As root, never write through a link that somebody planted.
#[allow(clippy::cast_possible_wrap, reason = "a flag of open(2), which takes an int")]
const NOFOLLOW: i32 = OFlags::NOFOLLOW.bits() as i32;

#[derive(Debug)]
struct Shared {
    /// The place of the first byte that is still on disk.
    oldest: AtomicU64,
    _lock: File,
}

/// Takes lines in. One of a kind, as is its [`Reader`].
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    file: File,
    start: u64,
    end: u64,
    limit: u64,
    shared: Arc<Shared>,
}

/// Gives lines out, in order.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    position: u64,
    segment: Option<(u64, File)>,
    shared: Arc<Shared>,
}

/// Whole lines, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The lines.
    pub text: Vec<u8>,
    /// The place after them.
    pub end: u64,
}

/// Why lines were not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// There is no room.
    #[error("the spool is full")]
    Full,
    /// The disk refused.
    #[error("the spool cannot be written")]
    Disk(#[source] io::Error),
}

/// Opens the spool in `dir`, made if it is not there, with whatever an earlier process left.
///
/// # Errors
/// The directory cannot be used: `ResourceBusy` when another process has it.
pub fn open(dir: &Path, limit: u64) -> io::Result<(Writer, Reader)> {
    own_directory(dir)?;
    let lock = options().create(true).write(true).open(dir.join(LOCK))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"));
    }
    let segments = segments(dir)?;
    let delivered = read_position(dir);
    let oldest = segments.first().copied().unwrap_or(delivered);
    let start = segments.last().copied().unwrap_or(delivered);
    let file = segment_file(dir, start)?;
    let end = start + whole_lines(&file)?;
    file.set_len(end - start)?;
    let shared = Arc::new(Shared { oldest: AtomicU64::new(oldest), _lock: lock });
    let position = delivered.clamp(oldest, end);
    let reader = Reader { dir: dir.to_owned(), position, segment: None, shared: shared.clone() };
    Ok((Writer { dir: dir.to_owned(), file, start, end, limit, shared }, reader))
}

impl Writer {
    /// The place after everything accepted.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Accepts lines, all or none.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub fn append(&mut self, lines: &[u8]) -> Result<(), NotTaken> {
        let length = lines.len() as u64;
        if self.end + length - self.shared.oldest.load(Ordering::Acquire) > self.limit {
            return Err(NotTaken::Full);
        }
        if self.end - self.start >= SEGMENT_BYTES {
            self.rotate().map_err(NotTaken::Disk)?;
        }
        let place = self.end - self.start;
        self.file.write_all_at(lines, place).map_err(|error| {
            // What was written of them is no line; should it stay, the next ones are written over it.
            let _ = self.file.set_len(place);
            NotTaken::Disk(error)
        })?;
        self.end += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        self.file = segment_file(&self.dir, self.end)?;
        self.start = self.end;
        Ok(())
    }

    /// Has what was accepted survive a power failure.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

impl Reader {
    /// The place up to which all is delivered.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next lines, together no longer than `longest` unless a single one is; `end` is the writer's. `None` when
    /// there are none.
    ///
    /// # Errors
    /// The disk's.
    pub fn batch(&mut self, end: u64, longest: usize) -> io::Result<Option<Batch>> {
        while self.position < end {
            let segments = segments(&self.dir)?;
            let Some(start) = segments.iter().copied().rfind(|start| *start <= self.position) else {
                // Somebody removed what was here.
                let Some(next) = segments.first().copied() else { return Ok(None) };
                self.position = next;
                continue;
            };
            let next = segments.iter().copied().find(|later| *later > start);
            let stop = next.unwrap_or(end).min(end);
            if let Some(text) = self.lines(start, stop, longest)? {
                return Ok(Some(Batch { end: self.position + text.len() as u64, text }));
            }
            // Nothing whole is left in this file: a power failure cut it short.
            let Some(next) = next else { return Ok(None) };
            self.advance(next)?;
        }
        Ok(None)
    }

    fn lines(&mut self, start: u64, stop: u64, longest: usize) -> io::Result<Option<Vec<u8>>> {
        if self.segment.as_ref().is_none_or(|(open, _)| *open != start) {
            self.segment = Some((start, options().read(true).open(path(&self.dir, start))?));
        }
        let Some((_, file)) = &self.segment else { return Ok(None) };
        let (place, left) = (self.position - start, stop.saturating_sub(self.position));
        let mut text = read_at(file, place, left.min(longest as u64))?;
        let mut end = text.iter().rposition(|byte| *byte == b'\n');
        if end.is_none() {
            // A single line is longer than that.
            text = read_at(file, place, left.min(LOOK_BACK_BYTES))?;
            end = text.iter().position(|byte| *byte == b'\n');
        }
        let Some(end) = end else { return Ok(None) };
        text.truncate(end + 1);
        Ok(Some(text))
    }

    /// Everything before `to` is delivered, or given up.
    ///
    /// # Errors
    /// The disk's; what is delivered may be delivered again after a restart.
    pub fn advance(&mut self, to: u64) -> io::Result<()> {
        self.position = to;
        let fresh = self.dir.join(format!(".{POSITION}"));
        let mut file = options().create(true).write(true).truncate(true).open(&fresh)?;
        writeln!(file, "{to}")?;
        fs::rename(&fresh, self.dir.join(POSITION))?;
        let segments = segments(&self.dir)?;
        for two in segments.windows(2).take_while(|two| two[1] <= to) {
            fs::remove_file(path(&self.dir, two[0]))?;
            self.shared.oldest.store(two[1], Ordering::Release);
        }
        Ok(())
    }
}

fn read_at(file: &File, place: u64, want: u64) -> io::Result<Vec<u8>> {
    let mut text = vec![0; usize::try_from(want).unwrap_or(usize::MAX)];
    let mut read = 0;
    while read < text.len() {
        match file.read_at(&mut text[read..], place + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    text.truncate(read);
    Ok(text)
}

/// How much of the file is whole lines.
fn whole_lines(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LOOK_BACK_BYTES);
    let tail = read_at(file, from, length - from)?;
    Ok(tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| from + last as u64 + 1))
}

fn read_position(dir: &Path) -> u64 {
    fs::read_to_string(dir.join(POSITION)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The places at which files begin, in order. Whatever else lies in the directory is somebody else's.
fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut starts = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let start = name.to_str().and_then(|name| name.strip_suffix(".ndjson")?.parse::<u64>().ok());
        starts.extend(start);
    }
    starts.sort_unstable();
    Ok(starts)
}

fn path(dir: &Path, start: u64) -> PathBuf {
    dir.join(format!("{start:020}.ndjson"))
}

fn segment_file(dir: &Path, start: u64) -> io::Result<File> {
    options().create(true).read(true).write(true).open(path(dir, start))
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(NOFOLLOW);
    options
}

/// Makes the directory, ours alone.
fn own_directory(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let found = dir.symlink_metadata()?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no directory of this user's"));
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests;
