//! What is kept and what is thrown away, by one process and by several.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use host_core::{ErrorKind, chain};
use tar::EntryType;

use crate::build::{Image, Layer, Place, name};

fn layer(text: &str) -> Vec<u8> {
    Layer::new().file("text", text).end()
}

/// `base` and a layer of its own.
fn image(text: &str, image: &str) -> Vec<u8> {
    Image::new(&[&layer("base"), &layer(text)]).named(image).layout()
}

async fn text(place: &Place, image: &str) -> String {
    fs::read_to_string(place.layers(image).await[0].join("text")).unwrap()
}

#[tokio::test]
async fn layers_are_shared_and_go_with_the_last_image() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    place.load(&image("b", "b")).await.unwrap();
    assert_eq!((place.count("l"), place.count("configs")), (3, 2));
    // The name moves, so its image goes.
    place.store.tag(&name("b"), &name("a")).await.unwrap();
    assert_eq!((place.count("l"), place.count("configs"), place.count("trash")), (2, 1, 0));
    assert_eq!(text(&place, "a").await, "b");
    let found = place.store.all().await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].names, [name("a:latest"), name("b:latest")]);
}

#[tokio::test]
async fn an_image_in_use_stays_until_it_is_released() {
    let place = Place::new().await;
    place.load(&image("old", "a")).await.unwrap();
    let old = place.store.acquire(&name("a"), "container-1").await.unwrap();
    place.load(&image("new", "a")).await.unwrap();
    let there = |layer: &Path| place.store.root().join(layer).exists();
    assert!(old.layers.iter().all(|layer| there(layer)));
    assert_eq!(text(&place, "a").await, "new");
    let all = place.store.all().await.unwrap();
    assert_eq!(all.iter().filter(|image| image.names.is_empty()).count(), 1);
    assert_eq!(place.store.find(&name(&old.image.id)).await.unwrap().unwrap().id, old.image.id);

    place.store.release("container-1").await.unwrap();
    assert!(!there(&old.layers[0]) && there(&old.layers[1]), "only what is not shared goes");
    assert_eq!((place.store.all().await.unwrap().len(), place.count("l")), (1, 2));
    place.store.release("container-1").await.unwrap();
}

#[tokio::test]
async fn users_outlive_the_process() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    place.store.acquire(&name("a"), "one").await.unwrap();
    place.store.acquire(&name("a"), "two").await.unwrap();
    place.load(&image("b", "a")).await.unwrap();
    let again = place.again().await;
    let mut users = again.users().await.unwrap();
    users.sort();
    assert_eq!(users, ["one", "two"]);
    assert_eq!(place.count("l"), 3);
    again.release("one").await.unwrap();
    assert_eq!(place.count("l"), 3);
    again.release("two").await.unwrap();
    assert_eq!((place.count("l"), place.store.users().await.unwrap().len()), (2, 0));
}

#[tokio::test]
async fn a_user_has_one_image() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    place.load(&image("b", "b")).await.unwrap();
    let first = place.store.acquire(&name("a"), "one").await.unwrap();
    let again = place.store.acquire(&name("a:latest"), "one").await.unwrap();
    assert_eq!(first.layers, again.layers);
    let other = place.store.acquire(&name("b"), "one").await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn what_is_not_there_or_no_name_is_told_apart() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    let store = &place.store;
    let kind = |error: host_core::PluginError| error.kind();
    assert_eq!(store.acquire(&name("b"), "one").await.map(drop).map_err(kind), Err(ErrorKind::NotFound));
    assert_eq!(store.tag(&name("b"), &name("c")).await.map_err(kind), Err(ErrorKind::NotFound));
    assert_eq!(store.users().await.unwrap().len(), 0);
    for bad in ["No/Upper:case", "a//b:c", "a/../../info", "a:b:c"] {
        let bad = name(bad);
        assert_eq!(store.find(&bad).await.map(drop).map_err(kind), Err(ErrorKind::Invalid), "{bad}");
        assert_eq!(
            store.acquire(&bad, "one").await.map(drop).map_err(kind),
            Err(ErrorKind::Invalid),
            "{bad}"
        );
        assert_eq!(store.tag(&name("a"), &bad).await.map_err(kind), Err(ErrorKind::Invalid), "{bad}");
    }
    for bad in ["", ".", "..", ".hidden", "a/b", "../x", "a b", &"x".repeat(300)] {
        assert_eq!(
            store.acquire(&name("a"), bad).await.map(drop).map_err(kind),
            Err(ErrorKind::Invalid),
            "{bad}"
        );
        assert_eq!(store.release(bad).await.map_err(kind), Err(ErrorKind::Invalid), "{bad}");
    }
    let digest = name(&format!("b@{}", store.all().await.unwrap()[0].id));
    assert_eq!(store.tag(&name("a"), &digest).await.map_err(kind), Err(ErrorKind::Invalid));
}

