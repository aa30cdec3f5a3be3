//! Makes files below one directory and nowhere else.
//!
//! Every step goes from an open directory to a name in it, without following links, so that neither `..` nor a link
//! that an archive made can lead outside. Directories once made stay what they are.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
        fchmod, fchown, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, statat, symlinkat,
        unlinkat, utimensat,
    },
    io::Errno,
};

use crate::{
    error::{Result, failed, invalid},
    stop::Budget,
    tape::shown,
};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const OPAQUE: &str = "trusted.overlay.opaque";
const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;
/// Every level costs a file descriptor while an entry is written, and another when the tree is removed.
const DEPTH_MAX: usize = 128;

/// Names from the tree's root down, each a plain one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Components<'a>(Vec<&'a OsStr>);

impl<'a> Components<'a> {
    /// Leading slashes are left out, as `docker` does: a layer's paths begin at its root.
    ///
    /// # Errors
    /// `Invalid` for `..` and for what no file system takes.
    pub(crate) fn of(path: &'a [u8]) -> Result<Self> {
        let refused = |rule: &str| Err(invalid(format!("{}: {rule}", shown(path))));
        if path.len() > PATH_BYTES_MAX {
            return refused("its path is longer than 4096 bytes");
        }
        let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let parts: Vec<&OsStr> = parts.map(OsStr::from_bytes).collect();
        match () {
            () if path.contains(&0) => refused("its path has a zero byte"),
            () if parts.iter().any(|part| *part == "..") => {
                refused("its path has .., which could lead outside")
            }
            () if parts.iter().any(|part| part.len() > NAME_BYTES_MAX) => {
                refused("its path has a name longer than 255 bytes")
            }
            () if parts.len() > DEPTH_MAX => refused("its path is deeper than 128 directories"),
            () => Ok(Self(parts)),
        }
    }

    /// Where it is and its name there; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[&'a OsStr], &'a OsStr)> {
        self.0.split_last().map(|(name, parents)| (parents, *name))
    }

    pub(crate) fn all(&self) -> &[&'a OsStr] {
        &self.0
    }

    pub(crate) fn parents(&self) -> &[&'a OsStr] {
        self.split().map_or(&[], |(parents, _)| parents)
    }

    pub(crate) fn any(&self, test: impl Fn(&OsStr) -> bool) -> bool {
        self.0.iter().any(|part| test(part))
    }
}

/// Owner, mode and times of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
}

impl Attributes {
    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    fn times(&self) -> Timestamps {
        Timestamps { last_access: self.mtime, last_modification: self.mtime }
    }
}

type Xattrs = [(Vec<u8>, Vec<u8>)];

/// A directory on the way to where the last entry was made.
struct Level {
    name: OsString,
    fd: OwnedFd,
    /// What is made inside changes it; it is set again when the level is left.
    mtime: Timespec,
}

/// The tree and the way to where the last entry was made: archives list directory by directory.
pub(crate) struct Tree<'a> {
    levels: Vec<Level>,
    budget: &'a Budget,
}

impl<'a> Tree<'a> {
    /// Makes the root, at a path that does not exist. Entries are paid for by who asks for them; the directories on the
    /// way to them that no entry has made, from `budget`.
    pub(crate) fn make(path: &Path, budget: &'a Budget) -> Result<Self> {
        let open = || {
            mkdirat(CWD, path, Mode::from_raw_mode(0o700))?;
            let fd = openat(CWD, path, DIRECTORY, Mode::empty())?;
            fchmod(&fd, Mode::from_raw_mode(0o755))?;
            Level::new(OsString::new(), fd)
        };
        let root = open().map_err(|error| failed("make a layer's directory", error))?;
        Ok(Self { levels: vec![root], budget })
    }

