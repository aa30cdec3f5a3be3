//! What the store knows: one JSON file, replaced whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use host_core::{ErrorKind, PluginError, runtime::Image};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    error::{Result, failed},
    files,
    name::Name,
};

const VERSION: u32 = 1;
/// Hexadecimal digits of a layer's directory: short, because overlayfs takes 4096 bytes of options for up to 127.
const SHORT: usize = 16;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    version: u32,
    pub(crate) names: BTreeMap<Name, Digest>,
    pub(crate) images: BTreeMap<Digest, Record>,
    /// By the digest of their unpacked content.
    pub(crate) layers: BTreeMap<Digest, Layer>,
}

/// An image; its key is its configuration's digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Lowest first, as the configuration has them.
    pub(crate) layers: Vec<Digest>,
    pub(crate) user: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layer {
    /// Its name in `l`.
    pub(crate) directory: String,
    /// Size of its content.
    pub(crate) bytes: u64,
    /// It hides everything below it. Overlayfs has no such mark for the root of a layer.
    pub(crate) hides_all: bool,
}

impl Index {
    /// # Errors
    /// `Internal` when it is damaged or of a version that is not this one's.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let content = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            content => content.map_err(|error| failed("read the index of images", error))?,
        };
        let broken = || {
            let path = path.display();
            PluginError::new(
                ErrorKind::Internal,
                format!("{path} is not an index of images, version {VERSION}"),
            )
        };
        let index: Self = serde_json::from_slice(&content).map_err(|error| broken().with_source(error))?;
        if index.version == VERSION { Ok(index) } else { Err(broken()) }
    }

    pub(crate) fn write(&mut self, path: &Path) -> Result<()> {
        self.version = VERSION;
        let doing = "write the index of images";
        let content = serde_json::to_vec(self).map_err(|error| failed(doing, io::Error::from(error)))?;
        files::replace(path, &content).map_err(|error| failed(doing, error))
    }

    /// An id means the image of that id, whatever the names say.
    pub(crate) fn find(&self, name: &Name) -> Option<(&Digest, &Record)> {
        let id = name.as_id().or_else(|| self.names.get(name).cloned())?;
        self.images.get_key_value(&id)
    }

    pub(crate) fn image(&self, id: &Digest, record: &Record) -> Image {
        let named = self.names.iter().filter(|(_, named)| *named == id);
        let distinct: BTreeSet<_> = record.layers.iter().collect();
        let layers = distinct.into_iter().filter_map(|layer| self.layers.get(layer));
        Image {
            id: id.to_string(),
            names: named.filter_map(|(name, _)| name.shown()).collect(),
            size_bytes: layers.map(|layer| layer.bytes).sum(),
            user: record.user.clone(),
        }
    }

    /// Directories of an image's layers, topmost first. Overlayfs refuses the same directory twice, and a layer that
    /// comes again above makes the one below invisible.
    pub(crate) fn directories(&self, record: &Record) -> Option<Vec<PathBuf>> {
        let mut seen = BTreeSet::new();
        let mut directories = Vec::new();
        for id in record.layers.iter().rev().filter(|layer| seen.insert(*layer)) {
            let layer = self.layers.get(id)?;
            directories.push(Path::new(files::LAYERS).join(&layer.directory));
            if layer.hides_all {
                break;
            }
        }
        Some(directories)
    }

    /// A directory's name that no other layer has: two digests may begin the same, if somebody wants them to.
    pub(crate) fn free_directory(&self, layer: &Digest) -> Option<String> {
        let taken: BTreeSet<&str> = self.layers.values().map(|layer| layer.directory.as_str()).collect();
        let hex = layer.hex();
        let mut names = (0..=hex.len() - SHORT).filter_map(|start| hex.get(start..start + SHORT));
        names.find(|name| !taken.contains(name)).map(str::to_owned)
    }

    /// Forgets every image that has no name and is not in use, and every layer that is of no image and not held.
    /// Says whether there was anything.
    pub(crate) fn forget(&mut self, used: &BTreeSet<Digest>, held: &BTreeSet<Digest>) -> bool {
        let before = (self.images.len(), self.layers.len());
        let named: BTreeSet<Digest> = self.names.values().cloned().collect();
        self.images.retain(|id, _| named.contains(id) || used.contains(id));
        let needed: BTreeSet<&Digest> = self.images.values().flat_map(|record| &record.layers).collect();
        self.layers.retain(|id, _| needed.contains(id) || held.contains(id));
        before != (self.images.len(), self.layers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn layer(directory: &str, hides_all: bool) -> Layer {
        Layer { directory: directory.into(), bytes: 10, hides_all }
    }

    fn index(layers: &[(&str, bool)]) -> Index {
        let layers = layers.iter().map(|(name, hides_all)| (digest(name), layer(name, *hides_all)));
        Index { layers: layers.collect(), ..Index::default() }
    }

    fn record(layers: &[&str]) -> Record {
        Record { layers: layers.iter().map(|name| digest(name)).collect(), user: String::new() }
    }

    fn directories(index: &Index, layers: &[&str]) -> Vec<String> {
        let directories = index.directories(&record(layers)).unwrap();
        directories.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn layers_come_topmost_first_and_once() {
        let index = index(&[("a", false), ("b", false)]);
        assert_eq!(directories(&index, &["a", "b"]), ["l/b", "l/a"]);
        assert_eq!(directories(&index, &["a", "b", "a"]), ["l/a", "l/b"]);
        assert_eq!(index.image(&digest("i"), &record(&["a", "b", "a"])).size_bytes, 20);
    }

    #[test]
    fn an_id_is_looked_for_among_the_images_and_not_among_the_names() {
        let mut index = Index::default();
        for image in ["a", "b"] {
            index.images.insert(digest(image), record(&[]));
        }
        index.names.insert(Name::id(&digest("a")), digest("b"));
        index.names.insert(Name::id(&digest("c")), digest("b"));
        assert_eq!(index.find(&Name::id(&digest("a"))).unwrap().0, &digest("a"));
        assert_eq!(index.find(&Name::id(&digest("c"))), None);
    }

    #[test]
    fn nothing_is_below_a_layer_that_hides_all() {
        let index = index(&[("a", false), ("b", true), ("c", false)]);
        assert_eq!(directories(&index, &["a", "b", "c"]), ["l/c", "l/b"]);
    }

    #[test]
    fn layers_whose_digests_begin_the_same_do_not_share_a_directory() {
        let layer = digest("a");
        let mut index = Index::default();
        assert_eq!(index.free_directory(&layer).unwrap(), layer.hex()[..SHORT]);
        let taken = Layer { directory: layer.hex()[..SHORT].into(), bytes: 0, hides_all: false };
        index.layers.insert(digest("b"), taken);
        assert_eq!(index.free_directory(&layer).unwrap(), layer.hex()[1..=SHORT]);
    }

    #[test]
    fn only_what_nothing_refers_to_is_forgotten() {
        let mut index = index(&[("a", false), ("b", false), ("c", false), ("d", false)]);
        for (image, layers) in [("named", ["a", "b"]), ("used", ["a", "c"]), ("neither", ["a", "d"])] {
            index.images.insert(digest(image), record(&layers));
        }
        index.names.insert(Name::parse("x").unwrap(), digest("named"));
        let (used, held) = ([digest("used")].into(), [digest("d")].into());
        assert!(index.forget(&used, &held));
        assert!(!index.forget(&used, &held));
        assert_eq!((index.images.len(), index.layers.len()), (2, 4));
        assert!(index.forget(&BTreeSet::new(), &BTreeSet::new()));
        assert!(index.layers.contains_key(&digest("b")) && !index.layers.contains_key(&digest("c")));
    }
}
