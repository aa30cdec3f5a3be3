//! Images from registries: only what is missing, a few layers at a time, each verified before it is unpacked.

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use host_core::{
    ImageRef,
    runtime::{Image, OnProgress, PullProgress},
};
use oci_spec::image::ImageManifest;
use tokio::io::{AsyncWriteExt, BufWriter};

use crate::{
    Registry,
    digest::Digest,
    error::{Result, failed, invalid, not_found, within},
    image::{Blob, Configured, Document, NESTING_MAX, for_this_host, pair},
    name::{self, Name},
    registry::{Access, Remote},
    shelf::Shelf,
    stop::{Budget, Stop, StopOnDrop, blocking, blocking_until},
    work::{Ready, Work},
};

/// Layers under way at once.
const WIDTH: usize = 3;
const BUFFER_BYTES: usize = 256 << 10;

pub(crate) async fn pull(
    shelf: &Shelf,
    registry: Registry,
    timeout: Duration,
    image: &ImageRef,
    progress: OnProgress<'_>,
) -> Result<Image> {
    let name = Name::of(image)?;
    if name.as_id().is_some() {
        return Err(invalid(format!("{name} is no name that a registry knows")));
    }
    let reference = name::reference(image.as_str())?;
    let host = reference.registry().to_owned();
    let access = blocking(move |_| Access::read(&host, &registry)).await?;
    let remote = Remote::connect(reference, access, timeout).await?;
    let pulled = all_of(shelf, &remote, &name, progress).await;
    pulled.map_err(|error| within(format!("cannot pull {image}"), error))?;
    let (shelf, wanted) = (shelf.clone(), name.clone());
    let found = blocking(move |_| shelf.find(&wanted)).await?;
    found.ok_or_else(|| not_found(format!("image {name} was removed as soon as it was pulled")))
}

async fn all_of(shelf: &Shelf, remote: &Remote, name: &Name, progress: OnProgress<'_>) -> Result<()> {
    let manifest = manifest(remote).await?;
    let config = remote.document(&Blob::document(manifest.config())?).await?;
    let image = Configured::new(config)?;
    let layers = pair(&manifest, &image)?;
    let packed = layers.iter().fold(0u64, |sum, (_, blob)| sum.saturating_add(blob.size));
    if packed > shelf.limits.bytes {
        let max = shelf.limits.bytes;
        return Err(invalid(format!(
            "its layers are of {packed} bytes even packed; unpacked_bytes_max is {max}"
        )));
    }
    let shelf = shelf.clone();
    let work = Arc::new(blocking(move |_| Work::begin(&shelf)).await?);
    let layers = add_layers(&work, &image, layers, remote, progress).await;
    let ready = Ready { names: vec![name.clone()], image };
    blocking(move |_| {
        let named = layers.and_then(|()| work.name(&[ready]));
        let ended = Arc::into_inner(work).map_or(Ok(()), Work::end);
        named.and(ended)
    })
    .await
}

/// The manifest for this host.
async fn manifest(remote: &Remote) -> Result<ImageManifest> {
    let mut content = remote.manifest(None).await?;
    for _ in 0..NESTING_MAX {
        match Document::parse(&content)? {
            Document::Manifest(manifest) => return Ok(*manifest),
            Document::Index(index) => {
                let blob = Blob::document(for_this_host(&index)?)?;
                content = remote.manifest(Some(&blob.digest)).await?;
                blob.check(&Digest::of(&content), content.len() as u64)?;
            }
        }
    }
    Err(invalid("an index within an index within an index"))
}

/// Fetches and unpacks what is missing. When this returns, no thread works on it any more.
async fn add_layers(
    work: &Arc<Work>,
    image: &Configured,
    layers: Vec<(Digest, Blob)>,
    remote: &Remote,
    progress: OnProgress<'_>,
) -> Result<()> {
    let budget = work.budget();
    let (holder, wanted, paid_from) = (Arc::clone(work), image.clone(), Arc::clone(&budget));
    let missing = blocking(move |_| holder.hold(&wanted, &paid_from)).await?;
    let layers: BTreeMap<Digest, Blob> = layers.into_iter().collect();
    let told = Told::new(&layers, |layer| missing.contains(layer), progress);
    told.more(0);
    let guard = StopOnDrop::default();
    let fetching = Fetching { work, remote, budget: &budget, told: &told, stop: guard.stop() };
    // Made here and not by the stream, whose closure the compiler could not prove to be good for a task.
    let mut fetches = Vec::new();
    for (layer, blob) in layers.iter().filter(|(layer, _)| missing.contains(layer)) {
        fetches.push(fetching.layer(layer, blob));
    }
    let mut done = stream::iter(fetches).buffer_unordered(WIDTH);
    let mut outcome = Ok(());
    while let Some(layer) = done.next().await {
        if outcome.is_ok() && layer.is_err() {
            // The others end soon, and are waited for: what they are writing is about to be removed.
            fetching.stop.now();
            outcome = layer;
        }
    }
    outcome
}

struct Fetching<'a> {
    work: &'a Arc<Work>,
    remote: &'a Remote,
    budget: &'a Arc<Budget>,
    told: &'a Told<'a>,
    stop: Stop,
}

impl Fetching<'_> {
    async fn layer(&self, layer: &Digest, blob: &Blob) -> Result<()> {
        let path = self.work.path();
        let fetched = tokio::select! {
            biased;
            () = self.stop.told() => self.stop.check(),
            fetched = self.fetch(blob, &path) => fetched,
        };
        fetched.map_err(|error| within(format!("layer {layer}"), error))?;
        let (work, budget, layer) = (Arc::clone(self.work), Arc::clone(self.budget), layer.clone());
        blocking_until(&self.stop, move |stop| {
            let file = File::open(&path).map_err(|error| failed("read a fetched layer", error))?;
            work.add_layer(&layer, file, &budget, stop)?;
            // The next layers need its room.
            std::fs::remove_file(&path).map_err(|error| failed("remove a fetched layer", error))
        })
        .await
    }

    /// What is in the file then is the blob.
    async fn fetch(&self, blob: &Blob, path: &Path) -> Result<()> {
        let unwritten = |error| failed("write a fetched layer", error);
        let file = tokio::fs::File::create_new(path).await.map_err(unwritten)?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let mut pieces = self.remote.blob(blob).await?;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            file.write_all(&piece).await.map_err(unwritten)?;
            self.told.more(piece.len() as u64);
        }
        file.flush().await.map_err(unwritten)
    }
}

/// How far the layers are, together.
struct Told<'a> {
    done: AtomicU64,
    total: u64,
    progress: OnProgress<'a>,
}

impl<'a> Told<'a> {
    fn new(
        layers: &BTreeMap<Digest, Blob>,
        is_missing: impl Fn(&Digest) -> bool,
        progress: OnProgress<'a>,
    ) -> Self {
        let size = |(_, blob): (&Digest, &Blob)| blob.size;
        let there = layers.iter().filter(|(layer, _)| !is_missing(layer)).map(size).sum::<u64>();
        Self { done: there.into(), total: layers.iter().map(size).sum(), progress }
    }

    fn more(&self, bytes: u64) {
        let done_bytes = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(PullProgress { done_bytes, total_bytes: self.total });
    }
}
