//! Images from archives: OCI layouts, and both forms of what `docker save` writes.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use host_core::ImageRef;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;

use crate::{
    archive::Archive,
    digest::Digest,
    error::{Result, invalid, within},
    image::{Blob, Configured, Document, NESTING_MAX, for_this_host, is_for_another_host, pair, parse},
    name::Name,
    shelf::Shelf,
    stop::{Budget, Stop},
    work::{Ready, Work},
};

/// The name in full, by those who build and save images.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// Sometimes the name in full, and sometimes only a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Images of one archive, one for every name. Their configurations are in memory together.
const IMAGES_MAX: usize = 128;

pub(crate) fn load(shelf: &Shelf, path: &Path, stop: &Stop) -> Result<Vec<ImageRef>> {
    let work = Work::begin(shelf)?;
    let loaded = all_of(path, &work, stop).and_then(|images| {
        work.name(&images)?;
        Ok(images)
    });
    let ended = work.end();
    let images = loaded.map_err(|error| within(format!("cannot load {}", path.display()), error))?;
    ended?;
    Ok(images.iter().flat_map(|image| &image.names).filter_map(Name::shown).collect())
}

fn all_of(path: &Path, work: &Work, stop: &Stop) -> Result<Vec<Ready>> {
    let archive = Archive::open(path, work, stop)?;
    let budget = work.budget();
    let mut ready = Vec::new();
    for found in found(&archive, stop)?.into_values() {
        unpack(&found, &archive, work, &budget, stop)?;
        let Found { mut names, image, .. } = found;
        if names.is_empty() {
            names.push(Name::id(&image.id));
        }
        ready.push(Ready { names, image });
    }
    Ok(ready)
}

fn unpack(found: &Found, archive: &Archive, work: &Work, budget: &Arc<Budget>, stop: &Stop) -> Result<()> {
    let mut missing = work.hold(&found.image, budget)?;
    for (id, layer) in &found.layers {
        stop.check()?;
        if !missing.remove(id) {
            continue;
        }
        let there = archive.member(&layer.member)?;
        let (content, _) = there.ok_or_else(|| invalid(format!("it lacks the layer {}", layer.member)))?;
        match &layer.blob {
            Some(blob) => work.add_layer(id, blob.verified(content), budget, stop)?,
            None => work.add_layer(id, content, budget, stop)?,
        }
    }
    Ok(())
}

/// An image of an archive.
#[derive(Debug)]
struct Found {
    names: Vec<Name>,
    image: Configured,
    layers: Vec<(Digest, Layer)>,
}

#[derive(Debug)]
struct Layer {
    member: String,
    /// What a layout says that it is; the older form says nothing but what the image does.
    blob: Option<Blob>,
}

/// By their ids: an archive lists an image once for every name.
type Images = BTreeMap<Digest, Found>;

fn add(images: &mut Images, found: Found) {
    let names = found.names.clone();
    let known = images.entry(found.image.id.clone()).or_insert(found);
    known.names.extend(names);
    known.names.sort();
    known.names.dedup();
}

/// # Errors
/// `Invalid` when it holds no image that this host can run.
fn found(archive: &Archive, stop: &Stop) -> Result<Images> {
    let docker = archive.document("manifest.json")?;
    let mut images = match archive.document("oci-layout")?.and(archive.document("index.json")?) {
        Some(index) => layout(archive, &index, stop)?,
        None if docker.is_none() => {
            return Err(invalid(
                "it is no image archive; it must be what docker save writes, or an OCI layout",
            ));
        }
        None => Images::new(),
    };
    let Some(docker) = docker else { return Ok(images) };
    let is_layout = !images.is_empty();
    let saved: Vec<Saved> = parse("what docker save writes", &docker)?;
    check_count(saved.len())?;
    for saved in saved {
        stop.check()?;
        // Beside a layout it only adds names.
        let found = saved.found(archive)?;
        if !is_layout || images.contains_key(&found.image.id) {
            add(&mut images, found);
        }
    }
    if images.is_empty() { Err(invalid("it holds no image")) } else { Ok(images) }
}

fn check_count(images: usize) -> Result<()> {
    if images > IMAGES_MAX {
        return Err(invalid(format!("it lists {images} images; an archive may have {IMAGES_MAX}")));
    }
    Ok(())
}

