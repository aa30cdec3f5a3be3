//! The members of an image archive, by name: of a tar file, packed or not, or of a directory.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, BufReader, Read},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, OpenOptionsExt},
        },
    },
    path::Path,
    sync::Arc,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};
use tar::EntryType;

use crate::{
    compression::{decompressed, is_packed},
    error::{Result, failed, invalid, unreadable},
    image::DOCUMENT_BYTES_MAX,
    stop::Stop,
    tape::{Input, Tape, shown},
    tree::Components,
    work::Work,
};

/// Blobs of a thousand images.
const MEMBERS_MAX: usize = 200_000;
/// Links to links.
const HOPS_MAX: usize = 8;
const BUFFER_BYTES: usize = 64 << 10;

/// An archive that is open.
#[derive(Debug)]
pub(crate) enum Archive {
    Tar { file: Arc<File>, members: BTreeMap<Vec<u8>, Member> },
    Directory(OwnedFd),
}

#[derive(Debug)]
pub(crate) enum Member {
    Data { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl Archive {
    /// # Errors
    /// `Invalid` when it is neither a directory nor a tar.
    pub(crate) fn open(path: &Path, work: &Work, stop: &Stop) -> Result<Self> {
        let named = |error: io::Error| invalid(format!("cannot open {}", path.display())).with_source(error);
        // Opening a FIFO must not wait for its writer.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(named)?;
        let kind = file.metadata().map_err(named)?;
        if kind.is_dir() {
            return Ok(Self::Directory(file.into()));
        }
        if !kind.is_file() {
            return Err(invalid(format!("{} is neither a file nor a directory", path.display())));
        }
        let mut start = [0; 6];
        let count = file.read_at(&mut start, 0).map_err(named)?;
        let file = if is_packed(&start[..count]) { plain(file, work, stop)? } else { file };
        let members = list(&file, stop)?;
        Ok(Self::Tar { file: Arc::new(file), members })
    }

    /// A member's content, if there is such a member.
    ///
    /// # Errors
    /// `Invalid` for a name that leads outside, or to what is no file.
    pub(crate) fn member(&self, name: &str) -> Result<Option<(Box<dyn Read>, u64)>> {
        let path = Components::of(name.as_bytes())?;
        match self {
            Self::Directory(directory) => open_below(directory, &path),
            Self::Tar { file, members } => {
                let found = find(members, path.joined())?;
                Ok(found.map(|(offset, size)| {
                    let part = Part { file: Arc::clone(file), offset, left: size };
                    (Box::new(BufReader::with_capacity(BUFFER_BYTES, part)) as Box<dyn Read>, size)
                }))
            }
        }
    }

    /// A small member, whole.
    pub(crate) fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((content, size)) = self.member(name)? else {
            return Ok(None);
        };
        if size > DOCUMENT_BYTES_MAX {
            return Err(invalid(format!("{name} is of {size} bytes; it may have {DOCUMENT_BYTES_MAX}")));
        }
        let mut read = Vec::new();
        content.take(size).read_to_end(&mut read).map_err(|error| unreadable(name, error))?;
        Ok(Some(read))
    }
}

/// A packed archive cannot be read from the middle: it is unpacked first, into the working directory.
fn plain(file: File, work: &Work, stop: &Stop) -> Result<File> {
    let damaged = |error| unreadable("the archive", error);
    let path = work.path();
    let create = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path);
    let mut plain = create.map_err(|error| failed("make a file for the unpacked archive", error))?;
    let budget = work.budget();
    let mut content = stop.reader(budget.reader(decompressed(file).map_err(damaged)?));
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = content.read(&mut buffer).map_err(damaged)?;
        if count == 0 {
            return Ok(plain);
        }
        let written = io::Write::write_all(&mut plain, &buffer[..count]);
        written.map_err(|error| failed("unpack the archive", error))?;
    }
}