    /// Sets what writing into the directories has changed.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.leave(0)
    }

    fn leave(&mut self, depth: usize) -> Result<()> {
        while self.levels.len() > depth {
            let Some(level) = self.levels.pop() else { break };
            let times = Timestamps { last_access: level.mtime, last_modification: level.mtime };
            futimens(&level.fd, &times).map_err(|error| failed("set a directory's times", error))?;
        }
        Ok(())
    }

    fn top(&mut self) -> &mut Level {
        // The root is there from `make` to `finish`.
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    /// Goes to a directory; one that is missing is made, or else is an error.
    fn enter(&mut self, path: &[&OsStr], make: bool) -> Result<&OwnedFd> {
        let common =
            self.levels[1..].iter().zip(path).take_while(|(level, name)| level.name == **name).count();
        self.leave(common + 1)?;
        for name in &path[common..] {
            if self.step(name, make).map_err(|error| self.no_way(path, error))? {
                self.budget.take_entry()?;
            }
        }
        Ok(&self.top().fd)
    }

    /// Says whether the directory is new. One that no entry of this layer describes is root's and 0755, and hides the mode
    /// that it has in a layer below, as with Docker's graph drivers: what is below is not known here.
    fn step(&mut self, name: &OsStr, make: bool) -> rustix::io::Result<bool> {
        let parent = &self.top().fd;
        let (fd, is_new) = match openat(parent, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) if make => (make_directory(parent, name)?, true),
            // A whiteout and a directory of the same name: the directory replaces what is below.
            Err(Errno::NOTDIR) if make && is_whiteout(parent, name)? => {
                unlinkat(parent, name, AtFlags::empty())?;
                let fd = make_directory(parent, name)?;
                set_opaque(&fd)?;
                (fd, true)
            }
            opened => (opened?, false),
        };
        self.levels.push(Level::new(name.to_owned(), fd)?);
        Ok(is_new)
    }

    fn no_way(&self, path: &[&OsStr], error: Errno) -> host_core::PluginError {
        let path: Vec<&[u8]> = path.iter().map(|part| part.as_bytes()).collect();
        let path = shown(&path.join(&b'/'));
        match error {
            Errno::NOTDIR | Errno::LOOP | Errno::MLINK => invalid(format!(
                "{path} leads through a link or a file; an entry's path must be of directories"
            )),
            Errno::NOENT => invalid(format!("{path} is not in this layer")),
            error => failed(&format!("open the directory {path} of a layer"), error),
        }
    }

    pub(crate) fn directory(
        &mut self,
        path: &Components<'_>,
        with: &Attributes,
        xattrs: &Xattrs,
    ) -> Result<()> {
        self.enter(path.parents(), true)?;
        if let Some((_, name)) = path.split() {
            self.make_way_for_directory(name, path)?;
            self.step(name, true).map_err(|error| self.no_way(&path.0, error))?;
        }
        let level = self.top();
        apply(&level.fd, with, xattrs).map_err(|error| wrong(path, error))?;
        level.mtime = with.mtime;
        Ok(())
    }

    /// Removes what is no directory, but for whiteouts, which mean something.
    fn make_way_for_directory(&mut self, name: &OsStr, path: &Components<'_>) -> Result<()> {
        let parent = &self.top().fd;
        let clear = || match kind(parent, name)? {
            None | Some(FileType::Directory) => Ok(()),
            _ if is_whiteout(parent, name)? => Ok(()),
            _ => unlinkat(parent, name, AtFlags::empty()),
        };
        clear().map_err(|error| wrong(path, error))
    }

    /// Makes an empty file and returns it open; [`finish_file`] gives it its attributes.
    pub(crate) fn file(&mut self, path: &Components<'_>) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            self.place(path, |parent, name| openat(parent, name, flags, Mode::from_raw_mode(0o600)))?;
        Ok(file.into())
    }

    pub(crate) fn symlink(&mut self, path: &Components<'_>, target: &[u8], with: &Attributes) -> Result<()> {
        self.place(path, |parent, name| symlinkat(OsStr::from_bytes(target), parent, name))?;
        self.own(path, with)
    }

    pub(crate) fn fifo(&mut self, path: &Components<'_>, with: &Attributes) -> Result<()> {
        let mode = Mode::from_raw_mode(with.mode);
        self.place(path, |parent, name| {
            mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        })?;
        self.own(path, with)?;
        // Nothing else makes links here, so the name is still what was made above.
        let parent = self.enter(path.parents(), false)?;
        let name = path.split().map(|(_, name)| name).unwrap_or_default();
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).map_err(|error| wrong(path, error))
    }

    /// One more name for a file of this tree.
    pub(crate) fn hard_link(&mut self, path: &Components<'_>, target: &Components<'_>) -> Result<()> {
        let Some((parents, target_name)) = target.split() else {
            return Err(refused(path, "a hard link to a directory"));
        };
        let duplicate =
            |fd: &OwnedFd| fd.try_clone().map_err(|error| failed("open a directory of a layer", error));
        let from = duplicate(self.enter(parents, false)?)?;
        match kind(&from, target_name).map_err(|error| wrong(path, error))? {
            Some(FileType::RegularFile | FileType::Symlink | FileType::Fifo) => {}
            Some(_) => return Err(refused(path, "a hard link to what is no file")),
            None => return Err(refused(path, "a hard link to what is not in this layer")),
        }
        if path == target {
            return Ok(());
        }
        self.place(path, |parent, name| linkat(&from, target_name, parent, name, AtFlags::empty()))
    }

    /// Marks a name as absent in the layers below.
    pub(crate) fn whiteout(&mut self, parents: &[&OsStr], name: &OsStr) -> Result<()> {
        let parent = self.enter(parents, true)?;
        let mark = || match kind(parent, name)? {
            // What this layer itself has hides what is below anyway, except for a directory, which is merged.
            Some(FileType::Directory) => set_opaque(&openat(parent, name, DIRECTORY, Mode::empty())?),
            Some(_) => Ok(()),
            None => mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0),
        };
        mark().map_err(|error| failed("mark a file as removed", error))
    }

    /// Marks a directory as hiding all that the layers below have in it.
    pub(crate) fn opaque(&mut self, directory: &[&OsStr]) -> Result<()> {
        let directory = self.enter(directory, true)?;
        set_opaque(directory).map_err(|error| failed("mark a directory as opaque", error))
    }

    /// Makes something that is no directory, in the place of whatever is there and is none either.
    fn place<T>(
        &mut self,
        path: &Components<'_>,
        make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let Some((parents, name)) = path.split() else {
            return Err(refused(path, "a layer's root that is no directory"));
        };
        let parent = self.enter(parents, true)?;
        let made = match make(parent, name) {
            Err(Errno::EXIST) => {
                if kind(parent, name).map_err(|error| wrong(path, error))? == Some(FileType::Directory) {
                    return Err(refused(path, "it takes the place of a directory"));
                }
                unlinkat(parent, name, AtFlags::empty()).and_then(|()| make(parent, name))
            }
            made => made,
        };
        made.map_err(|error| wrong(path, error))
    }

    fn own(&mut self, path: &Components<'_>, with: &Attributes) -> Result<()> {
        let parent = self.enter(path.parents(), false)?;
        let name = path.split().map(|(_, name)| name).unwrap_or_default();
        let (uid, gid) = with.owner();
        let owned = chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|()| utimensat(parent, name, &with.times(), AtFlags::SYMLINK_NOFOLLOW));
        owned.map_err(|error| wrong(path, error))
    }
}

