//! What a layer looks like on disk.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use rustix::fs::{getxattr, lgetxattr};
use tar::EntryType;

use crate::build::{Image, Layer, Place, digest, gzip};

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    getxattr(path, name, &mut value[..]).ok().map(|length| value[..length].to_vec())
}

fn is_opaque(path: &Path) -> bool {
    attribute(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

fn is_whiteout(path: &Path) -> bool {
    let found = fs::symlink_metadata(path).unwrap();
    found.file_type().is_char_device() && found.rdev() == 0
}

#[tokio::test]
async fn owners_modes_and_times_are_kept() {
    let mut program = Layer::header(EntryType::Regular, "bin/su", 1);
    program.set_mode(0o4755);
    program.set_uid(7);
    program.set_gid(8);
    program.set_mtime(1_234_567_890);
    let mut directory = Layer::header(EntryType::Directory, "bin", 0);
    directory.set_mode(0o1750);
    directory.set_uid(5);
    directory.set_mtime(1_111_111_111);
    let mut link = Layer::header(EntryType::Symlink, "bin/link", 0);
    link.set_link_name_literal("/no/where").unwrap();
    link.set_uid(9);
    link.set_mtime(1_000_000_001);
    let layer =
        Layer::new().add(directory, b"").add(program, b"x").add(link, b"").file("bin/other", "y").end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    let found = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    let (program, directory, link) = (found("bin/su"), found("bin"), found("bin/link"));
    assert_eq!((program.mode() & 0o7777, program.uid(), program.gid()), (0o4755, 7, 8));
    assert_eq!(program.mtime(), 1_234_567_890);
    assert_eq!((directory.mode() & 0o7777, directory.uid(), directory.mtime()), (0o1750, 5, 1_111_111_111));
    assert_eq!((link.uid(), link.mtime()), (9, 1_000_000_001));
    assert_eq!(fs::read_link(root.join("bin/link")).unwrap(), Path::new("/no/where"));
}

#[tokio::test]
async fn a_directory_that_is_entered_again_keeps_its_time() {
    let layer = Layer::new().directory("a").file("a/1", "").file("b/1", "").file("a/2", "").end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    assert_eq!(fs::metadata(root.join("a")).unwrap().mtime(), 1_000_000_000);
}

#[tokio::test]
async fn the_layers_own_root_takes_its_attributes() {
    let mut root = Layer::header(EntryType::Directory, "./", 0);
    root.set_mode(0o700);
    root.set_uid(3);
    let place = Place::new().await;
    let layer = place.unpack(&Layer::new().add(root, b"").file("./a", "x").end()).await;
    let found = fs::metadata(&layer).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.mtime()), (0o700, 3, 1_000_000_000));
    assert_eq!(fs::read(layer.join("a")).unwrap(), b"x");
}

#[tokio::test]
async fn absolute_paths_begin_at_the_layers_root() {
    let place = Place::new().await;
    let root = place.unpack(&Layer::new().file("/etc/x", "x").hard_link("//y", "/etc/x").end()).await;
    assert_eq!(fs::read(root.join("etc/x")).unwrap(), b"x");
    assert_eq!(fs::metadata(root.join("y")).unwrap().nlink(), 2);
}

#[tokio::test]
async fn missing_parents_are_made_as_docker_makes_them() {
    let place = Place::new().await;
    let root = place.unpack(&Layer::new().file("a/b/c", "x").end()).await;
    let found = fs::metadata(root.join("a/b")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o755, 0));
}

