//! From a layer's bytes to a directory that overlayfs can use.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::Arc,
};

use tar::EntryType;

use crate::{
    compression::decompressed,
    digest::{Digest, Hashing},
    error::{Result, failed, invalid, unreadable},
    stop::{Budget, Stop},
    tape::{Entry, Tape, shown},
    tree::{Attributes, Components, Tree, finish_file, refused},
};

#[cfg(test)]
mod anything;

const WHITEOUT: &[u8] = b".wh.";
/// What AUFS kept for itself; only the mark for a whole directory means something to others.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const BUFFER_BYTES: usize = 128 << 10;

/// What a layer turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    /// Bytes of its files.
    pub(crate) bytes: u64,
    /// Its root hides everything below it.
    pub(crate) hides_all: bool,
}

/// Unpacks `layer` into the new directory `target`.
///
/// # Errors
/// `Invalid` when the layer breaks a rule or is not what `expected`, the digest of its tar, says; `Exhausted` when
/// the disk is full. What is there of `target` then is the caller's to remove.
pub(crate) fn unpack(
    layer: impl Read,
    target: &Path,
    expected: &Digest,
    budget: &Arc<Budget>,
    stop: &Stop,
) -> Result<Content> {
    let damaged = |error| unreadable("the layer", error);
    let plain = decompressed(layer).map_err(damaged)?;
    let mut plain = stop.reader(Hashing::new(budget.reader(plain)));
    let content = Unpacking::new(target, budget)?.all(&mut plain)?;
    // What follows the archive's end is part of the digest, and is paid for.
    io::copy(&mut plain, &mut io::sink()).map_err(damaged)?;
    let (found, _) = plain.into_inner().finish();
    if found != *expected {
        return Err(invalid(format!("a layer's content is {found}, and the image says {expected}")));
    }
    Ok(content)
}

struct Unpacking<'a> {
    tree: Tree<'a>,
    budget: &'a Budget,
    content: Content,
    buffer: Vec<u8>,
}

impl<'a> Unpacking<'a> {
    fn new(target: &Path, budget: &'a Budget) -> Result<Self> {
        let tree = Tree::make(target, budget)?;
        let content = Content { bytes: 0, hides_all: false };
        Ok(Self { tree, budget, content, buffer: vec![0; BUFFER_BYTES] })
    }

    fn all(mut self, layer: &mut dyn Read) -> Result<Content> {
        let mut tape = Tape::new(layer);
        while let Some(entry) = tape.next()? {
            self.budget.take_entry()?;
            self.entry(&entry, &mut tape)?;
        }
        self.tree.finish()?;
        Ok(self.content)
    }

    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<()> {
        let path = Components::of(&entry.path)?;
        if path.any(|part| part.as_bytes().starts_with(WHITEOUT)) {
            return self.mark(&path);
        }
        let with = Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
        match entry.kind {
            EntryType::Directory => self.tree.directory(&path, &with, &kept(entry)),
            EntryType::Regular => self.file(entry, &path, &with, data),
            EntryType::Symlink => {
                let target = link_text(entry)?;
                self.tree.symlink(&path, target, &with)
            }
            EntryType::Link => {
                let target = Components::of(&entry.link)?;
                self.tree.hard_link(&path, &target)
            }
            EntryType::Fifo => self.tree.fifo(&path, &with),
            EntryType::Char | EntryType::Block => Err(refused(&path, "a device; images must not bring any")),
            other => {
                Err(refused(&path, &format!("an entry of unknown type {:?}", char::from(other.as_byte()))))
            }
        }
    }

    /// Entries whose names say that something below is gone.
    fn mark(&mut self, path: &Components<'_>) -> Result<()> {
        let Some((parents, name)) = path.split() else { return Ok(()) };
        let name = name.as_bytes();
        let is_aufs = |part: &OsStr| part.as_bytes().starts_with(AUFS);
        if name == OPAQUE && !parents.iter().any(|part| part.as_bytes().starts_with(WHITEOUT)) {
            self.content.hides_all |= parents.is_empty();
            return self.tree.opaque(parents);
        }
        if path.any(is_aufs) {
            return Ok(());
        }
        if parents.iter().any(|part| part.as_bytes().starts_with(WHITEOUT)) {
            return Err(refused(path, "it is inside of what .wh. says is removed"));
        }
        match name.strip_prefix(WHITEOUT) {
            None | Some(b"" | b"." | b"..") => Err(refused(path, "it removes what has no name")),
            Some(removed) => self.tree.whiteout(parents, OsStr::from_bytes(removed)),
        }
    }

    fn file(
        &mut self,
        entry: &Entry,
        path: &Components<'_>,
        with: &Attributes,
        data: &mut impl Read,
    ) -> Result<()> {
        let mut file = self.tree.file(path)?;
        match &entry.sparse {
            None => self.copy(&mut file, data, entry.size)?,
            Some(pieces) => {
                for piece in pieces {
                    let sought = file.seek(SeekFrom::Start(piece.offset));
                    sought.map_err(|error| unwritten(entry, error))?;
                    self.copy(&mut file, data, piece.length)?;
                }
                file.set_len(entry.size).map_err(|error| unwritten(entry, error))?;
            }
        }
        finish_file(&file, path, with, &kept(entry))
    }

    fn copy(&mut self, file: &mut File, data: &mut impl Read, length: u64) -> Result<()> {
        let mut data = data.take(length);
        let mut left = length;
        while left > 0 {
            let count = data.read(&mut self.buffer).map_err(|error| unreadable("the layer", error))?;
            if count == 0 {
                return Err(invalid("a file of the layer is cut off"));
            }
            let written = file.write_all(&self.buffer[..count]);
            written.map_err(|error| failed("write a file of a layer", error))?;
            left -= count as u64;
            self.content.bytes += count as u64;
        }
        Ok(())
    }
}

fn unwritten(entry: &Entry, error: io::Error) -> host_core::PluginError {
    if error.raw_os_error() == Some(rustix::io::Errno::FBIG.raw_os_error()) {
        return invalid(format!("{} is larger than any file can be here", shown(&entry.path)));
    }
    failed(&format!("write {} of a layer", shown(&entry.path)), error)
}

/// A link may say anything: it is followed in the container, not here.
fn link_text(entry: &Entry) -> Result<&[u8]> {
    if entry.link.is_empty() || entry.link.len() >= 4096 || entry.link.contains(&0) {
        return Err(invalid(format!("{}: a link to nowhere, or to what is too long", shown(&entry.path))));
    }
    Ok(&entry.link)
}

/// Attributes that images may bring: capabilities of programs, and users' own. `trusted.*` and `user.overlay.*` would
/// speak to overlayfs, and `security.*` to the host's security modules.
fn kept(entry: &Entry) -> Vec<(Vec<u8>, Vec<u8>)> {
    let may = |name: &[u8]| {
        name == b"security.capability" || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
    };
    entry.xattrs.iter().filter(|(name, _)| may(name)).cloned().collect()
}
