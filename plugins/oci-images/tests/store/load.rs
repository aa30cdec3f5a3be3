//! Archives that are taken.

use std::{fs, path::Path};

use host_core::ErrorKind;
use oci_images::{Config, Store};
use serde_json::json;
use tar::{EntryType, Header};

use crate::build::{
    INDEX, Image, Layer, MANIFEST, Members, Place, architecture, blob_name, descriptor, gzip, name,
};

fn layer(text: &str) -> Vec<u8> {
    Layer::new().directory("etc").file("etc/text", text).end()
}

async fn holds(place: &Place, image: &str, text: &str) {
    let layers = place.layers(image).await;
    let found = layers.iter().find_map(|layer| fs::read_to_string(layer.join("etc/text")).ok());
    assert_eq!(found.as_deref(), Some(text), "{image}");
}

#[tokio::test]
async fn a_layout_is_loaded() {
    let place = Place::new().await;
    let image = Image::new(&[&layer("lower"), &layer("upper")]).named("docker.io/test/a:1").named("b");
    let names = place.load(&image.layout()).await.unwrap();
    assert_eq!(names, [name("b:latest"), name("test/a:1")]);
    holds(&place, "test/a:1", "upper").await;
    let found = place.store.find(&name("docker.io/test/a:1")).await.unwrap().unwrap();
    assert_eq!(found.id, image.id());
    assert_eq!(found.names, [name("b:latest"), name("test/a:1")]);
    assert_eq!((found.size_bytes, found.user.as_str()), (10, "1000"));
    assert_eq!(place.store.all().await.unwrap(), std::slice::from_ref(&found));
    assert_eq!(place.store.find(&name(&image.id())).await.unwrap().unwrap(), found);
    assert_eq!(place.store.find(&name("test/a:2")).await.unwrap(), None);
}

#[tokio::test]
async fn a_packed_layout_with_packed_layers_is_loaded() {
    let place = Place::new().await;
    let image = Image::packed(&[&layer("lower"), &layer("upper")], gzip).named("a");
    place.load(&gzip(&image.layout())).await.unwrap();
    holds(&place, "a", "upper").await;
    assert_eq!(place.count("tmp"), 0);
}

#[tokio::test]
async fn a_directory_is_loaded() {
    let place = Place::new().await;
    let directory = place.directory.path().join("layout");
    Image::new(&[&layer("x")]).named("a").members().write(&directory);
    assert_eq!(place.store.load(&directory).await.unwrap(), [name("a:latest")]);
    holds(&place, "a", "x").await;
}

#[tokio::test]
async fn what_docker_saved_is_loaded() {
    let place = Place::new().await;
    let image = Image::new(&[&layer("lower"), &layer("upper")]).named("test/a:1").named("b:2");
    assert_eq!(place.load(&image.saved().tar()).await.unwrap(), [name("b:2"), name("test/a:1")]);
    holds(&place, "b:2", "upper").await;
}

#[tokio::test]
async fn a_layer_may_be_a_link_to_another() {
    let place = Place::new().await;
    let (lower, upper) = (layer("lower"), layer("upper"));
    let mut members = Image::new(&[&lower, &upper, &lower]).named("a").saved();
    members.0.remove("2/layer.tar");
    let archive = members.tar_with(|builder| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "2/layer.tar", "../0/layer.tar").unwrap();
    });
    place.load(&archive).await.unwrap();
    // The same layer twice is there once, on top.
    assert_eq!(place.layers("a").await.len(), 2);
    holds(&place, "a", "lower").await;
}

#[tokio::test]
async fn names_of_both_forms_are_taken_when_both_are_there() {
    let place = Place::new().await;
    let image = Image::new(&[&layer("x")]);
    let mut members = image.members();
    let saved = json!([{
        "Config": blob_name(&image.config()),
        "RepoTags": ["test/a:1"],
        "Layers": [blob_name(&image.layers[0].0)],
    }]);
    members.set("manifest.json", &serde_json::to_vec(&saved).unwrap());
    assert_eq!(place.load(&members.tar()).await.unwrap(), [name("test/a:1")]);
}