impl Level {
    fn new(name: OsString, fd: OwnedFd) -> rustix::io::Result<Self> {
        let mtime = modified(&fstat(&fd)?);
        Ok(Self { name, fd, mtime })
    }
}

fn make_directory(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    let fd = openat(parent, name, DIRECTORY, Mode::empty())?;
    fchmod(&fd, Mode::from_raw_mode(0o755))?;
    Ok(fd)
}

fn modified(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or_default() }
}

/// Gives a file that [`Tree::file`] made what it still lacks.
pub(crate) fn finish_file(
    file: &File,
    path: &Components<'_>,
    with: &Attributes,
    xattrs: &Xattrs,
) -> Result<()> {
    let done = apply(file, with, xattrs).and_then(|()| futimens(file, &with.times()));
    done.map_err(|error| wrong(path, error))
}

/// A change of the owner takes the setuid bit and capabilities away, so it comes first.
fn apply(fd: impl std::os::fd::AsFd, with: &Attributes, xattrs: &Xattrs) -> rustix::io::Result<()> {
    let (uid, gid) = with.owner();
    fchown(&fd, uid, gid)?;
    for (name, value) in xattrs {
        fsetxattr(&fd, OsStr::from_bytes(name), value, XattrFlags::empty())?;
    }
    fchmod(&fd, Mode::from_raw_mode(with.mode))
}

fn set_opaque(fd: impl std::os::fd::AsFd) -> rustix::io::Result<()> {
    fsetxattr(fd, OPAQUE, b"y", XattrFlags::empty())
}

fn kind(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<FileType>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        found => Ok(Some(FileType::from_raw_mode(found?.st_mode))),
    }
}

/// The only character devices here are whiteouts: no entry can make another.
fn is_whiteout(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    Ok(kind(parent, name)? == Some(FileType::CharacterDevice))
}

pub(crate) fn refused(path: &Components<'_>, rule: &str) -> host_core::PluginError {
    invalid(format!("{}: {rule}", text(path)))
}

fn text(path: &Components<'_>) -> String {
    let parts: Vec<&[u8]> = path.0.iter().map(|part| part.as_bytes()).collect();
    shown(&parts.join(&b'/'))
}

/// What the file system did not take: that is the archive's fault, or the host's.
fn wrong(path: &Components<'_>, error: Errno) -> host_core::PluginError {
    match error {
        Errno::INVAL | Errno::NAMETOOLONG | Errno::FBIG | Errno::MLINK | Errno::RANGE | Errno::TOOBIG => {
            invalid(format!("{} is nothing a file system takes", text(path)))
                .with_source(io::Error::from(error))
        }
        error => failed(&format!("make {} of a layer", text(path)), error),
    }
}
