//! One load or pull under way: its own directory, and the layers that nobody may remove meanwhile.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::syncfs;

use crate::{
    digest::Digest,
    error::{Result, failed, invalid, within},
    files::{self, Places},
    image::Configured,
    index::{Index, Layer, Record},
    name::Name,
    shelf::Shelf,
    stop::{Budget, Stop},
    unpack::unpack,
};

const HELD: &str = "held.json";

/// An operation's directory in `tmp`. It is locked until this is dropped; then anybody may remove it.
#[derive(Debug)]
pub(crate) struct Work {
    shelf: Shelf,
    directory: PathBuf,
    _claim: File,
}

/// An image that is complete but for its name.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) names: Vec<Name>,
    pub(crate) image: Configured,
}

impl Work {
    pub(crate) fn begin(shelf: &Shelf) -> Result<Self> {
        let _lock = shelf.lock()?;
        let directory = shelf.places.tmp.join(files::unique());
        let claim = files::claim(&directory).map_err(|error| failed("make a working directory", error))?;
        Ok(Self { shelf: shelf.clone(), directory, _claim: claim })
    }

    /// A path in the working directory that nothing has.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.join(files::unique())
    }

    /// From now on the layers stay if they are there, and when they come. Says which are missing; the others are paid
    /// for, unless an image before has paid for them.
    pub(crate) fn hold(&self, image: &Configured, budget: &Budget) -> Result<BTreeSet<Digest>> {
        let _lock = self.shelf.lock()?;
        let doing = "hold the layers of an image";
        let path = self.directory.join(HELD);
        let before = held(&path);
        let held: BTreeSet<_> = before.iter().chain(&image.layers).collect();
        let content =
            serde_json::to_vec(&held).map_err(|error| failed(doing, std::io::Error::from(error)))?;
        // Not through a rename: only the owner and, under the lock, a collector read it.
        fs::write(&path, content).map_err(|error| failed(doing, error))?;
        let index = self.shelf.index()?;
        let wanted: BTreeSet<_> = image.layers.iter().cloned().collect();
        let (present, missing): (BTreeSet<_>, BTreeSet<_>) =
            wanted.into_iter().partition(|layer| self.find(&index, layer).is_some());
        for layer in present.difference(&before).filter_map(|layer| index.layers.get(layer)) {
            budget.take_bytes(layer.bytes)?;
        }
        Ok(missing)
    }

    /// A layer that is there. One whose directory somebody has removed is not: the next load or pull brings it again.
    fn find<'a>(&self, index: &'a Index, id: &Digest) -> Option<&'a Layer> {
        index.layers.get(id).filter(|layer| self.shelf.places.layers.join(&layer.directory).is_dir())
    }

    /// Unpacks a layer and puts it where images find it.
    pub(crate) fn add_layer(
        &self,
        id: &Digest,
        content: impl Read,
        budget: &Arc<Budget>,
        stop: &Stop,
    ) -> Result<()> {
        let unpacked = self.path();
        let layer = unpack(content, &unpacked, id, budget, stop);
        let layer = layer.map_err(|error| within(format!("layer {id}"), error))?;
        // Once for the whole layer, and before anything refers to it: after a crash of the host, what the index
        // names is complete.
        File::open(&unpacked)
            .and_then(|directory| Ok(syncfs(directory)?))
            .map_err(|error| failed("write a layer to disk", error))?;
        let _lock = self.shelf.lock()?;
        let mut index = self.shelf.index()?;
        if self.find(&index, id).is_some() {
            // Somebody else was first; this one goes with the working directory.
            return Ok(());
        }
        let known = index.layers.get(id).map(|lost| lost.directory.clone());
        let directory = known
            .or_else(|| index.free_directory(id))
            .ok_or_else(|| invalid(format!("no directory is left for the layer {id}")))?;
        let place = self.shelf.places.layers.join(&directory);
        // An earlier crash may have left something that the index does not know.
        self.shelf.discard(&place)?;
        fs::rename(&unpacked, &place)
            // On disk before the index is that names it.
            .and_then(|()| File::open(&self.shelf.places.layers)?.sync_all())
            .map_err(|error| failed("move a layer into place", error))?;
        let layer = Layer { directory, bytes: layer.bytes, hides_all: layer.hides_all };
        index.layers.insert(id.clone(), layer);
        index.write(&self.shelf.places.index)
    }

    /// All that one load or pull may take; and once more what an archive takes that has to be unpacked before it can be
    /// read.
    pub(crate) fn budget(&self) -> Arc<Budget> {
        Arc::new(self.shelf.limits.budget())
    }

    /// Gives the images their names, all or none.
    pub(crate) fn name(&self, images: &[Ready]) -> Result<()> {
        let _lock = self.shelf.lock()?;
        let mut index = self.shelf.index()?;
        for Ready { names, image } in images {
            if let Some(missing) = image.layers.iter().find(|layer| !index.layers.contains_key(layer)) {
                return Err(failed(
                    "name an image",
                    std::io::Error::other(format!("its layer {missing} is gone")),
                ));
            }
            let path = self.shelf.places.configs.join(image.id.hex());
            files::replace(&path, &image.config)
                .map_err(|error| failed("write an image's configuration", error))?;
            index.images.insert(image.id.clone(), record(image));
            index.names.extend(names.iter().map(|name| (name.clone(), image.id.clone())));
        }
        index.write(&self.shelf.places.index)
    }

    /// Gives up what is held and removes what is left, of a success as of a failure.
    pub(crate) fn end(self) -> Result<()> {
        let shelf = self.shelf.clone();
        drop(self);
        shelf.collect()
    }
}

fn record(image: &Configured) -> Record {
    Record { layers: image.layers.clone(), user: image.user().to_owned() }
}

/// What an operation holds. A file that is not there yet, or half written by somebody who crashed, holds nothing.
pub(crate) fn held(path: &std::path::Path) -> BTreeSet<Digest> {
    fs::read(path).ok().and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default()
}

/// All that live operations hold; the directories of others are returned too, as leftovers.
pub(crate) fn survey(places: &Places) -> std::io::Result<(BTreeSet<Digest>, Vec<PathBuf>)> {
    let (mut all, mut left) = (BTreeSet::new(), Vec::new());
    for name in files::names(&places.tmp)? {
        let directory = places.tmp.join(name);
        if files::is_claimed(&directory)? {
            all.extend(held(&directory.join(HELD)))
        } else {
            left.push(directory)
        }
    }
    Ok((all, left))
}
