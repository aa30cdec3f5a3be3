//! Manifests and configurations: read with limits, and checked against each other.

use std::{
    env::consts,
    io::{self, Read},
};

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os, Platform};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use crate::{
    digest::{Digest, Hasher},
    error::{Result, carried, invalid, unreadable},
};

/// Of a manifest, an index or a configuration. Registries take at most this much of a manifest.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Of one image: overlayfs stacks 500, but takes one page of options.
pub(crate) const LAYERS_MAX: usize = 127;
/// Indexes within indexes.
pub(crate) const NESTING_MAX: usize = 4;

/// A configuration whose digest is the image's id.
#[derive(Debug, Clone)]
pub(crate) struct Configured {
    pub(crate) id: Digest,
    /// Byte by byte as it came.
    pub(crate) config: Vec<u8>,
    parsed: ImageConfiguration,
    /// Digests of the layers' tars, lowest first.
    pub(crate) layers: Vec<Digest>,
}

impl Configured {
    /// # Errors
    /// `Invalid` when it is not for this host, or is none.
    pub(crate) fn new(config: Vec<u8>) -> Result<Self> {
        let parsed = configuration(&config)?;
        check_platform(parsed.os(), parsed.architecture())?;
        let layers =
            parsed.rootfs().diff_ids().iter().map(|id| id.parse()).collect::<Result<Vec<Digest>>>()?;
        match layers.len() {
            0 => return Err(invalid("the image has no layers")),
            count if count > LAYERS_MAX => {
                return Err(invalid(format!(
                    "the image has {count} layers; at most {LAYERS_MAX} can be stacked"
                )));
            }
            _ => {}
        }
        Ok(Self { id: Digest::of(&config), config, parsed, layers })
    }

    pub(crate) fn user(&self) -> &str {
        self.parsed.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default()
    }
}

pub(crate) fn configuration(content: &[u8]) -> Result<ImageConfiguration> {
    parse("an image configuration", content)
}

/// This host's architecture by the name that images use.
pub(crate) fn architecture() -> Arch {
    match consts::ARCH {
        "x86_64" => Arch::Amd64,
        "aarch64" => Arch::ARM64,
        "x86" => Arch::i386,
        other => Arch::from(other),
    }
}

/// # Errors
/// `Invalid`, naming both.
fn check_platform(os: &Os, architecture: &Arch) -> Result<()> {
    let host = self::architecture();
    if *os == Os::Linux && *architecture == host {
        return Ok(());
    }
    Err(invalid(format!("the image is for {os}/{architecture}, and this host is linux/{host}")))
}

/// A manifest, or a list of them for several platforms.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

impl Document {
    /// Their media types are many and sometimes left out; only one of the two has manifests in it. What has the parts
    /// of both would be one image to one reader and another to the next.
    pub(crate) fn parse(content: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Probe {
            manifests: Option<IgnoredAny>,
            config: Option<IgnoredAny>,
            layers: Option<IgnoredAny>,
        }
        let probe: Probe = parse("an image manifest", content)?;
        match (probe.manifests, probe.config.or(probe.layers)) {
            (Some(_), Some(_)) => Err(invalid("it is a manifest and an index at once")),
            (Some(_), None) => parse("an image index", content).map(Box::new).map(Self::Index),
            (None, _) => parse("an image manifest", content).map(Box::new).map(Self::Manifest),
        }
    }
}

fn fits(platform: &Platform) -> bool {
    *platform.os() == Os::Linux && *platform.architecture() == architecture()
}

/// Whether a descriptor says so; many say nothing.
pub(crate) fn is_for_another_host(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_some_and(|platform| !fits(platform))
}

/// The part of an index that is for this host.
///
/// # Errors
/// `Invalid`, naming what there is and what this host is.
pub(crate) fn for_this_host(index: &ImageIndex) -> Result<&Descriptor> {
    let manifests = index.manifests();
    if let Some(found) = manifests.iter().find(|manifest| manifest.platform().as_ref().is_some_and(fits)) {
        return Ok(found);
    }
    // Without a platform its configuration will say.
    if let [only] = &manifests[..]
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let there = manifests.iter().filter_map(|manifest| manifest.platform().as_ref());
    let there: Vec<String> =
        there.take(20).map(|platform| format!("{}/{}", platform.os(), platform.architecture())).collect();
    let there = if there.is_empty() { "no platform".to_owned() } else { there.join(", ") };
    Err(invalid(format!("the image is for {there}, and this host is linux/{}", architecture())))
}

/// A layer as a manifest has it.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Blob {
    pub(crate) fn of(descriptor: &Descriptor) -> Result<Self> {
        Ok(Self { digest: descriptor.digest().to_string().parse()?, size: descriptor.size() })
    }

    /// The same for what is kept in memory.
    pub(crate) fn document(descriptor: &Descriptor) -> Result<Self> {
        let blob = Self::of(descriptor)?;
        if blob.size > DOCUMENT_BYTES_MAX {
            let Self { digest, size } = &blob;
            return Err(invalid(format!(
                "{digest} is of {size} bytes; a manifest or configuration may have {DOCUMENT_BYTES_MAX}"
            )));
        }
        Ok(blob)
    }

    /// # Errors
    /// `Invalid` when the content is not what the descriptor says.
    pub(crate) fn check(&self, digest: &Digest, size: u64) -> Result<()> {
        let Self { digest: said, size: said_size } = self;
        if size != *said_size {
            return Err(invalid(format!("{said} is of {size} bytes, and its descriptor says {said_size}")));
        }
        if digest != said {
            return Err(invalid(format!("what should be {said} is {digest}")));
        }
        Ok(())
    }

    /// Reads no more than the descriptor says, and fails at the end if it was not this blob.
    pub(crate) fn verified<R: Read>(&self, inner: R) -> Verified<R> {
        Verified { inner, blob: self.clone(), hasher: Some(Hasher::default()), count: 0 }
    }

    /// The content, which must be small.
    pub(crate) fn read(&self, content: impl Read) -> Result<Vec<u8>> {
        let mut read = Vec::new();
        self.verified(content)
            .read_to_end(&mut read)
            .map_err(|error| unreadable(self.digest.as_str(), error))?;
        Ok(read)
    }
}

pub(crate) struct Verified<R> {
    inner: R,
    blob: Blob,
    hasher: Option<Hasher>,
    count: u64,
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        if count == 0 && !buffer.is_empty() {
            if let Some(hasher) = self.hasher.take() {
                self.blob.check(&hasher.finish(), self.count).map_err(carried)?;
            }
        } else if self.count > self.blob.size {
            let Blob { digest, size } = &self.blob;
            return Err(carried(invalid(format!(
                "{digest} is of more than the {size} bytes its descriptor says"
            ))));
        } else if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        Ok(count)
    }
}

/// Layers of a manifest with the digests of their tars, which the configuration has in the same order.
pub(crate) fn pair(manifest: &ImageManifest, image: &Configured) -> Result<Vec<(Digest, Blob)>> {
    let blobs = manifest.layers().iter().map(Blob::of).collect::<Result<Vec<_>>>()?;
    if blobs.len() != image.layers.len() {
        let (there, said) = (blobs.len(), image.layers.len());
        return Err(invalid(format!("the manifest has {there} layers, and the configuration {said}")));
    }
    Ok(image.layers.iter().cloned().zip(blobs).collect())
}

pub(crate) fn parse<T: DeserializeOwned>(what: &str, content: &[u8]) -> Result<T> {
    serde_json::from_slice(content).map_err(|error| invalid(format!("it is not {what}")).with_source(error))
}