#[tokio::test]
async fn an_image_without_a_name_goes_by_its_id() {
    let place = Place::new().await;
    let image = Image::new(&[&layer("x")]);
    assert_eq!(place.load(&image.layout()).await.unwrap(), [name(&image.id())]);
    holds(&place, &image.id(), "x").await;
}

#[tokio::test]
async fn an_archive_cannot_take_the_name_of_content() {
    let place = Place::new().await;
    let other = Image::new(&[&layer("other")]).id();
    for digest in [other.clone(), format!("test/a@{other}"), format!("test/a:1@{other}")] {
        let image = Image::new(&[&layer("x")]).named(&digest);
        place.refuses(&image.layout(), "names content").await;
        place.refuses(&image.saved().tar(), "names content").await;
        let mut members = image.members();
        members.edit("index.json", |index| {
            index["manifests"][0]["annotations"] = json!({ "org.opencontainers.image.ref.name": digest });
        });
        place.refuses(&members.tar(), "names content").await;
    }
}

#[tokio::test]
async fn this_host_is_chosen_from_an_index() {
    let place = Place::new().await;
    let (ours, mut other) = (Image::new(&[&layer("ours")]), Image::new(&[&layer("other")]));
    other.config["architecture"] = json!("s390x");
    let mut members = ours.members();
    members.0.extend(other.members().0);
    let entry = |image: &Image, architecture: &str| {
        let mut entry = descriptor(MANIFEST, &serde_json::to_vec(&image.manifest()).unwrap());
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let manifests = [entry(&other, "s390x"), entry(&ours, architecture())];
    let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": manifests })).unwrap();
    members.blob(&index);
    let mut entry = descriptor(INDEX, &index);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "test/a:1" });
    members.index(&[entry]);
    assert_eq!(place.load(&members.tar()).await.unwrap(), [name("test/a:1")]);
    holds(&place, "test/a:1", "ours").await;
}

#[tokio::test]
async fn an_image_for_another_host_is_refused_and_both_are_named() {
    let place = Place::new().await;
    let mut image = Image::new(&[&layer("x")]).named("a");
    image.config["architecture"] = json!("s390x");
    let host = format!("linux/{}", architecture());
    place.refuses(&image.layout(), "linux/s390x").await;
    place.refuses(&image.saved().tar(), &host).await;

    let mut members = image.members();
    members.edit("index.json", |index| {
        index["manifests"][0]["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    });
    place.refuses(&members.tar(), "linux/s390x").await;
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    let place = Place::new().await;
    place.file("empty", b"");
    place.file("noise", &b"noise".repeat(10_000));
    place.file("packed-noise", &gzip(b"noise"));
    place.file("other.tar", &layer("no image"));
    for bad in ["absent", "empty", "noise", "packed-noise", "other.tar", "."] {
        let error = place.store.load(&place.directory.path().join(bad)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}: {}", host_core::chain(&error));
    }
    let empty = Members::new().tar();
    place.refuses(&empty, "no image archive").await;
}

/// Pushed by nobody, built by `make image`: what the rest of the project runs.
#[tokio::test]
async fn the_test_image_is_loaded() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/test-mandelbox.tar");
    if !path.exists() {
        assert!(std::env::var_os("CI").is_none(), "no {}", path.display());
        return println!("skipped: there is no {}; tests/mandelbox/make-image.sh makes it", path.display());
    }
    let place = Place::new().await;
    let names = place.store.load(&path).await.unwrap();
    assert!(names.contains(&name("test/mandelbox:current-build")), "{names:?}");
    assert_eq!((names.len(), place.count("l")), (7, 1));
    let unpacked = place.store.acquire(&name("test/mandelbox:current-build"), "a").await.unwrap();
    let config = unpacked.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_deref().unwrap(), ["/test-mandelbox"]);
    assert!(place.store.root().join(&unpacked.layers[0]).join("test-mandelbox").exists());
}

#[tokio::test]
async fn the_root_is_for_its_owner_alone_and_layers_are_as_containers_see_them() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new().await;
    let layer = place.unpack(&layer("x")).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(place.store.root()), mode(&layer)), (0o700, 0o755));
}

#[tokio::test]
async fn a_store_that_cannot_be_made_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(file.join("store"), Config::default()).await.unwrap_err();
    assert!(error.to_string().contains("file/store"), "{error}");
}
