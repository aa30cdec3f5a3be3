//! A store of container images: from OCI layouts, `docker save` archives and registries, unpacked for overlayfs.
//!
//! [`Store`] is the asynchronous face. Behind it `shelf` is the store on disk, `work` one load or pull under way, `load`
//! and `pull` where images come from, and `unpack` with `tape` and `tree` what makes a directory of a layer.
//!
//! There are no tasks. What blocks runs on tokio's threads for that and is awaited; when the future that awaits it is
//! dropped, it fails at its next read. What must not be left half done is done under the lock, on such a thread, and
//! takes no longer than a few small files do.
//!
//! # What always holds
//!
//! - Whoever reads the index finds every layer that it names complete, also after a crash of process or host.
//! - What is in the index was verified: each layer's tar by the digest in its image's configuration, and that by the
//!   image's id.
//! - Nothing is kept in memory between calls, so that several processes may use one store.
//! - Unpacking goes from open directories to plain names in them, never along a path that an archive could have bent.

mod archive;
mod compression;
mod config;
mod credentials;
mod digest;
mod error;
mod files;
mod image;
mod index;
mod load;
mod name;
mod pull;
mod registry;
mod shelf;
mod stop;
mod tape;
mod tree;
mod unpack;
mod work;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use crate::config::{Config, Registry};
use crate::{
    name::Name,
    shelf::{Limits, Shelf},
    stop::blocking,
};
use host_core::{
    ImageRef, PluginError,
    runtime::{Image, OnProgress},
};

/// An image in use.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// Which.
    pub image: Image,
    /// What it says about how it wants to run.
    pub config: oci_spec::image::ImageConfiguration,
    /// Directories of its layers for overlayfs, topmost first, relative to the store's root. Each is short, because
    /// overlayfs takes one page of options.
    pub layers: Vec<PathBuf>,
}

/// The store. Clones are the same store, and so are others of the same directory, in any process.
#[derive(Clone, Debug)]
pub struct Store {
    shelf: Shelf,
    config: Arc<Config>,
}

impl Store {
    /// Opens the store below `root`, made if it does not exist, and removes what a crash has left there.
    ///
    /// # Errors
    /// `Denied` or `Exhausted` for what the host refuses, `Internal` for an index that is damaged.
    pub async fn open(root: PathBuf, config: Config) -> Result<Self, PluginError> {
        // The expression for names takes milliseconds to compile, once in a process; not when a container waits.
        Name::parse("warm-up")?;
        let limits = Limits { bytes: config.unpacked_bytes_max, entries: config.entries_max };
        let shelf = blocking(move |_| Shelf::open(root, limits)).await?;
        Ok(Self { shelf, config: Arc::new(config) })
    }

    /// The directory that [`Unpacked::layers`] are relative to.
    pub fn root(&self) -> &Path {
        &self.shelf.places.root
    }

    /// The image that `image` names here.
    ///
    /// # Errors
    /// `Invalid` when it is no image reference.
    pub async fn find(&self, image: &ImageRef) -> Result<Option<Image>, PluginError> {
        let (shelf, name) = (self.shelf.clone(), Name::of(image)?);
        blocking(move |_| shelf.find(&name)).await
    }

    /// Every image here, also one that has lost its names and is still in use.
    pub async fn all(&self) -> Result<Vec<Image>, PluginError> {
        let shelf = self.shelf.clone();
        blocking(move |_| shelf.all()).await
    }

    /// Takes every image of an archive: an OCI layout or what `docker save` writes, packed with gzip or not, or a
    /// directory that is an OCI layout. All or none become visible, under the names that the archive has for them; one
    /// without a name goes by its id.
    ///
    /// # Errors
    /// `Invalid` when it is no such archive, is for another platform or breaks a rule; `Exhausted` when the disk is
    /// full. Either way nothing is left.
    pub async fn load(&self, archive: &Path) -> Result<Vec<ImageRef>, PluginError> {
        let (shelf, archive) = (self.shelf.clone(), archive.to_owned());
        blocking(move |stop| load::load(&shelf, &archive, stop)).await
    }

    /// Fetches an image from its registry, or confirms that what is here is current.
    ///
    /// # Errors
    /// `NotFound` when the registry has none, `Denied` for credentials, `Unavailable` for the network, and those of
    /// [`Store::load`].
    pub async fn pull(&self, image: &ImageRef, progress: OnProgress<'_>) -> Result<Image, PluginError> {
        let host = name::reference(image.as_str())?.registry().to_owned();
        let registry = self.config.registries.get(&host).cloned().unwrap_or_default();
        pull::pull(&self.shelf, registry, self.config.timeout, image, progress).await
    }

    /// Gives an image one more name, taken from another image if that has it.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when either is no image reference.
    pub async fn tag(&self, image: &ImageRef, name: &ImageRef) -> Result<(), PluginError> {
        let (shelf, image, name) = (self.shelf.clone(), Name::of(image)?, Name::of(name)?);
        blocking(move |_| shelf.tag(&image, name)).await
    }

    /// Keeps the image until [`Store::release`], also over restarts of this process.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when `user` already uses another image; `Invalid` when `user` is not 1 to 200 of A-Z
    /// a-z 0-9 . _ - without a leading dot.
    pub async fn acquire(&self, image: &ImageRef, user: &str) -> Result<Unpacked, PluginError> {
        let (shelf, image, user) = (self.shelf.clone(), Name::of(image)?, user.to_owned());
        blocking(move |_| shelf.acquire(&image, &user)).await
    }

    /// Ends what [`Store::acquire`] began; releasing what is not in use succeeds.
    ///
    /// # Errors
    /// `Invalid` for what cannot be a user.
    pub async fn release(&self, user: &str) -> Result<(), PluginError> {
        let (shelf, user) = (self.shelf.clone(), user.to_owned());
        blocking(move |_| shelf.release(&user)).await
    }

    /// Everybody who uses an image.
    pub async fn users(&self) -> Result<Vec<String>, PluginError> {
        let shelf = self.shelf.clone();
        blocking(move |_| shelf.users()).await
    }
}
