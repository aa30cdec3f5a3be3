//! Images: which are here, and how more come.
//!
//! Podman's names are whole: what is loaded as `a/b:c` is `localhost/a/b:c`, and what was pulled is `docker.io/a/b:c`.
//! The host service's names are those that people write, so a short name is looked for under both, and told short.

use std::{net::IpAddr, path::Path};

use engine_http::{Doing, file, invalid};
use futures::{StreamExt, TryStreamExt, stream};
use host_core::{
    ErrorKind, ImageRef, PluginError,
    runtime::{Image, Result},
};
use http::Method;
use podman_api::{
    models::ImageData,
    opts::{ImageListOpts, ImageTagOpts, PullOpts},
};
use serde::Deserialize;
use tokio::fs::File;

use crate::{
    engine::Engine,
    error::{nonsense, refused},
};

/// Look-ups in flight at once.
const WIDTH: usize = 8;

/// A reference is part of a request's path: `..` in it would name something else.
fn checked(reference: &ImageRef) -> Result<&str> {
    let text = reference.as_str();
    if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(invalid(format!("{text} is no image reference")));
    }
    Ok(text)
}

/// What a reference may mean here, in the order of looking.
fn meanings(reference: &ImageRef) -> Result<Vec<String>> {
    let text = checked(reference)?;
    Ok([text.to_owned()].into_iter().chain(on_hub(text)).collect())
}

/// The whole name of a short one in the registry that short names are from; `None` for a name that is whole, or an id.
fn on_hub(reference: &str) -> Option<String> {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.split_once('/') {
        Some((first, _)) if first == "localhost" || first.contains(['.', ':']) => None,
        Some(_) => Some(format!("docker.io/{reference}")),
        None if reference.starts_with("sha256:") => None,
        None => Some(format!("docker.io/library/{reference}")),
    }
}

