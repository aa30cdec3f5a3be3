//! The image of an application: which one, and here.

use host_config::Pull;
use host_core::{
    AppName, ErrorKind, ImageRef, PluginError,
    runtime::{Image, PullProgress},
};

use super::Shared;
use crate::deadline::within;

/// The image to run, present on this host.
///
/// # Errors
/// It is not here and cannot or must not be fetched.
pub(super) async fn present(shared: &Shared, app: &AppName) -> Result<ImageRef, PluginError> {
    let settings = &shared.settings.mandelbox;
    let wanted = settings
        .image
        .image(app)
        .map_err(|error| PluginError::new(ErrorKind::Invalid, "the image's name").with_source(error))?;
    let found = find(shared, app, wanted);
    within(settings.timeouts.image, "looking for the image", found).await
}

async fn find(shared: &Shared, app: &AppName, wanted: ImageRef) -> Result<ImageRef, PluginError> {
    let settings = &shared.settings.mandelbox;
    if settings.pull != Pull::Always && shared.runtime.image(&wanted).await?.is_some() {
        return Ok(wanted);
    }
    if settings.match_local_images
        && let Some(local) = matching(app, &shared.runtime.images().await?)
    {
        return Ok(local);
    }
    if settings.pull == Pull::Never {
        let message = format!(
            "image {wanted} is not on this host; load it with `host-service image load FILE`, or set mandelbox.pull"
        );
        return Err(PluginError::new(ErrorKind::NotFound, message));
    }
    tracing::info!(image = %wanted, "pulling");
    shared.runtime.pull(&wanted, &|_: PullProgress| {}).await?;
    Ok(wanted)
}

/// A local image whose name is the application's, in whatever registry or organisation, for example
/// `ghcr.io/org/dev/browsers/chrome:x` for `browsers/chrome`. The usual tag wins, then `latest`.
fn matching(app: &AppName, images: &[Image]) -> Option<ImageRef> {
    let names = images.iter().flat_map(|image| &image.names);
    let matches = names.filter(|name| is_image_of(name, app));
    matches.min_by_key(|name| (rank(name), name.as_str().len(), name.as_str().to_owned())).cloned()
}

/// Whether an image's repository, in whatever registry or organisation, is the application's.
pub(crate) fn is_image_of(name: &ImageRef, app: &AppName) -> bool {
    let before = repository(name).strip_suffix(app.as_str());
    before.is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

fn rank(name: &ImageRef) -> u8 {
    match name.as_str().rsplit_once(':') {
        Some((_, "current-build")) => 0,
        Some((_, "latest")) => 1,
        _ => 2,
    }
}

/// Without tag and digest. A colon before the last slash belongs to a registry's port.
fn repository(name: &ImageRef) -> &str {
    let name = name.as_str().split('@').next().unwrap_or_default();
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(names: &[&str]) -> Vec<Image> {
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        vec![Image { id: "sha256:0".into(), names, size_bytes: 0, user: String::new() }]
    }

    fn found(app: &str, names: &[&str]) -> Option<String> {
        matching(&app.parse().unwrap(), &images(names)).map(|name| name.to_string())
    }

    #[test]
    fn any_local_image_of_that_name_is_found_and_the_usual_tag_wins() {
        let names = [
            "browsers/chrome:old",
            "localhost:5000/dev/browsers/chrome:current-build",
            "other/chrome:latest",
        ];
        assert_eq!(found("browsers/chrome", &names).as_deref(), Some(names[1]));
        assert_eq!(found("browsers/chrome", &["browsers/chrome"]).as_deref(), Some("browsers/chrome"));
        assert_eq!(found("browsers/chrome", &["notbrowsers/chrome:latest", "browsers/chromes:latest"]), None);
        assert_eq!(found("chrome", &["localhost:5000/chrome"]).as_deref(), Some("localhost:5000/chrome"));
    }

    #[test]
    fn an_image_belongs_to_an_app_by_its_repository() {
        let of = |image: &str| is_image_of(&image.parse().unwrap(), &"browsers/chrome".parse().unwrap());
        for image in ["browsers/chrome", "browsers/chrome:x", "localhost:5000/dev/browsers/chrome@sha256:0"] {
            assert!(of(image), "{image}");
        }
        for image in ["xbrowsers/chrome", "browsers/chrome2:x", "localhost:5000/browsers/firefox"] {
            assert!(!of(image), "{image}");
        }
    }
}