fn layout(archive: &Archive, index: &[u8], stop: &Stop) -> Result<Images> {
    let index: ImageIndex = parse("an OCI layout's index", index)?;
    let (others, ours): (Vec<_>, Vec<_>) =
        index.manifests().iter().partition(|found| is_for_another_host(found));
    if ours.is_empty() && !others.is_empty() {
        for_this_host(&index)?;
    }
    check_count(ours.len())?;
    let mut images = Images::new();
    for descriptor in ours {
        stop.check()?;
        let manifest = manifest(archive, descriptor)?;
        // Signatures and the like lie beside images.
        if is_image(&manifest) {
            add(&mut images, of_layout(archive, &manifest, names(descriptor)?)?);
        }
    }
    if images.is_empty() { Err(invalid("it holds no image")) } else { Ok(images) }
}

fn is_image(manifest: &ImageManifest) -> bool {
    let docker = "application/vnd.docker.container.image.v1+json";
    let kind = manifest.config().media_type();
    *kind == MediaType::ImageConfig || *kind == MediaType::Other(docker.to_owned())
}

/// The manifest for this host that a descriptor leads to.
fn manifest(archive: &Archive, descriptor: &Descriptor) -> Result<ImageManifest> {
    let mut descriptor = descriptor.clone();
    for _ in 0..NESTING_MAX {
        match Document::parse(&document(archive, &descriptor)?)? {
            Document::Manifest(manifest) => return Ok(*manifest),
            Document::Index(index) => descriptor = for_this_host(&index)?.clone(),
        }
    }
    Err(invalid("an index within an index within an index"))
}

fn of_layout(archive: &Archive, manifest: &ImageManifest, names: Vec<Name>) -> Result<Found> {
    let image = Configured::new(document(archive, manifest.config())?)?;
    let layers = pair(manifest, &image)?.into_iter();
    let layers = layers.map(|(id, blob)| (id, Layer { member: member(&blob.digest), blob: Some(blob) }));
    Ok(Found { names, layers: layers.collect(), image })
}

fn document(archive: &Archive, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let blob = Blob::document(descriptor)?;
    let name = member(&blob.digest);
    let (content, _) = archive.member(&name)?.ok_or_else(|| invalid(format!("it lacks {name}")))?;
    blob.read(content)
}

fn member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// # Errors
/// `Invalid` when the name of an image is none.
fn names(descriptor: &Descriptor) -> Result<Vec<Name>> {
    let Some(annotations) = descriptor.annotations() else {
        return Ok(Vec::new());
    };
    if let Some(name) = annotations.get(IMAGE_NAME) {
        return Ok(vec![given(name)?]);
    }
    let name = annotations.get(REF_NAME).filter(|name| name.contains([':', '/']));
    name.map(|name| given(name)).into_iter().collect()
}

/// # Errors
/// `Invalid` for a digest: it says what content is, and an archive could say anything.
fn given(name: &str) -> Result<Name> {
    let parsed = Name::parse(name)?;
    if parsed.has_digest() {
        return Err(invalid(format!("{name} names content; an archive can only give its images tags")));
    }
    Ok(parsed)
}

/// An image in the list that `docker save` writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Saved {
    fn found(self, archive: &Archive) -> Result<Found> {
        let config = archive.document(&self.config)?;
        let config = config.ok_or_else(|| invalid(format!("it lacks the configuration {}", self.config)))?;
        let image = Configured::new(config)?;
        if digest_in(&self.config).is_some_and(|said| said != image.id) {
            return Err(invalid(format!("the content of {} is {}", self.config, image.id)));
        }
        let (there, said) = (self.layers.len(), image.layers.len());
        if there != said {
            return Err(invalid(format!("it lists {there} layers, and the configuration {said}")));
        }
        let mut layers = Vec::new();
        for (id, member) in image.layers.iter().cloned().zip(self.layers) {
            let there = archive.member(&member)?;
            let (_, size) = there.ok_or_else(|| invalid(format!("it lacks the layer {member}")))?;
            let blob = digest_in(&member).map(|digest| Blob { digest, size });
            layers.push((id, Layer { member, blob }));
        }
        let tags = self.repo_tags.unwrap_or_default();
        let names = tags.iter().map(|name| given(name)).collect::<Result<_>>()?;
        Ok(Found { names, image, layers })
    }
}

/// `blobs/sha256/HEX` and `HEX.json` say what is in them.
fn digest_in(member: &str) -> Option<Digest> {
    let name = member.rsplit('/').next()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}