#[tokio::test]
async fn only_harmless_attributes_come_from_a_layer() {
    // cap_net_raw=ep, as setcap writes it; it holds zero bytes.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records: [(&str, &[u8]); 5] = [
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"a\nb"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.security.selinux", b"root"),
    ];
    let layer = Layer::new().pax(&records).file("ping", "x").pax(&records[1..]).directory("dir").end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    let file = root.join("ping");
    assert_eq!(attribute(&file, "security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute(&file, "user.note").as_deref(), Some(&b"a\nb"[..]));
    for name in ["user.overlay.opaque", "trusted.overlay.redirect", "security.selinux"] {
        assert_eq!(attribute(&file, name), None, "{name}");
        assert_eq!(attribute(&root.join("dir"), name), None, "{name}");
    }
    assert_eq!(attribute(&root.join("dir"), "user.note").as_deref(), Some(&b"a\nb"[..]));
}

#[tokio::test]
async fn whiteouts_are_as_overlayfs_has_them() {
    let layer = Layer::new()
        .file("etc/.wh.gone", "")
        .file("var/.wh..wh..opq", "")
        .file("var/new", "x")
        .file(".wh..wh.plnk/1.2", "")
        .end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    assert!(is_whiteout(&root.join("etc/gone")));
    assert!(is_opaque(&root.join("var")) && !is_opaque(&root.join("etc")));
    assert!(root.join("var/new").exists());
    assert!(!root.join("var/.wh..wh..opq").exists() && !root.join(".wh..wh.plnk").exists());
}

/// Whatever their order in the archive: the layer's own is there, and what is below it is not.
#[tokio::test]
async fn a_whiteout_of_what_the_layer_itself_brings_hides_what_is_below() {
    let layer = Layer::new()
        .directory("first")
        .file("first/own", "x")
        .file(".wh.first", "")
        .file(".wh.then", "")
        .directory("then")
        .file("then/own", "x")
        .file(".wh.implied", "")
        .file("implied/own", "x")
        .file("file", "x")
        .file(".wh.file", "")
        .file(".wh.again", "")
        .file("again", "x")
        .end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    for directory in ["first", "then", "implied"] {
        assert!(is_opaque(&root.join(directory)), "{directory}");
        assert!(root.join(directory).join("own").exists(), "{directory}");
    }
    for file in ["file", "again"] {
        assert_eq!(fs::read(root.join(file)).unwrap(), b"x", "{file}");
    }
}

#[tokio::test]
async fn a_layer_whose_root_is_opaque_hides_the_layers_below() {
    let layers = ["lowest", "lower"].map(|name| Layer::new().file(name, "").end());
    let opaque = Layer::new().file(".wh..wh..opq", "").file("new", "").end();
    let place = Place::new().await;
    let image = Image::new(&[&layers[0], &opaque, &layers[1]]).named("a");
    place.load(&image.layout()).await.unwrap();
    let found = place.layers("a").await;
    assert_eq!(found.len(), 2);
    assert!(found[0].join("lower").exists() && found[1].join("new").exists());
}

#[tokio::test]
async fn the_last_entry_of_a_name_wins() {
    let layer = Layer::new()
        .file("a", "old")
        .hard_link("kept", "a")
        .file("a", "new")
        .symlink("b", "a")
        .file("b", "no link")
        .directory("c")
        .directory("c")
        .end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    assert_eq!(fs::read(root.join("a")).unwrap(), b"new");
    assert_eq!(fs::read(root.join("kept")).unwrap(), b"old");
    assert_eq!(fs::read(root.join("b")).unwrap(), b"no link");
}

#[tokio::test]
async fn fifos_are_made_and_long_names_are_read() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut name = Layer::header(EntryType::GNULongName, "././@LongLink", long.len() as u64 + 1);
    name.set_mode(0);
    let layer = Layer::new()
        .add(name, format!("{long}\0").as_bytes())
        .file("short", "gnu")
        .pax(&[("path", b"pax/name"), ("mtime", b"1234.5")])
        .file("other", "pax")
        .add(Layer::header(EntryType::Fifo, "fifo", 0), b"")
        .end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    assert_eq!(fs::read(root.join(&long)).unwrap(), b"gnu");
    let found = fs::metadata(root.join("pax/name")).unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec()), (1234, 500_000_000));
    let fifo = fs::metadata(root.join("fifo")).unwrap();
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o7777 == 0o644);
}