#[tokio::test]
async fn a_layer_that_is_gone_from_disk_comes_back_with_the_next_load() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    for layer in place.layers("a").await {
        fs::remove_dir_all(layer).unwrap();
    }
    place.load(&image("a", "a")).await.unwrap();
    assert_eq!((text(&place, "a").await.as_str(), place.count("l")), ("a", 2));
}

#[tokio::test]
async fn a_configuration_that_has_changed_on_disk_is_not_used() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    let path = fs::read_dir(place.store.root().join("configs")).unwrap().next().unwrap().unwrap().path();
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("1000", "0")).unwrap();
    let error = place.store.acquire(&name("a"), "one").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("has changed"), "{error}");
    assert_eq!(place.count("users"), 0);
    // What it says helps.
    place.load(&image("a", "a")).await.unwrap();
    place.store.acquire(&name("a"), "one").await.unwrap();
}

/// Names as a person may write them.
#[tokio::test]
async fn every_way_to_write_a_name_finds_it() {
    let place = Place::new().await;
    place.load(&image("a", "foo/bar")).await.unwrap();
    place.store.tag(&name("foo/bar"), &name("chrome")).await.unwrap();
    for way in ["foo/bar", "foo/bar:latest", "docker.io/foo/bar", "chrome", "docker.io/library/chrome:latest"]
    {
        assert!(place.store.find(&name(way)).await.unwrap().is_some(), "{way}");
    }
}

#[tokio::test]
async fn leftovers_of_a_crash_are_removed() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    let root = place.store.root().to_owned();
    for leftover in ["tmp/1-2-3/half", "trash/1-2-3/deep", "l/0123456789abcdef/x"] {
        fs::create_dir_all(root.join(leftover)).unwrap();
    }
    fs::write(root.join("configs/0123"), "x").unwrap();
    fs::write(root.join("index.new"), "half").unwrap();
    let again = place.again().await;
    let counts = ["tmp", "trash", "l", "configs"].map(|part| place.count(part));
    assert_eq!(counts, [0, 0, 2, 1]);
    assert_eq!(again.all().await.unwrap(), place.store.all().await.unwrap());
}

