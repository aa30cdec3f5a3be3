//! Pulls from a real registry.

use std::{fs, path::Path, sync::Mutex};

use host_core::{ErrorKind, chain, runtime::PullProgress};
use oci_images::Registry;
use serde_json::Value;

use crate::{
    build::{Image, Layer, Place, gzip, name},
    pull::config,
    real::{Asks, PASSWORD, Real, USER},
};

fn image(texts: &[&str]) -> Image {
    let layers: Vec<_> = texts.iter().map(|text| Layer::new().file("text", text).end()).collect();
    Image::packed(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>(), gzip)
}

/// Pulls the pushed image in every way that a caller may look at it.
async fn pulls(registry: &Real, section: Registry) {
    let image = image(&["lower", "upper"]);
    registry.push("1", &image).await;
    let place = Place::with(config(&registry.host, section)).await;
    let wanted = name(&registry.image("1"));
    let told = Mutex::new(PullProgress::default());
    let pulled = place.store.pull(&wanted, &|now| *told.lock().unwrap() = now).await;
    let pulled = pulled.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!((pulled.id.as_str(), &pulled.names[..]), (image.id().as_str(), &[wanted.clone()][..]));
    let total_bytes = image.layers.iter().map(|(layer, _)| layer.len() as u64).sum();
    assert_eq!(told.into_inner().unwrap(), PullProgress { done_bytes: total_bytes, total_bytes });
    assert_eq!(place.store.find(&wanted).await.unwrap().as_ref(), Some(&pulled));
    assert_eq!(place.store.pull(&wanted, &|_| ()).await.unwrap(), pulled);
    let layers = place.layers(wanted.as_str()).await;
    assert_eq!(fs::read_to_string(layers[0].join("text")).unwrap(), "upper");
    assert_eq!((layers.len(), place.count("tmp"), place.count("trash")), (2, 0, 0));
}

/// The kind of the failure and all that is said about it.
async fn refused(registry: &Real, section: Registry, tag: &str) -> (ErrorKind, String) {
    let place = Place::with(config(&registry.host, section)).await;
    let error = place.store.pull(&name(&registry.image(tag)), &|_| ()).await.unwrap_err();
    place.is_empty().await;
    (error.kind(), format!("{} {error:?}", chain(&error)))
}

#[tokio::test]
async fn anonymously() {
    let Some(registry) = Real::start(Asks::default()) else { return };
    pulls(&registry, registry.section()).await;
    for absent in [registry.image("absent"), format!("{}/no/such:1", registry.host)] {
        let place = Place::with(config(&registry.host, registry.section())).await;
        let error = place.store.pull(&name(&absent), &|_| ()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", chain(&error));
    }
    // Without TLS only when that is said.
    let (kind, told) = refused(&registry, Registry::default(), "1").await;
    assert_eq!(kind, ErrorKind::Unavailable, "{told}");
}

#[tokio::test]
async fn with_a_password() {
    let Some(registry) = Real::start(Asks { password: true, tls: false }) else { return };
    pulls(&registry, registry.section()).await;
    let wrong = "a-very-wrong-password-indeed";
    let (kind, told) = refused(
        &registry,
        Registry { password_file: Some(registry.secret(wrong)), ..registry.section() },
        "1",
    )
    .await;
    assert_eq!(kind, ErrorKind::Denied, "{told}");
    assert!(!told.contains(wrong) && !told.contains(PASSWORD), "{told}");
    let missing = Registry { username: None, password_file: None, ..registry.section() };
    let (kind, told) = refused(&registry, missing, "1").await;
    assert_eq!(kind, ErrorKind::Denied, "{told}");
    let unreadable = Registry { password_file: Some("/absent/password".into()), ..registry.section() };
    let (kind, told) = refused(&registry, unreadable, "1").await;
    assert_eq!(kind, ErrorKind::Denied, "{told}");
    let (kind, told) = refused(&registry, registry.section(), "absent").await;
    assert_eq!(kind, ErrorKind::NotFound, "{told}");
}

#[tokio::test]
async fn with_tls() {
    let Some(registry) = Real::start(Asks { password: false, tls: true }) else { return };
    pulls(&registry, registry.section()).await;
    // The system does not vouch for it.
    let (kind, told) = refused(&registry, Registry::default(), "1").await;
    assert_eq!(kind, ErrorKind::Unavailable, "{told}");
    for (ca_file, expected) in [("/absent/ca.pem", ErrorKind::Denied), ("/etc/passwd", ErrorKind::Invalid)] {
        let section = Registry { ca_file: Some(ca_file.into()), ..registry.section() };
        let (kind, told) = refused(&registry, section, "1").await;
        assert_eq!(kind, expected, "{told}");
    }
}

#[tokio::test]
async fn with_tls_and_a_password() {
    let Some(registry) = Real::start(Asks { password: true, tls: true }) else { return };
    pulls(&registry, registry.section()).await;
    let other = registry.section();
    assert_eq!(other.username.as_deref(), Some(USER));
    let missing = Registry { username: None, password_file: None, ..other };
    let (kind, told) = refused(&registry, missing, "1").await;
    assert_eq!(kind, ErrorKind::Denied, "{told}");
}

/// What the rest of the project runs, pushed and pulled.
#[tokio::test]
async fn the_test_image() {
    let Some(registry) = Real::start(Asks::default()) else { return };
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/test-mandelbox.tar");
    if !archive.exists() {
        assert!(std::env::var_os("CI").is_none(), "no {}", archive.display());
        return println!(
            "skipped: there is no {}; tests/mandelbox/make-image.sh makes it",
            archive.display()
        );
    }
    let layout = tempfile::tempdir().unwrap();
    tar::Archive::new(fs::File::open(archive).unwrap()).unpack(layout.path()).unwrap();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        fs::read(layout.path().join("blobs/sha256").join(&digest["sha256:".len()..])).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let manifest = blob(&index["manifests"][0]);
    let parts: Value = serde_json::from_slice(&manifest).unwrap();
    let blobs = [blob(&parts["config"]), blob(&parts["layers"][0])].into_iter();
    registry.push_all("current-build", &manifest, blobs).await;

    let place = Place::with(config(&registry.host, registry.section())).await;
    let wanted = name(&registry.image("current-build"));
    let pulled = place.store.pull(&wanted, &|_| ()).await.unwrap();
    assert_eq!(pulled.id, parts["config"]["digest"].as_str().unwrap());
    let layer = place.layers(wanted.as_str()).await.remove(0);
    assert!(layer.join("test-mandelbox").exists());
}