#[tokio::test]
async fn files_with_holes_take_no_room() {
    let hole = 1 << 30;
    let mut gnu = Layer::header(EntryType::GNUSparse, "gnu", 512);
    {
        let header = gnu.as_gnu_mut().unwrap();
        header.sparse[0].set_offset(hole);
        header.sparse[0].set_length(512);
        header.sparse[1].set_offset(2 * hole);
        header.sparse[1].set_length(0);
        header.set_real_size(2 * hole);
    }
    let mut data = format!("1\n{hole}\n3\n").into_bytes();
    data.resize(512, 0);
    data.extend_from_slice(b"pax");
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"pax"),
        ("GNU.sparse.realsize", b"2147483648"),
    ];
    let layer = Layer::new()
        .add(gnu, &[b'g'; 512])
        .pax(&records)
        .add(Layer::header(EntryType::Regular, "GNUSparseFile.0/pax", data.len() as u64), &data)
        .file("after", "x")
        .end();
    let place = Place::new().await;
    let root = place.unpack(&layer).await;
    for (name, expected) in [("gnu", "ggg"), ("pax", "pax")] {
        let path = root.join(name);
        let found = fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 2 * hole, "{name}");
        assert!(found.blocks() * 512 < 1 << 20, "{name} takes {} blocks", found.blocks());
        let mut start = [0; 3];
        std::os::unix::fs::FileExt::read_exact_at(&fs::File::open(&path).unwrap(), &mut start, hole).unwrap();
        assert_eq!(start, expected.as_bytes(), "{name}");
    }
    assert!(root.join("after").exists());
}

/// The same tree, as GNU tar packs it in each of its formats.
#[tokio::test]
async fn what_gnu_tar_writes_is_read() {
    let place = Place::new().await;
    let source = place.directory.path().join("source");
    fs::create_dir_all(source.join("d".repeat(120))).unwrap();
    fs::write(source.join("d".repeat(120)).join("f"), "content").unwrap();
    let holes = fs::File::create(source.join("holes")).unwrap();
    holes.set_len(10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"end", 9 << 20).unwrap();
    for format in ["gnu", "posix"] {
        let packed = std::process::Command::new("tar")
            .args(["--create", "--sparse", "--format", format, "--directory"])
            .arg(&source)
            .arg(".")
            .output()
            .unwrap();
        let root = place.unpack(&packed.stdout).await;
        assert_eq!(fs::read(root.join("d".repeat(120)).join("f")).unwrap(), b"content", "{format}");
        assert_eq!(
            fs::read(root.join("holes")).unwrap(),
            fs::read(source.join("holes")).unwrap(),
            "{format}"
        );
    }
}

#[tokio::test]
async fn each_kind_of_compression_is_read() {
    let layer = Layer::new().file("a", &"text ".repeat(100_000)).end();
    let zstd = |content: &[u8]| {
        ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
    };
    for pack in [<[u8]>::to_vec, gzip, zstd] {
        let place = Place::new().await;
        let image = Image::packed(&[&layer], pack).named("a");
        assert_eq!(image.layers[0].1, digest(&layer));
        place.load(&image.layout()).await.unwrap();
        let root = place.layers("a").await.remove(0);
        assert_eq!(fs::metadata(root.join("a")).unwrap().len(), 500_000);
    }
}

#[tokio::test]
async fn links_have_no_attributes_of_their_own() {
    let records: [(&str, &[u8]); 1] = [("SCHILY.xattr.user.note", b"x")];
    let place = Place::new().await;
    let root = place.unpack(&Layer::new().pax(&records).symlink("link", "to").end()).await;
    let mut value = [0; 16];
    assert!(lgetxattr(root.join("link"), "user.note", &mut value[..]).is_err());
}
