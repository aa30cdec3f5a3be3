//! Reads tar streams: ustar, GNU and pax headers, both kinds of sparse files, nothing kept in memory but one
//! entry's headers.
//!
//! The `tar` crate's own iteration is not used, because it takes headers of any size into memory and knows only one
//! of the sparse formats; its view of the fields of one header is.

use std::io::{self, Read};

use rustix::fs::Timespec;
use tar::{EntryType, Header};

use crate::error::{Result, invalid, unreadable};

mod pax;
mod sparse;

use pax::Pax;
pub(crate) use sparse::Piece;

const BLOCK: usize = 512;
/// More than any path, link or set of attributes takes.
const HEADERS_BYTES_MAX: u64 = 1 << 20;

/// What a tar is read from.
pub(crate) trait Input: Read + Sized {
    /// Leaves out `count` bytes.
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.by_ref().take(count), &mut io::sink())?;
        if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

impl Input for &mut dyn Read {}
#[cfg(test)]
impl Input for &[u8] {}

/// One member of an archive.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryType,
    pub(crate) path: Vec<u8>,
    /// Of symbolic and hard links.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of the file as it will be, holes included.
    pub(crate) size: u64,
    /// Where the data goes, unless it is the whole file.
    pub(crate) sparse: Option<Vec<Piece>>,
}

/// A tar stream.
pub(crate) struct Tape<R> {
    input: R,
    position: u64,
    /// Of the current entry's data.
    left: u64,
    padding: u64,
}

impl<R: Input> Tape<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, position: 0, left: 0, padding: 0 }
    }

    /// Where the data of the current entry begins, or goes on.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; what was not read of the one before is skipped.
    ///
    /// # Errors
    /// `Invalid` when it is no tar.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut pax = Pax::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::GNULongName => long_path = Some(self.long_name()?),
                EntryType::GNULongLink => long_link = Some(self.long_name()?),
                EntryType::XHeader => pax.read(&self.headers()?)?,
                EntryType::XGlobalHeader => drop(self.headers()?),
                _ => {
                    let path = long_path.unwrap_or_else(|| header.path_bytes().into_owned());
                    let link =
                        long_link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
                    return self.entry(&header, pax, path, link.unwrap_or_default()).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, header: &Header, mut pax: Pax, path: Vec<u8>, link: Vec<u8>) -> Result<Entry> {
        let (path, link) = (pax.path.take().unwrap_or(path), pax.link.take().unwrap_or(link));
        let small = |what, value: Option<u64>| {
            // The highest means nobody, and would leave the file to whoever unpacks it.
            let value = value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value != u32::MAX);
            value.ok_or_else(|| invalid(format!("{}: its {what} is no number of 32 bits", shown(&path))))
        };
        let plain = header.as_old();
        let mut entry = Entry {
            kind: kind(header.entry_type(), &path),
            mode: small("mode", number(&plain.mode, header.mode().map(u64::from)))? & 0o7777,
            uid: small("owner", pax.uid.or_else(|| number(&plain.uid, header.uid())))?,
            gid: small("group", pax.gid.or_else(|| number(&plain.gid, header.gid())))?,
            mtime: pax.mtime.unwrap_or_else(|| seconds(header)),
            xattrs: std::mem::take(&mut pax.xattrs),
            size: 0,
            sparse: None,
            path,
            link,
        };
        let has_data = matches!(entry.kind, EntryType::Regular | EntryType::GNUSparse);
        self.begin(if has_data { pax.size.unwrap_or(self.left) } else { 0 })?;
        entry.size = self.left;
        if has_data {
            self.read_sparse(header, &pax, &mut entry)?;
        }
        Ok(entry)
    }

    /// The next header that is not empty; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>> {
        self.skip_rest()?;
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? || header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let sum = bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let own = bytes[148..156].iter().map(|byte| u32::from(*byte)).sum::<u32>();
        if header.cksum().ok() != Some(sum - own + 8 * u32::from(b' ')) {
            return Err(invalid(format!(
                "it is no tar: there is no header at byte {}",
                self.position - BLOCK as u64
            )));
        }
        let size = number(&header.as_old().size, header.entry_size());
        self.begin(size.ok_or_else(|| invalid("it is no tar: an entry's size is no number"))?)?;
        Ok(Some(header))
    }

    /// Data of this size comes next.
    fn begin(&mut self, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(invalid("it is no tar: an entry is larger than any file can be"));
        }
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<()> {
        let rest = self.left + self.padding;
        self.input.skip(rest).map_err(|error| unreadable("the tar", error))?;
        self.position += rest;
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// Whether there was a block; the end of the stream is an end of the archive, as for other readers.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(invalid("it is cut off within a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable("the tar", error)),
            }
        }
        self.position += BLOCK as u64;
        Ok(true)
    }

    /// The whole data of an entry that describes another.
    fn headers(&mut self) -> Result<Vec<u8>> {
        if self.left > HEADERS_BYTES_MAX {
            return Err(invalid(format!("an entry's headers are larger than {HEADERS_BYTES_MAX} bytes")));
        }
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(|error| unreadable("the tar", error))?;
        Ok(content)
    }

    fn long_name(&mut self) -> Result<Vec<u8>> {
        let mut name = self.headers()?;
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }
}

/// Reads the data of the current entry.
impl<R: Input> Read for Tape<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.by_ref().take(self.left).read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

/// Old writers mark directories only by a slash; contiguous files are files.
fn kind(kind: EntryType, path: &[u8]) -> EntryType {
    match kind {
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => EntryType::Directory,
        EntryType::Continuous => EntryType::Regular,
        kind => kind,
    }
}

/// Writers that have nothing to say leave a field empty.
fn number(field: &[u8], parsed: io::Result<u64>) -> Option<u64> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Some(0) } else { parsed.ok() }
}

/// A time that cannot be read is no reason to refuse a file.
fn seconds(header: &Header) -> Timespec {
    let seconds = header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
    Timespec { tv_sec: seconds.unwrap_or_default(), tv_nsec: 0 }
}

/// A path for people; it may be hostile and long.
pub(crate) fn shown(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(200).collect();
    format!("{text:?}")
}
