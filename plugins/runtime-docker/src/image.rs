//! Images: which are here, and how more come.

use std::{collections::HashMap, path::Path};

use bollard::{
    errors::Error,
    models::{CreateImageInfo, ImageInspect},
    query_parameters::{
        CreateImageOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptions, TagImageOptionsBuilder,
    },
};
use engine_http::{Doing, invalid};
use futures::{StreamExt, TryStreamExt, pin_mut, stream};
use host_core::{
    ErrorKind, ImageRef, PluginError,
    runtime::{Image, OnProgress, PullProgress, Result},
};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::{engine::Engine, error::nonsense};

/// Look-ups in flight at once.
const WIDTH: usize = 8;
const CHUNK_BYTES: usize = 64 << 10;

/// A reference is part of a request's path: `..` in it would name something else.
pub(crate) fn checked(reference: &ImageRef) -> Result<&str> {
    let text = reference.as_str();
    if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid(format!("{text} is no image reference")));
    }
    Ok(text)
}

/// Name and tag, or name and digest; the tag is `latest` where there is neither, because an engine asked to pull
/// a bare name pulls every tag of it.
fn split(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, digest);
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

pub(crate) async fn find(engine: &Engine, reference: &ImageRef) -> Result<Option<Image>> {
    let name = checked(reference)?;
    match look_up(engine, name).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

async fn look_up(engine: &Engine, name: &str) -> Result<Image> {
    let doing = Doing("inspect image", name);
    let inspected = engine.look_up(doing, engine.api.inspect_image(name)).await?;
    image(inspected).ok_or_else(|| nonsense(doing, "an image without an id"))
}

fn image(inspected: ImageInspect) -> Option<Image> {
    let tags = inspected.repo_tags.unwrap_or_default();
    let digests = inspected.repo_digests.unwrap_or_default();
    Some(Image {
        id: inspected.id?,
        // A name such as `<none>:<none>` is none.
        names: tags.into_iter().chain(digests).filter_map(|name| name.try_into().ok()).collect(),
        size_bytes: inspected.size.unwrap_or_default().try_into().unwrap_or_default(),
        user: inspected.config.and_then(|config| config.user).unwrap_or_default(),
    })
}

/// The engine's list lacks the user, so each is looked up; one that goes away meanwhile is left out.
pub(crate) async fn all(engine: &Engine) -> Result<Vec<Image>> {
    let request = engine.api.list_images(None::<ListImagesOptions>);
    let listed = engine.look_up(Doing("list images", ""), request).await?;
    let found = stream::iter(listed)
        .map(|summary| async move { look_up(engine, &summary.id).await })
        .buffered(WIDTH)
        .filter_map(|found| async {
            match found {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                found => Some(found),
            }
        });
    found.try_collect().await
}

pub(crate) async fn pull(engine: &Engine, reference: &ImageRef, progress: OnProgress<'_>) -> Result<Image> {
    let (name, tag) = split(checked(reference)?);
    let doing = Doing("pull", reference.as_str());
    let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
    let steps = engine.api.create_image(Some(options), None, None);
    pin_mut!(steps);
    let mut layers = Layers::default();
    while let Some(step) = steps.next().await {
        let step = step.map_err(|error| engine.explain.failed(doing, error))?;
        if layers.take(step) {
            progress(layers.sum());
        }
    }
    look_up(engine, reference.as_str()).await
}

/// How much of each layer is here, and its size.
#[derive(Debug, Default)]
struct Layers(HashMap<String, PullProgress>);

impl Layers {
    /// Whether it changed anything.
    fn take(&mut self, step: CreateImageInfo) -> bool {
        let (Some(layer), Some(status)) = (step.id, step.status) else {
            return false;
        };
        match status.as_str() {
            "Downloading" => {
                let detail = step.progress_detail.unwrap_or_default();
                let bytes = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
                let done_bytes = bytes(detail.current).unwrap_or(0);
                let total_bytes = bytes(detail.total).unwrap_or(0).max(done_bytes);
                self.0.insert(layer, PullProgress { done_bytes, total_bytes });
                true
            }
            "Download complete" => self.0.get_mut(&layer).is_some_and(|known| {
                known.done_bytes = known.total_bytes;
                true
            }),
            _ => false,
        }
    }

    fn sum(&self) -> PullProgress {
        self.0.values().fold(PullProgress::default(), |sum, layer| PullProgress {
            done_bytes: sum.done_bytes + layer.done_bytes,
            total_bytes: sum.total_bytes + layer.total_bytes,
        })
    }
}

pub(crate) async fn load(engine: &Engine, archive: &Path) -> Result<Vec<ImageRef>> {
    let path = archive.display().to_string();
    let doing = Doing("load", &path);
    let file = open(archive).await.map_err(|error| invalid(format!("cannot {doing}")).with_source(error))?;
    let content = ReaderStream::with_capacity(file, CHUNK_BYTES);
    let options = ImportImageOptionsBuilder::new().quiet(true).build();
    let steps = engine.api.import_image_stream(options, content, None);
    pin_mut!(steps);
    let mut names = Vec::new();
    while let Some(step) = steps.next().await {
        let step = step.map_err(|error| not_loaded(engine, doing, error))?;
        names.extend(step.stream.as_deref().into_iter().flat_map(loaded_names));
    }
    if names.is_empty() {
        return Err(invalid(format!("cannot {doing}: it holds no image")));
    }
    Ok(names)
}

async fn open(archive: &Path) -> std::io::Result<File> {
    let file = File::open(archive).await?;
    if file.metadata().await?.is_file() { Ok(file) } else { Err(std::io::Error::other("not a regular file")) }
}

/// `Loaded image: test/mandelbox:current-build`, or the id of an image without a name. Podman has all names in one line.
fn loaded_names(line: &str) -> Vec<ImageRef> {
    match line.trim_end().split_once(": ") {
        Some(("Loaded image" | "Loaded image ID", names)) => {
            names.split(',').filter_map(|name| name.trim().parse().ok()).collect()
        }
        _ => Vec::new(),
    }
}

/// The engine has many texts for an archive that is none, and no status.
fn not_loaded(engine: &Engine, doing: Doing<'_>, error: Error) -> PluginError {
    let is_answer =
        matches!(error, Error::DockerStreamError { .. } | Error::DockerResponseServerError { .. });
    let error = engine.explain.failed(doing, error);
    if is_answer && error.kind() == ErrorKind::Internal {
        return invalid(format!("{error}; it must be what docker save writes, or an OCI layout"));
    }
    error
}

pub(crate) async fn tag(engine: &Engine, image: &ImageRef, name: &ImageRef) -> Result<()> {
    let image = checked(image)?;
    let (repo, tag) = split(checked(name)?);
    let options = TagImageOptionsBuilder::new().repo(repo).tag(tag).build();
    let doing = Doing("give another name to", image);
    let request = engine.api.tag_image(image, Some(options));
    engine.look_up(doing, request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_split_where_engines_split_it() {
        for (reference, expected) in [
            ("chrome", ("chrome", "latest")),
            ("browsers/chrome:current-build", ("browsers/chrome", "current-build")),
            ("127.0.0.1:5000/chrome", ("127.0.0.1:5000/chrome", "latest")),
            ("127.0.0.1:5000/chrome:1", ("127.0.0.1:5000/chrome", "1")),
            ("r.io/chrome@sha256:ab", ("r.io/chrome", "sha256:ab")),
        ] {
            assert_eq!(split(reference), expected);
        }
    }

    #[test]
    fn a_reference_cannot_name_another_path() {
        for bad in ["a/../../info", "a//b", "a/./b", "a/"] {
            assert!(checked(&bad.parse().unwrap()).is_err(), "{bad} was accepted");
        }
        assert!(checked(&"a..b/c:1.0".parse().unwrap()).is_ok());
    }

    #[test]
    fn loaded_names_are_read() {
        let names = |line| loaded_names(line).into_iter().map(String::from).collect::<Vec<_>>();
        assert_eq!(names("Loaded image: a/b:c\n"), ["a/b:c"]);
        assert_eq!(names("Loaded image ID: sha256:ab\n"), ["sha256:ab"]);
        assert_eq!(names("Loaded image: localhost/a:1,localhost/b:2\n"), ["localhost/a:1", "localhost/b:2"]);
        assert_eq!(names("The image a/b:c already exists, renaming the old one\n"), [""; 0]);
    }

    #[test]
    fn progress_is_the_sum_of_the_layers() {
        let step = |id: &str, status: &str, current, total| {
            let detail = serde_json::json!({ "current": current, "total": total });
            serde_json::from_value(
                serde_json::json!({ "id": id, "status": status, "progressDetail": detail }),
            )
            .unwrap()
        };
        let mut layers = Layers::default();
        assert!(!layers.take(step("a", "Pulling fs layer", 0, 0)));
        assert!(layers.take(step("a", "Downloading", 10, 100)));
        assert!(layers.take(step("b", "Downloading", 5, 50)));
        assert_eq!(layers.sum(), PullProgress { done_bytes: 15, total_bytes: 150 });
        assert!(layers.take(step("a", "Download complete", 0, 0)));
        assert!(!layers.take(step("a", "Extracting", 1, 100)));
        assert_eq!(layers.sum(), PullProgress { done_bytes: 105, total_bytes: 150 });
    }
}