/// As people write it.
fn short(name: &str) -> &str {
    ["localhost/", "docker.io/library/", "docker.io/"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
}

pub(crate) async fn find(engine: &Engine, reference: &ImageRef) -> Result<Option<Image>> {
    for name in meanings(reference)? {
        match look_up(engine, &name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            found => return found.map(Some),
        }
    }
    Ok(None)
}

/// The name under which an image for this host's processor is here. The engine would start it for any other, and tell of
/// nothing but its end.
pub(crate) async fn runnable(engine: &Engine, reference: &ImageRef) -> Result<String> {
    for name in meanings(reference)? {
        let architecture = match inspected(engine, &name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            found => found?.architecture.unwrap_or_default(),
        };
        let host = &engine.support.architecture;
        if architecture.is_empty() || architecture == *host {
            return Ok(name);
        }
        return Err(invalid(format!("{name} is for {architecture}, and this host is {host}")));
    }
    Err(PluginError::new(ErrorKind::NotFound, format!("{reference} is not here")))
}

async fn look_up(engine: &Engine, name: &str) -> Result<Image> {
    let inspected = inspected(engine, name).await?;
    image(inspected).ok_or_else(|| nonsense(Doing("inspect image", name), "an image without an id"))
}

async fn inspected(engine: &Engine, name: &str) -> Result<ImageData> {
    engine.look_up(Doing("inspect image", name), engine.api.images().get(name).inspect()).await
}

fn image(inspected: ImageData) -> Option<Image> {
    let tags = inspected.repo_tags.unwrap_or_default();
    let digests = inspected.repo_digests.unwrap_or_default();
    Some(Image {
        id: format!("sha256:{}", inspected.id?),
        names: tags.iter().chain(&digests).filter_map(|name| short(name).parse().ok()).collect(),
        size_bytes: inspected.size.unwrap_or_default().try_into().unwrap_or_default(),
        user: inspected.user.unwrap_or_default(),
    })
}

/// The engine's list lacks the user, so each is looked up; one that goes away meanwhile is left out.
pub(crate) async fn all(engine: &Engine) -> Result<Vec<Image>> {
    let (images, options) = (engine.api.images(), ImageListOpts::default());
    let listed = engine.look_up(Doing("list images", ""), images.list(&options)).await?;
    let ids = listed.into_iter().filter_map(|image| image.id);
    let found = stream::iter(ids)
        .map(|id| async move { look_up(engine, &id).await })
        .buffered(WIDTH)
        .filter_map(|found| async {
            match found {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                found => Some(found),
            }
        });
    found.try_collect().await
}

/// The engine tells no bytes while it pulls, so neither is the caller told.
pub(crate) async fn pull(engine: &Engine, reference: &ImageRef) -> Result<Image> {
    let name = checked(reference)?;
    let name = on_hub(name).unwrap_or_else(|| name.to_owned());
    let doing = Doing("pull", reference.as_str());
    let options = PullOpts::builder().reference(&*name).tls_verify(!is_loopback(&name)).build();
    let images = engine.api.images();
    let mut steps = images.pull(&options);
    while let Some(step) = steps.next().await {
        let step = step.map_err(|error| engine.explain.failed(doing, error))?;
        if let Some(error) = step.error.filter(|error| !error.is_empty()) {
            return Err(refused(doing, 200, &error));
        }
    }
    look_up(engine, &name).await
}

/// A registry on this host needs no encryption, as with Docker.
fn is_loopback(name: &str) -> bool {
    let host = name.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Loaded {
    names: Option<Vec<String>>,
}

/// Past podman-api, which wants the archive in memory, and has it there twice.
pub(crate) async fn load(engine: &Engine, archive: &Path) -> Result<Vec<ImageRef>> {
    let path = archive.display().to_string();
    let doing = Doing("load", &path);
    let content =
        open(archive).await.map_err(|error| invalid(format!("cannot {doing}")).with_source(error))?;
    let answer = engine.send(doing, Method::POST, "/images/load", file(content)).await;
    let loaded: Loaded = engine.read(doing, answer.map_err(not_loaded)?).await?;
    let names = loaded.names.unwrap_or_default();
    let names: Vec<ImageRef> = names.iter().filter_map(|name| short(name).parse().ok()).collect();
    if names.is_empty() {
        return Err(invalid(format!("cannot {doing}: it holds no image")));
    }
    Ok(names)
}

async fn open(archive: &Path) -> std::io::Result<File> {
    let file = File::open(archive).await?;
    if file.metadata().await?.is_file() { Ok(file) } else { Err(std::io::Error::other("not a regular file")) }
}

/// The engine has many texts for an archive that is none, and no status.
fn not_loaded(error: PluginError) -> PluginError {
    match error.kind() {
        ErrorKind::Internal | ErrorKind::Invalid => {
            invalid(format!("{error}; it must be what docker save writes, or an OCI layout"))
        }
        _ => error,
    }
}

pub(crate) async fn tag(engine: &Engine, image: &ImageRef, name: &ImageRef) -> Result<()> {
    let doing = Doing("give another name to", image.as_str());
    let Some(found) = find(engine, image).await? else {
        return Err(PluginError::new(ErrorKind::NotFound, format!("cannot {doing}: no such image")));
    };
    let (repo, tag) = split(checked(name)?);
    let options = ImageTagOpts::builder().repo(repo).tag(tag).build();
    let found = engine.api.images().get(found.id.trim_start_matches("sha256:"));
    engine.look_up(doing, found.tag(&options)).await
}

fn split(reference: &str) -> (&str, &str) {
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_looked_for_and_told_as_people_write_it() {
        for (written, whole) in [
            ("chrome", Some("docker.io/library/chrome")),
            ("browsers/chrome:1", Some("docker.io/browsers/chrome:1")),
            ("localhost/chrome", None),
            ("127.0.0.1:5000/chrome", None),
            ("r.io/chrome@sha256:ab", None),
            ("sha256:ab", None),
        ] {
            assert_eq!(on_hub(written).as_deref(), whole, "{written}");
            assert_eq!(short(whole.unwrap_or(written)), written.trim_start_matches("localhost/"));
        }
    }

    #[test]
    fn a_reference_cannot_name_another_path() {
        for bad in ["a/../../info", "a//b", "a/./b", "a/"] {
            assert!(meanings(&bad.parse().unwrap()).is_err(), "{bad} was accepted");
        }
        assert!(meanings(&"a..b/c:1.0".parse().unwrap()).is_ok());
    }

    #[test]
    fn only_a_registry_on_this_host_goes_without_encryption() {
        for (name, expected) in [
            ("127.0.0.1:5000/a", true),
            ("localhost:5000/a", true),
            ("[::1]:5000/a", true),
            ("10.0.0.1:5000/a", false),
            ("docker.io/a/b:c", false),
            ("localhost.example.com/a", false),
        ] {
            assert_eq!(is_loopback(name), expected, "{name}");
        }
    }
}