#[tokio::test]
async fn a_load_under_way_keeps_its_layers_and_its_place() {
    let place = Place::new().await;
    place.load(&image("a", "a")).await.unwrap();
    let (store, root) = (place.again().await, place.store.root().to_owned());
    // Another process at work: its directory is locked and holds the layers of `a`.
    let work = root.join("tmp/other-process");
    fs::create_dir(&work).unwrap();
    let claim = fs::File::open(&work).unwrap();
    rustix::fs::flock(&claim, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let config: serde_json::Value = {
        let path = fs::read_dir(root.join("configs")).unwrap().next().unwrap().unwrap().path();
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    fs::write(work.join("held.json"), config["rootfs"]["diff_ids"].to_string()).unwrap();

    place.load(&image("b", "a")).await.unwrap();
    assert_eq!(place.count("l"), 3, "a layer that somebody waits for is gone");
    let _ = place.again().await;
    assert!(work.exists(), "somebody's working directory is gone");
    drop(claim);
    store.release("nobody").await.unwrap();
    assert_eq!((place.count("l"), place.count("tmp")), (2, 0));
}

#[tokio::test]
async fn several_may_load_and_use_at_once() {
    let place = Place::new().await;
    let archives: Vec<_> = (0..4)
        .map(|number| {
            place.file(&format!("{number}.tar"), &image(&number.to_string(), &format!("a{number}")))
        })
        .collect();
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..16 {
        let (store, archive) = (place.again().await, archives[round % 4].clone());
        tasks.spawn(async move {
            store.load(&archive).await.unwrap();
            let image = name(&format!("a{}", round % 4));
            let user = format!("user-{round}");
            let used = store.acquire(&image, &user).await.unwrap();
            assert!(used.layers.iter().all(|layer| store.root().join(layer).join("text").exists()));
            store.release(&user).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!((place.count("l"), place.count("tmp"), place.count("trash")), (5, 0, 0));
    assert_eq!(place.store.all().await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_ends_and_leaves_nothing() {
    let place = Place::new().await;
    let large = Layer::new().file("a", &"x".repeat(24 << 20)).end();
    let archive = place.file("large.tar", &Image::new(&[&large]).named("a").layout());
    let store = place.again().await;
    {
        let load = store.load(&archive);
        tokio::pin!(load);
        let deadline = Instant::now() + Duration::from_secs(10);
        // Once it has its working directory it is under way.
        while place.count("tmp") == 0 {
            assert!(Instant::now() < deadline, "the load does not begin");
            tokio::select! {
                biased;
                loaded = &mut load => panic!("it was too quick: {loaded:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    // What is given up goes by way of the trash.
    while place.count("tmp") + place.count("trash") > 0 {
        assert!(Instant::now() < deadline, "the load goes on");
        tokio::task::yield_now().await;
    }
    place.is_empty().await;
}

#[tokio::test]
async fn a_full_disk_is_exhausted_and_nothing_is_left() {
    let place = Place::new().await;
    let disk = match Disk::new(&place.directory.path().join("disk"), "4m") {
        Ok(disk) => disk,
        Err(lack) => {
            assert!(std::env::var_os("CI").is_none(), "{lack}");
            return println!("skipped: {lack}");
        }
    };
    let store =
        oci_images::Store::open(disk.path.join("store"), oci_images::Config::default()).await.unwrap();
    let small = place.file("small.tar", &image("small", "small"));
    store.load(&small).await.unwrap();
    let used = disk.used();
    let large = Layer::new().file("a", &"x".repeat(6 << 20)).end();
    let large = place
        .file("large.tar", &Image::new(&[&layer("base"), &layer("new"), &large]).named("large").layout());
    let error = store.load(&large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", chain(&error));
    assert_eq!(disk.used(), used);
    assert_eq!(store.all().await.unwrap().len(), 1);
    store.load(&small).await.unwrap();
}

/// A small file system of its own; gone when this is dropped.
struct Disk {
    path: std::path::PathBuf,
}

impl Disk {
    fn new(path: &Path, size: &str) -> Result<Self, String> {
        fs::create_dir(path).unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output();
        match mount {
            Ok(done) if done.status.success() => Ok(Self { path: path.to_owned() }),
            done => Err(format!("no tmpfs can be mounted: {done:?}")),
        }
    }

    fn used(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.path).unwrap();
        found.f_blocks - found.f_bfree
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

#[tokio::test]
async fn an_image_that_is_there_is_acquired_at_once() {
    let place = Place::new().await;
    let layers: Vec<_> = (0..100).map(|number| layer(&number.to_string())).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    for number in 0..10 {
        let image = Image::new(&layers[..50 + number]).named(&format!("a{number}"));
        place.load(&image.layout()).await.unwrap();
    }
    for number in 0..50 {
        place.store.acquire(&name("a1"), &format!("other-{number}")).await.unwrap();
    }
    let mut times = Vec::new();
    for number in 0..50 {
        let user = format!("user-{number}");
        let start = Instant::now();
        place.store.acquire(&name("a0"), &user).await.unwrap();
        let acquired = start.elapsed();
        place.store.release(&user).await.unwrap();
        times.push((acquired, start.elapsed() - acquired));
    }
    times.sort();
    let (acquired, released) = times[times.len() / 2];
    println!("acquire {acquired:?}, release {released:?}");
    // Without optimisation and beside other tests; see the README for what it is otherwise.
    assert!(acquired < Duration::from_millis(20), "{acquired:?}");
}

/// The tree that is unpacked is one that overlayfs takes.
#[tokio::test]
async fn overlayfs_takes_the_layers() {
    let place = Place::new().await;
    let lower = Layer::new().file("a", "lower").file("b", "lower").directory("d").file("d/old", "x").end();
    let upper =
        Layer::new().file(".wh.a", "").file("b", "upper").file("d/.wh..wh..opq", "").file("d/new", "x").end();
    let top = Layer::new().link(EntryType::Symlink, "link", "b").end();
    place.load(&Image::new(&[&lower, &upper, &top]).named("a").layout()).await.unwrap();
    let used = place.store.acquire(&name("a"), "one").await.unwrap();
    let merged = place.directory.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lower = used.layers.iter().map(|layer| layer.display().to_string()).collect::<Vec<_>>().join(":");
    let mounted = std::process::Command::new("mount")
        .current_dir(place.store.root())
        .args(["-t", "overlay", "-o", &format!("lowerdir={lower}"), "overlay"])
        .arg(&merged)
        .output()
        .unwrap();
    if !mounted.status.success() {
        assert!(std::env::var_os("CI").is_none(), "{mounted:?}");
        return println!("skipped: overlayfs cannot be mounted: {mounted:?}");
    }
    let _mounted = Disk { path: merged.clone() };
    let mut names: Vec<_> = fs::read_dir(&merged)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["b", "d", "link"]);
    assert_eq!(fs::read_to_string(merged.join("link")).unwrap(), "upper");
    assert_eq!(fs::read_dir(merged.join("d")).unwrap().count(), 1);
}

/// Callers spawn what they ask of the store.
#[test]
fn every_future_may_move_between_threads() {
    fn check(_: impl Send) {}
    let _ = |store: oci_images::Store, image: host_core::ImageRef| {
        check(store.find(&image));
        check(store.all());
        check(store.load(Path::new("a")));
        check(store.pull(&image, &|_| ()));
        check(store.tag(&image, &image));
        check(store.acquire(&image, "a"));
        check(store.release("a"));
        check(store.users());
        check(oci_images::Store::open("a".into(), oci_images::Config::default()));
    };
}
