//! Archives that would fill the host: refused as soon as an image has more than it may.

use host_core::ErrorKind;
use oci_images::Config;

use crate::build::{Image, Layer, MANIFEST, Place, descriptor, gzip};

async fn with_limits(bytes: u64, entries: u64) -> Place {
    Place::with(Config { unpacked_bytes_max: bytes, entries_max: entries, ..Config::default() }).await
}

#[tokio::test]
async fn a_gzip_bomb() {
    let place = with_limits(1 << 20, 100).await;
    let bomb = Layer::new().file("a", &"\0".repeat(4 << 20)).end();
    let image = Image::packed(&[&bomb], gzip).named("a");
    assert!(image.layers[0].0.len() < 1 << 20, "the bomb is no bomb");
    place.refuses(&image.layout(), "more than 1048576 bytes").await;
    place.refuses(&gzip(&Image::new(&[&bomb]).named("a").layout()), "more than 1048576 bytes").await;
}

#[tokio::test]
async fn a_bomb_behind_the_end_of_the_tar() {
    let place = with_limits(1 << 20, 100).await;
    let mut bomb = Layer::new().file("a", "x").end();
    bomb.resize(4 << 20, 0);
    place.refuses(&Image::packed(&[&bomb], gzip).named("a").layout(), "more than 1048576 bytes").await;
}

#[tokio::test]
async fn layers_that_are_too_much_only_together() {
    let place = with_limits(1 << 20, 100).await;
    let layers = ["a", "b", "c"].map(|name| Layer::new().file(name, &name.repeat(400 << 10)).end());
    let image = Image::new(&[&layers[0], &layers[1], &layers[2]]).named("a");
    place.refuses(&image.layout(), "more than 1048576 bytes").await;
}

#[tokio::test]
async fn layers_that_are_too_much_with_those_that_are_there() {
    let place = with_limits(1 << 20, 100).await;
    let layers = ["a", "b"].map(|name| Layer::new().file(name, &name.repeat(600 << 10)).end());
    place.load(&Image::new(&[&layers[0]]).named("a").layout()).await.unwrap();
    let error = place.load(&Image::new(&[&layers[0], &layers[1]]).named("b").layout()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(host_core::chain(&error).contains("more than 1048576 bytes"), "{}", host_core::chain(&error));
    assert_eq!((place.count("l"), place.count("tmp")), (1, 0));
}

/// Both images in one archive.
fn together(images: [&Image; 2]) -> Vec<u8> {
    let mut members = images[0].members();
    members.0.extend(images[1].members().0);
    let manifests = images.map(|image| descriptor(MANIFEST, &serde_json::to_vec(&image.manifest()).unwrap()));
    members.index(&manifests);
    members.tar()
}

#[tokio::test]
async fn images_that_are_too_much_only_together() {
    let layers = ["a", "b"].map(|name| Layer::new().file(name, &name.repeat(600 << 10)).end());
    let place = with_limits(1 << 20, 100).await;
    place
        .refuses(&together([&Image::new(&[&layers[0]]), &Image::new(&[&layers[1]])]), "more than 1048576")
        .await;
    // What they share is paid for once.
    let small = Layer::new().file("c", "c").end();
    let archive = together([&Image::new(&[&layers[0]]), &Image::new(&[&layers[0], &small])]);
    place.load(&archive).await.unwrap();
    place.load(&archive).await.unwrap();
}

#[tokio::test]
async fn too_many_images() {
    let place = Place::new().await;
    let image = Image::new(&[&Layer::new().file("a", "").end()]);
    let mut members = image.members();
    let manifest = descriptor(MANIFEST, &serde_json::to_vec(&image.manifest()).unwrap());
    members.index(&vec![manifest; 129]);
    place.refuses(&members.tar(), "may have 128").await;
    let mut members = image.saved();
    members.edit("manifest.json", |list| *list = vec![list[0].clone(); 129].into());
    place.refuses(&members.tar(), "may have 128").await;
}

#[tokio::test]
async fn directories_that_no_entry_names() {
    let place = with_limits(1 << 20, 10).await;
    let layer = Layer::new().file("1/2/3/4/5/6/7/8/9/10/file", "").end();
    place.refuses(&Image::new(&[&layer]).named("a").layout(), "more than 10 entries").await;
    // Those that an entry names are paid for by it.
    let layer = (1..=10).fold((Layer::new(), String::new()), |(layer, path), _| {
        let path = path + "d/";
        (layer.directory(&path), path)
    });
    place.load(&Image::new(&[&layer.0.end()]).named("a").layout()).await.unwrap();
}

#[tokio::test]
async fn too_many_entries() {
    let place = with_limits(1 << 20, 10).await;
    let layer = (0..11).fold(Layer::new(), |layer, number| layer.file(&format!("f{number}"), "")).end();
    place.refuses(&Image::new(&[&layer]).named("a").layout(), "more than 10 entries").await;
}
