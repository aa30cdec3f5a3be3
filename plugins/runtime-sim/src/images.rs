//! The images of the simulated engine: names only.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use host_core::{
    ErrorKind, ImageRef, PluginError,
    runtime::{Image, Result},
};

#[derive(Debug)]
pub(crate) struct Images {
    /// Every name that is not absent is present.
    everything: bool,
    /// From name to id.
    present: BTreeMap<ImageRef, String>,
    absent: BTreeSet<ImageRef>,
    /// What can be pulled.
    registry: BTreeSet<ImageRef>,
}

impl Images {
    /// `None` means every image that anybody asks for.
    pub(crate) fn new(images: Option<Vec<ImageRef>>) -> Self {
        let mut new = Self {
            everything: images.is_none(),
            present: BTreeMap::new(),
            absent: BTreeSet::new(),
            registry: BTreeSet::new(),
        };
        for image in images.into_iter().flatten() {
            new.add(image);
        }
        new
    }

    pub(crate) fn add(&mut self, name: ImageRef) {
        self.absent.remove(&name);
        let id = id_of(&name);
        self.present.entry(name).or_insert(id);
    }

    pub(crate) fn remove(&mut self, name: &ImageRef) {
        self.present.remove(name);
        self.absent.insert(name.clone());
    }

    pub(crate) fn publish(&mut self, name: ImageRef) {
        self.registry.insert(name);
    }

    pub(crate) fn has(&self, name: &ImageRef) -> bool {
        self.present.contains_key(name) || (self.everything && !self.absent.contains(name))
    }

    pub(crate) fn find(&self, name: &ImageRef) -> Option<Image> {
        if !self.has(name) {
            return None;
        }
        let id = self.present.get(name).cloned().unwrap_or_else(|| id_of(name));
        let mut image = self.image(&id);
        if !image.names.contains(name) {
            image.names.push(name.clone());
        }
        Some(image)
    }

    pub(crate) fn all(&self) -> Vec<Image> {
        let ids: BTreeSet<_> = self.present.values().collect();
        ids.into_iter().map(|id| self.image(id)).collect()
    }

    fn image(&self, id: &str) -> Image {
        let names = self.present.iter().filter(|(_, named)| *named == id);
        Image {
            id: id.to_owned(),
            names: names.map(|(name, _)| name.clone()).collect(),
            size_bytes: 0,
            user: String::new(),
        }
    }

    pub(crate) fn pull(&mut self, name: &ImageRef) -> Result<Image> {
        if self.registry.contains(name) {
            self.add(name.clone());
        }
        self.find(name).ok_or_else(|| no_image(name))
    }

    pub(crate) fn tag(&mut self, image: &ImageRef, name: &ImageRef) -> Result<()> {
        let found = self.find(image).ok_or_else(|| no_image(image))?;
        self.absent.remove(name);
        self.present.insert(name.clone(), found.id);
        Ok(())
    }
}

fn no_image(name: &ImageRef) -> PluginError {
    PluginError::new(ErrorKind::NotFound, format!("there is no image {name}"))
}

/// The same name always has the same content.
fn id_of(name: &ImageRef) -> String {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    format!("sha256:{:064x}", hasher.finish())
}