fn list(file: &File, stop: &Stop) -> Result<BTreeMap<Vec<u8>, Member>> {
    let open = || Seeking::new(file.try_clone()?);
    let mut tape = Tape::new(open().map_err(|error| failed("read the archive", error))?);
    let mut members = BTreeMap::new();
    while let Some(entry) = tape.next()? {
        stop.check()?;
        let name = Components::of(&entry.path)?.joined();
        let member = match entry.kind {
            EntryType::Regular if entry.sparse.is_none() => {
                Member::Data { offset: tape.position(), size: entry.size }
            }
            EntryType::Symlink => Member::Link(target(&name, &entry.link)?),
            EntryType::Link => Member::Link(Components::of(&entry.link)?.joined()),
            EntryType::Directory => continue,
            _ => return Err(invalid(format!("{} is no plain file of an archive", shown(&name)))),
        };
        members.insert(name, member);
        if members.len() > MEMBERS_MAX {
            return Err(invalid(format!("the archive has more than {MEMBERS_MAX} members")));
        }
    }
    Ok(members)
}

/// What a symbolic link within an archive means, as a name in the archive.
fn target(link: &[u8], text: &[u8]) -> Result<Vec<u8>> {
    let outside = || invalid(format!("{} is a link to {}, outside of the archive", shown(link), shown(text)));
    if text.starts_with(b"/") {
        return Err(outside());
    }
    let mut parts: Vec<&[u8]> = link.split(|byte| *byte == b'/').collect();
    parts.pop();
    for part in text.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop().ok_or_else(outside)?),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

fn find(members: &BTreeMap<Vec<u8>, Member>, mut name: Vec<u8>) -> Result<Option<(u64, u64)>> {
    for _ in 0..HOPS_MAX {
        match members.get(&name) {
            None => return Ok(None),
            Some(Member::Data { offset, size }) => return Ok(Some((*offset, *size))),
            Some(Member::Link(target)) => name.clone_from(target),
        }
    }
    Err(invalid(format!("{} is a link that leads nowhere", shown(&name))))
}

fn open_below(directory: &OwnedFd, path: &Components<'_>) -> Result<Option<(Box<dyn Read>, u64)>> {
    let named =
        |error: io::Error| invalid(format!("cannot open {}", shown(&path.joined()))).with_source(error);
    let Some((parents, name)) = path.split() else {
        return Ok(None);
    };
    match descend(directory, parents, name) {
        Err(Errno::NOENT) => Ok(None),
        opened => {
            let file = File::from(opened.map_err(|error| named(error.into()))?);
            let found = file.metadata().map_err(named)?;
            if !found.is_file() {
                return Err(invalid(format!("{} is no file", shown(&path.joined()))));
            }
            Ok(Some((Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), found.len())))
        }
    }
}

/// Name by name, so that no link leads outside.
fn descend(directory: &OwnedFd, parents: &[&OsStr], name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut current = None;
    for parent in parents {
        let at = current.as_ref().unwrap_or(directory);
        current = Some(openat(at, *parent, flags | OFlags::DIRECTORY, Mode::empty())?);
    }
    openat(current.as_ref().unwrap_or(directory), name, flags, Mode::empty())
}

impl Components<'_> {
    fn joined(&self) -> Vec<u8> {
        let parts: Vec<&[u8]> = self.all().iter().map(|part| part.as_bytes()).collect();
        parts.join(&b'/')
    }
}

/// A part of a file, at its own place in it.
struct Part {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..length], self.offset)?;
        if count == 0 && length > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A file whose data is not read just to leave it out.
struct Seeking {
    inner: BufReader<File>,
    left: u64,
}

impl Seeking {
    fn new(file: File) -> io::Result<Self> {
        let mut inner = BufReader::new(file);
        io::Seek::rewind(&mut inner)?;
        let left = inner.get_ref().metadata()?.len();
        Ok(Self { inner, left })
    }
}

impl Read for Seeking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

impl Input for Seeking {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(count).ok_or(io::ErrorKind::UnexpectedEof)?;
        let count = i64::try_from(count).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.inner.seek_relative(count)
    }
}
