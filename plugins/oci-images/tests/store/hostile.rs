//! Archives that would do harm, one test each: refused with the entry and the rule, and nothing is left.

use std::fs;

use host_core::ErrorKind;
use serde_json::json;
use tar::EntryType;

use crate::build::{Image, Layer, Place, blob_name, gzip, name};

/// A layer is refused, whichever form of archive it comes in, and leaves what lies outside as it was.
async fn refused(layer: Layer, text: &str) {
    let place = Place::new().await;
    let canary = place.file("canary", b"alive");
    let layer = layer.end();
    let image = Image::new(&[&layer]).named("a");
    place.refuses(&image.layout(), text).await;
    place.refuses(&image.saved().tar(), text).await;
    assert_eq!(fs::read(canary).unwrap(), b"alive");
}

#[tokio::test]
async fn dots_in_a_path() {
    refused(Layer::new().file("a/../../../canary", "x"), r#""a/../../../canary": its path has .."#).await;
}

#[tokio::test]
async fn dots_in_a_path_from_the_root() {
    refused(Layer::new().file("/../canary", "x"), "its path has ..").await;
}

#[tokio::test]
async fn a_file_through_a_link() {
    refused(Layer::new().symlink("a", "/proc/nowhere").file("a/passwd", "x"), r#""a" leads through a link"#)
        .await;
}

#[tokio::test]
async fn a_file_through_a_link_in_between() {
    let layer = Layer::new().symlink("a/b", "..").file("a/b/c/d", "x");
    refused(layer, r#""a/b/c" leads through a link"#).await;
}

#[tokio::test]
async fn a_directory_in_the_place_of_a_link_is_no_way_through_it() {
    let place = Place::new().await;
    let outside = place.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap().to_owned();
    let layer = Layer::new().symlink("a", &target).directory("a").file("a/file", "x").end();
    let root = place.unpack(&layer).await;
    assert!(fs::symlink_metadata(root.join("a")).unwrap().is_dir());
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

#[tokio::test]
async fn a_link_in_the_place_of_a_directory() {
    let layer = Layer::new().directory("a").symlink("a", "/proc/nowhere").file("a/passwd", "x");
    refused(layer, r#""a": it takes the place of a directory"#).await;
}

#[tokio::test]
async fn a_hard_link_to_outside() {
    refused(Layer::new().hard_link("a", "../../../../canary"), "its path has ..").await;
}

#[tokio::test]
async fn a_hard_link_through_a_link() {
    let layer = Layer::new().symlink("a", "/proc/nowhere").hard_link("b", "a/passwd");
    refused(layer, r#""a" leads through a link"#).await;
}

#[tokio::test]
async fn a_hard_link_to_an_absolute_path_of_the_host() {
    refused(Layer::new().hard_link("a", "/etc/passwd"), r#""etc" is not in this layer"#).await;
}

#[tokio::test]
async fn a_hard_link_to_a_directory() {
    refused(Layer::new().directory("a").hard_link("b", "a"), r#""b": a hard link to what is no file"#).await;
}

#[tokio::test]
async fn a_hard_link_to_nothing() {
    refused(Layer::new().hard_link("a", "b"), r#""a": a hard link to what is not in this layer"#).await;
}

#[tokio::test]
async fn a_whiteout_through_a_link() {
    refused(Layer::new().symlink("a", "/proc/nowhere").file("a/.wh.passwd", ""), "leads through a link")
        .await;
    refused(Layer::new().symlink("a", "/proc/nowhere").file("a/.wh..wh..opq", ""), "leads through a link")
        .await;
}

#[tokio::test]
async fn a_whiteout_of_the_parent() {
    refused(Layer::new().file("a/.wh...", ""), "it removes what has no name").await;
    refused(Layer::new().file("a/.wh..", ""), "it removes what has no name").await;
    refused(Layer::new().file("a/.wh.", ""), "it removes what has no name").await;
}

#[tokio::test]
async fn a_file_in_what_is_removed() {
    refused(Layer::new().file(".wh.a/b", ""), "inside of what .wh. says is removed").await;
}

#[tokio::test]
async fn a_character_device() {
    let mut header = Layer::header(EntryType::Char, "dev/mem", 0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(1).unwrap();
    refused(Layer::new().add(header, b""), r#""dev/mem": a device"#).await;
}

#[tokio::test]
async fn a_block_device() {
    refused(Layer::new().add(Layer::header(EntryType::Block, "dev/sda", 0), b""), r#""dev/sda": a device"#)
        .await;
}

#[tokio::test]
async fn an_entry_of_a_kind_that_nobody_knows() {
    refused(Layer::new().add(Layer::header(EntryType::new(b'Z'), "a", 0), b""), "unknown type 'Z'").await;
}

#[tokio::test]
async fn a_path_that_is_too_deep() {
    let path = "a/".repeat(200);
    refused(Layer::new().pax(&[("path", path.as_bytes())]).file("x", ""), "deeper than 128").await;
}

#[tokio::test]
async fn a_path_that_is_too_long() {
    let path = format!("{}b", "a/".repeat(3000));
    refused(Layer::new().pax(&[("path", path.as_bytes())]).file("x", ""), "longer than 4096").await;
    let name = "a".repeat(300);
    refused(Layer::new().pax(&[("path", name.as_bytes())]).file("x", ""), "name longer than 255").await;
}

#[tokio::test]
async fn headers_that_would_fill_the_memory() {
    let huge = Layer::header(EntryType::GNULongName, "x", 1 << 40);
    refused(Layer::new().add(huge, b""), "headers are larger").await;
    let huge = Layer::header(EntryType::XHeader, "x", 1 << 40);
    refused(Layer::new().add(huge, b""), "headers are larger").await;
}

#[tokio::test]
async fn a_sparse_file_whose_pieces_are_not_its_data() {
    let mut header = Layer::header(EntryType::GNUSparse, "a", 0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(1 << 40);
    gnu.set_real_size(1 << 40);
    refused(Layer::new().add(header, b""), r#""a": the pieces of a sparse file are not its data"#).await;
}

#[tokio::test]
async fn a_sparse_file_whose_pieces_overlap() {
    let mut header = Layer::header(EntryType::GNUSparse, "a", 1024);
    let gnu = header.as_gnu_mut().unwrap();
    for (piece, offset) in gnu.sparse.iter_mut().zip([512, 0]) {
        piece.set_offset(offset);
        piece.set_length(512);
    }
    gnu.set_real_size(1024);
    refused(Layer::new().add(header, &[1; 1024]), r#""a": the pieces of a sparse file overlap"#).await;
}

#[tokio::test]
async fn an_owner_that_no_kernel_knows() {
    for owner in [&b"4294967296"[..], b"4294967295"] {
        refused(Layer::new().pax(&[("uid", owner)]).file("a", ""), r#""a": its owner"#).await;
        refused(Layer::new().pax(&[("gid", owner)]).file("a", ""), r#""a": its group"#).await;
    }
}

#[tokio::test]
async fn a_layer_that_is_no_tar() {
    for (noise, text) in
        [(&b"noise".repeat(1000)[..], "no header at byte 0"), (b"short", "cut off within a header")]
    {
        let place = Place::new().await;
        place.refuses(&Image::new(&[noise]).named("a").layout(), text).await;
    }
}

#[tokio::test]
async fn a_file_that_is_cut_off() {
    let layer = Layer::new().file("a", &"x".repeat(10_000)).end();
    let place = Place::new().await;
    place.refuses(&Image::new(&[&layer[..4000]]).named("a").layout(), "").await;
    let packed = Image::packed(&[&layer], |layer| gzip(layer)[..20].to_vec()).named("a");
    place.refuses(&packed.layout(), "the tar is damaged").await;
}

#[tokio::test]
async fn an_archive_that_is_cut_off() {
    let place = Place::new().await;
    let archive = Image::new(&[&Layer::new().file("a", &"x".repeat(10_000)).end()]).named("a").layout();
    for length in [300, 5000, archive.len() / 2] {
        place.refuses(&archive[..length], "").await;
    }
    let packed = gzip(&archive);
    place.refuses(&packed[..packed.len() - 9], "the archive is damaged").await;
}

#[tokio::test]
async fn too_many_layers() {
    let place = Place::new().await;
    let layer = Layer::new().file("a", "x").end();
    let image = Image::new(&vec![&layer[..]; 128]).named("a");
    place.refuses(&image.layout(), "128 layers").await;
}

#[tokio::test]
async fn no_layers() {
    let place = Place::new().await;
    place.refuses(&Image::new(&[]).named("a").layout(), "no layers").await;
}

#[tokio::test]
async fn a_huge_configuration() {
    let place = Place::new().await;
    let mut image = Image::new(&[&Layer::new().file("a", "x").end()]).named("a");
    image.config["config"]["Labels"] = json!({ "a": "x".repeat(5 << 20) });
    place.refuses(&image.layout(), "a manifest or configuration may have").await;
    place.refuses(&image.saved().tar(), "it may have").await;
}

#[tokio::test]
async fn a_huge_index() {
    let place = Place::new().await;
    let mut members = Image::new(&[&Layer::new().file("a", "x").end()]).members();
    members.set("index.json", &vec![b' '; 5 << 20]);
    place.refuses(&members.tar(), "index.json is of").await;
}

#[tokio::test]
async fn documents_nested_deeper_than_any_stack() {
    let place = Place::new().await;
    let mut members = Image::new(&[&Layer::new().file("a", "x").end()]).members();
    members.set("index.json", "[".repeat(1 << 20).as_bytes());
    place.refuses(&members.tar(), "it is not an OCI layout's index").await;
}

#[tokio::test]
async fn a_manifest_that_is_an_index_too() {
    let place = Place::new().await;
    let image = Image::new(&[&Layer::new().file("a", "x").end()]);
    let mut both = image.manifest();
    both["manifests"] = json!([]);
    let both = serde_json::to_vec(&both).unwrap();
    let mut members = image.members();
    members.blob(&both);
    members.index(&[crate::build::descriptor(crate::build::MANIFEST, &both)]);
    place.refuses(&members.tar(), "a manifest and an index at once").await;
}

#[tokio::test]
async fn a_manifest_that_points_outside() {
    let place = Place::new().await;
    let mut members = Image::new(&[&Layer::new().file("a", "x").end()]).named("a").saved();
    members.edit("manifest.json", |list| list[0]["Config"] = json!("../../../../etc/passwd"));
    place.refuses(&members.tar(), "its path has ..").await;
    let mut members = Image::new(&[&Layer::new().file("a", "x").end()]).named("a").saved();
    members.edit("manifest.json", |list| list[0]["Layers"] = json!(["/etc/passwd"]));
    place.refuses(&members.tar(), "it lacks the layer /etc/passwd").await;
}

#[tokio::test]
async fn a_digest_that_is_a_path() {
    let place = Place::new().await;
    let mut members = Image::new(&[&Layer::new().file("a", "x").end()]).named("a").members();
    members.edit("index.json", |index| index["manifests"][0]["digest"] = json!("sha256:../../../etc/passwd"));
    place.refuses(&members.tar(), "").await;
}

#[tokio::test]
async fn a_layer_in_the_archive_that_is_a_link_to_the_host() {
    let place = Place::new().await;
    let secret = place.file("secret", &Layer::new().file("a", "x").end());
    for target in [secret.to_str().unwrap(), "../../secret"] {
        let mut members = Image::new(&[&Layer::new().file("a", "x").end()]).named("a").saved();
        members.0.remove("0/layer.tar");
        let archive = members.tar_with(|builder| {
            let mut header = Layer::header(EntryType::Symlink, "x", 0);
            builder.append_link(&mut header, "0/layer.tar", target).unwrap();
        });
        place.refuses(&archive, "outside of the archive").await;
    }
}

#[tokio::test]
async fn links_in_the_archive_that_go_round() {
    let place = Place::new().await;
    let mut members = Image::new(&[&Layer::new().file("a", "x").end()]).named("a").saved();
    members.0.remove("0/layer.tar");
    let archive = members.tar_with(|builder| {
        let mut header = Layer::header(EntryType::Symlink, "x", 0);
        builder.append_link(&mut header, "0/layer.tar", "layer.tar").unwrap();
    });
    place.refuses(&archive, "leads nowhere").await;
}

#[tokio::test]
async fn a_directory_with_a_link_to_the_host() {
    let place = Place::new().await;
    let layer = Layer::new().file("a", "x").end();
    let members = Image::new(&[&layer]).named("a").members();
    let directory = place.directory.path().join("layout");
    members.write(&directory);
    let blob = directory.join(blob_name(&layer));
    fs::rename(&blob, place.directory.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(place.directory.path().join("moved"), &blob).unwrap();
    let error = place.store.load(&directory).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", host_core::chain(&error));
    place.is_empty().await;
}

#[tokio::test]
async fn a_size_that_is_wrong() {
    for change in [-1i64, 1] {
        let place = Place::new().await;
        let layer = Layer::new().file("a", "x").end();
        let image = Image::new(&[&layer]).named("a");
        let mut manifest = image.manifest();
        let size = i64::try_from(layer.len()).unwrap() + change;
        manifest["layers"][0]["size"] = json!(size);
        let mut members = image.members();
        let manifest = serde_json::to_vec(&manifest).unwrap();
        members.blob(&manifest);
        members.index(&[crate::build::descriptor(crate::build::MANIFEST, &manifest)]);
        place.refuses(&members.tar(), "its descriptor says").await;
    }
}

#[tokio::test]
async fn a_layer_of_another_content() {
    let place = Place::new().await;
    let (layer, other) = (Layer::new().file("a", "x").end(), Layer::new().file("a", "y").end());
    let mut members = Image::new(&[&layer]).named("a").members();
    members.set(&blob_name(&layer), &other);
    place.refuses(&members.tar(), "what should be sha256:").await;
}

#[tokio::test]
async fn a_layer_that_the_configuration_does_not_know() {
    let place = Place::new().await;
    let (layer, other) = (Layer::new().file("a", "x").end(), Layer::new().file("a", "y").end());
    let mut image = Image::new(&[&layer]).named("a");
    image.config["rootfs"]["diff_ids"] = json!([crate::build::digest(&other)]);
    place.refuses(&image.layout(), "the image says").await;
    place.refuses(&image.saved().tar(), "the image says").await;
    image.config["rootfs"]["diff_ids"] = json!([crate::build::digest(&layer), crate::build::digest(&other)]);
    place.refuses(&image.layout(), "1 layers, and the configuration 2").await;
    place.refuses(&image.saved().tar(), "1 layers, and the configuration 2").await;
}

#[tokio::test]
async fn a_configuration_or_manifest_of_another_content() {
    let place = Place::new().await;
    let image = Image::new(&[&Layer::new().file("a", "x").end()]).named("a");
    let manifest = serde_json::to_vec(&image.manifest()).unwrap();
    for content in [image.config(), manifest] {
        let mut members = image.members();
        let mut other = content.clone();
        other.push(b' ');
        members.set(&blob_name(&content), &other);
        place.refuses(&members.tar(), "is of more than").await;
        let changed =
            String::from_utf8(content.clone()).unwrap().replace("linux", "minix").replace("v1", "v9");
        members.set(&blob_name(&content), changed.as_bytes());
        place.refuses(&members.tar(), "what should be").await;
    }
    let mut members = image.saved();
    let config = format!("{}.json", &image.id()["sha256:".len()..]);
    members.edit(&config, |config| config["config"]["User"] = json!("root"));
    place.refuses(&members.tar(), &format!("the content of {config}")).await;
}

#[tokio::test]
async fn a_name_that_is_none() {
    let place = Place::new().await;
    let layer = Layer::new().file("a", "x").end();
    place
        .refuses(&Image::new(&[&layer]).named("a/../../b").layout(), "a/../../b is no image reference")
        .await;
    place.refuses(&Image::new(&[&layer]).named("UPPER:x y").saved().tar(), "is no image reference").await;
}

#[tokio::test]
async fn one_bad_image_spoils_its_whole_archive() {
    let place = Place::new().await;
    let good = Image::new(&[&Layer::new().file("a", "x").end()]).named("good");
    let bad = Image::new(&[&Layer::new().file("../a", "x").end()]).named("bad");
    let mut members = good.saved();
    members.edit("manifest.json", |list| {
        list.as_array_mut().unwrap().push(json!({
            "Config": "bad.json", "RepoTags": ["bad"], "Layers": ["bad.tar"],
        }));
    });
    members.set("bad.json", &bad.config());
    members.set("bad.tar", &bad.layers[0].0);
    place.refuses(&members.tar(), "its path has ..").await;
    assert_eq!(place.store.find(&name("good")).await.unwrap(), None);
}
