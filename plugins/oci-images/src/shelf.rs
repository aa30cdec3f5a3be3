//! The store's synchronous half: look-ups without a lock, changes under it, and what may be thrown away.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use host_core::{ErrorKind, PluginError, runtime::Image};
use oci_spec::image::ImageConfiguration;

use crate::{
    Unpacked,
    digest::Digest,
    error::{Result, failed, invalid, not_found},
    files::{self, Lock, Places},
    image,
    index::{Index, Record},
    name::Name,
    stop::Budget,
    work,
};

const USER_BYTES_MAX: usize = 200;

/// How much one image may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl Limits {
    pub(crate) fn budget(self) -> Budget {
        Budget::new(self.bytes, self.entries)
    }
}

/// The store's files. Nothing of what they say is kept in memory, because other processes change them.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(crate) places: Places,
    pub(crate) limits: Limits,
}

impl Shelf {
    pub(crate) fn open(root: PathBuf, limits: Limits) -> Result<Self> {
        let shown = root.display().to_string();
        let places =
            Places::make(root).map_err(|error| failed(&format!("make the image store {shown}"), error))?;
        let shelf = Self { places, limits };
        shelf.collect()?;
        Ok(shelf)
    }

    pub(crate) fn lock(&self) -> Result<Lock> {
        self.places.lock().map_err(|error| failed("lock the image store", error))
    }

    pub(crate) fn index(&self) -> Result<Index> {
        Index::read(&self.places.index)
    }

    pub(crate) fn find(&self, name: &Name) -> Result<Option<Image>> {
        let index = self.index()?;
        Ok(index.find(name).map(|(id, record)| index.image(id, record)))
    }

    pub(crate) fn all(&self) -> Result<Vec<Image>> {
        let index = self.index()?;
        Ok(index.images.iter().map(|(id, record)| index.image(id, record)).collect())
    }

    pub(crate) fn tag(&self, image: &Name, name: Name) -> Result<()> {
        if name.has_digest() {
            return Err(invalid(format!("{name} names content; give the image a tag")));
        }
        {
            let _lock = self.lock()?;
            let mut index = self.index()?;
            let id = index.find(image).ok_or_else(|| absent(image))?.0.clone();
            index.names.insert(name, id);
            index.write(&self.places.index)?;
        }
        self.collect()
    }

    pub(crate) fn acquire(&self, image: &Name, user: &str) -> Result<Unpacked> {
        let mark = self.mark_of(user)?;
        let _lock = self.lock()?;
        let index = self.index()?;
        let (id, record) = index.find(image).ok_or_else(|| absent(image))?;
        let unpacked = Unpacked {
            image: index.image(id, record),
            config: self.config(id)?,
            layers: layers_of(&index, record)?,
        };
        self.mark(&mark, user, id)?;
        Ok(unpacked)
    }

    /// A user's mark is the target of a link: it is there whole or not at all, and cheap to read. It need not
    /// outlive a crash of the host, because no container does.
    fn mark(&self, mark: &Path, user: &str, id: &Digest) -> Result<()> {
        match symlink(id.as_str(), mark) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match user_of(mark)? {
                Some(used) if used == *id => Ok(()),
                used => Err(PluginError::new(
                    ErrorKind::Conflict,
                    format!("{user} already uses {}", used.map_or_else(|| "nothing".into(), String::from)),
                )),
            },
            marked => marked.map_err(|error| failed("mark an image as used", error)),
        }
    }

    fn config(&self, id: &Digest) -> Result<ImageConfiguration> {
        let path = self.places.configs.join(id.hex());
        let content = fs::read(&path).map_err(|error| failed("read an image's configuration", error))?;
        if Digest::of(&content) != *id {
            let message = format!("{} has changed; load or pull the image again", path.display());
            return Err(PluginError::new(ErrorKind::Internal, message));
        }
        image::configuration(&content)
    }

    pub(crate) fn release(&self, user: &str) -> Result<()> {
        let mark = self.mark_of(user)?;
        fs::remove_file(mark).or_else(files::absent).map_err(|error| failed("release an image", error))?;
        self.collect()
    }

    pub(crate) fn users(&self) -> Result<Vec<String>> {
        files::names(&self.places.users).map_err(|error| failed("list the users of images", error))
    }

    fn mark_of(&self, user: &str) -> Result<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_safe =
            (1..=USER_BYTES_MAX).contains(&user.len()) && user.bytes().all(plain) && !user.starts_with('.');
        if is_safe {
            Ok(self.places.users.join(user))
        } else {
            Err(invalid(format!("{user:?} cannot use an image")))
        }
    }

    fn used(&self) -> Result<BTreeSet<Digest>> {
        let users = self.users()?;
        let used = users.iter().map(|user| user_of(&self.places.users.join(user)));
        Ok(used.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Throws away what no name, no user and no operation under way refers to. Under the lock it only moves things to
    /// the trash; what takes long comes after.
    pub(crate) fn collect(&self) -> Result<()> {
        loop {
            let lock = self.lock()?;
            let (held, left) = work::survey(&self.places)
                .map_err(|error| failed("look for leftovers of the image store", error))?;
            if left.is_empty() {
                self.forget(&held)?;
                drop(lock);
                return self.empty_trash();
            }
            // First of all, because on a full disk there is no room for a new index before they are gone.
            left.iter().try_for_each(|leftover| self.discard(leftover))?;
            drop(lock);
            self.empty_trash()?;
        }
    }

    fn forget(&self, held: &BTreeSet<Digest>) -> Result<()> {
        let mut index = self.index()?;
        if index.forget(&self.used()?, held) {
            index.write(&self.places.index)?;
        }
        self.unknown(&index)?.iter().try_for_each(|unknown| self.discard(unknown))
    }

    /// Layers and configurations that the index does not know.
    fn unknown(&self, index: &Index) -> Result<Vec<PathBuf>> {
        let layers: BTreeSet<&str> = index.layers.values().map(|layer| layer.directory.as_str()).collect();
        let configs: BTreeSet<&str> = index.images.keys().map(Digest::hex).collect();
        let mut unknown = Vec::new();
        for (directory, known) in [(&self.places.layers, layers), (&self.places.configs, configs)] {
            let names = files::names(directory).map_err(|error| failed("list the image store", error))?;
            let names = names.into_iter().filter(|name| !known.contains(name.as_str()));
            unknown.extend(names.map(|name| directory.join(name)));
        }
        Ok(unknown)
    }

    pub(crate) fn discard(&self, path: &Path) -> Result<()> {
        let moved = fs::rename(path, self.places.trash.join(files::unique()));
        moved.or_else(files::absent).map_err(|error| failed("remove from the image store", error))
    }

    fn empty_trash(&self) -> Result<()> {
        let empty = || {
            let names = files::names(&self.places.trash)?;
            names.iter().try_for_each(|name| files::remove(&self.places.trash.join(name)))
        };
        empty().map_err(|error| failed("empty the trash of the image store", error))
    }
}

fn absent(name: &Name) -> PluginError {
    not_found(format!("image {name} is not on this host"))
}

fn layers_of(index: &Index, record: &Record) -> Result<Vec<PathBuf>> {
    let broken = || PluginError::new(ErrorKind::Internal, "the index of images lacks a layer of the image");
    index.directories(record).ok_or_else(broken)
}

/// The image that a mark names; `None` for one that somebody has just removed.
fn user_of(mark: &Path) -> Result<Option<Digest>> {
    match fs::read_link(mark) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        target => {
            let target = target.map_err(|error| failed("read who uses an image", error))?;
            target.to_string_lossy().parse().map(Some)
        }
    }
}
