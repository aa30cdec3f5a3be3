use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn root() -> (tempfile::TempDir, Root, MandelboxId) {
    let scratch = tempfile::tempdir().unwrap();
    let meta = scratch.path().metadata().unwrap();
    let owner = Owner { uid: meta.uid(), gid: meta.gid() };
    let root = Root::open(&scratch.path().join("root"), owner).unwrap();
    (scratch, root, "m1".parse().unwrap())
}

#[test]
fn nothing_is_readable_or_writable_by_others() {
    let (_scratch, root, id) = root();
    let files = root.create(&id).unwrap();
    files.write("config.json", b"{}").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&root.of(&id)), 0o700);
    assert_eq!(mode(&files.mappings()), 0o700);
    assert_eq!(mode(&files.sockets()), 0o700);
    assert_eq!(mode(&files.mappings().join("config.json")), 0o600);
}

#[test]
fn a_link_planted_inside_is_replaced_and_never_followed() {
    let (scratch, root, id) = root();
    let files = root.create(&id).unwrap();
    let canary = scratch.path().join("canary");
    std::fs::write(&canary, "untouched").unwrap();
    symlink(&canary, files.mappings().join("config.json")).unwrap();
    files.write("config.json", b"secret").unwrap();
    assert_eq!(std::fs::read(&canary).unwrap(), b"untouched");
    assert_eq!(std::fs::read(files.mappings().join("config.json")).unwrap(), b"secret");
}

#[test]
fn removal_follows_no_link() {
    let (scratch, root, id) = root();
    let files = root.create(&id).unwrap();
    let outside = scratch.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("kept"), "").unwrap();
    symlink(&outside, files.mappings().join("link")).unwrap();
    root.remove(&id).unwrap();
    root.remove(&id).unwrap();
    assert!(outside.join("kept").exists());
    assert!(!root.of(&id).exists());
}

#[test]
fn a_directory_that_was_not_marked_yet_is_removed_and_no_other() {
    let (_scratch, root, id) = root();
    root.remove_unmarked(&id).unwrap();
    let set = |mode| std::fs::set_permissions(root.of(&id), PermissionsExt::from_mode(mode)).unwrap();
    std::fs::create_dir(root.of(&id)).unwrap();
    set(0o755);
    root.remove_unmarked(&id).unwrap();
    assert!(root.of(&id).exists(), "it was made by somebody else");
    set(0o700);
    std::fs::write(root.of(&id).join("theirs"), "").unwrap();
    root.remove_unmarked(&id).unwrap();
    assert!(root.of(&id).join("theirs").exists());
    std::fs::remove_file(root.of(&id).join("theirs")).unwrap();
    root.remove_unmarked(&id).unwrap();
    assert!(!root.of(&id).exists());
}

#[test]
fn a_directory_that_is_not_ours_is_neither_taken_nor_removed() {
    let (_scratch, root, id) = root();
    std::fs::create_dir(root.of(&id)).unwrap();
    std::fs::write(root.of(&id).join("theirs"), "").unwrap();
    assert_eq!(root.create(&id).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert!(root.of(&id).join("theirs").exists());
    assert_eq!(root.present().unwrap(), []);
}

#[test]
fn depth_and_number_are_no_obstacle_to_removal() {
    let (_scratch, root, id) = root();
    let files = root.create(&id).unwrap();
    // Deeper than a path may be long: made from inside, as a container does.
    let mut dir = files.dir.try_clone().unwrap();
    for _ in 0..3000 {
        dir.create_dir("d").unwrap();
        dir.write("f", "").unwrap();
        dir = dir.open_dir("d").unwrap();
    }
    for n in 0..2000 {
        files.dir.write(format!("f{n}"), "").unwrap();
    }
    root.remove(&id).unwrap();
    assert!(!root.of(&id).exists());
}

#[test]
fn a_second_service_cannot_have_the_same_root() {
    let (_scratch, root, _) = root();
    let error = Root::open(&root.path, root.owner).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_root_that_others_can_write_in_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Root::open(scratch.path(), Owner { uid: 0, gid: 0 }).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn a_directory_in_the_way_is_an_error_that_leaves_nothing() {
    let (_scratch, root, id) = root();
    let files = root.create(&id).unwrap();
    std::fs::create_dir(files.mappings().join("config.json")).unwrap();
    assert!(files.write("config.json", b"secret").is_err());
    assert_eq!(std::fs::read_dir(files.mappings()).unwrap().count(), 1);
}

#[test]
fn a_directory_that_exists_is_not_taken_over() {
    let (_scratch, root, id) = root();
    root.create(&id).unwrap();
    assert_eq!(root.create(&id).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(root.present().unwrap(), [id]);
}

#[tokio::test]
async fn readiness_is_seen_whether_it_comes_before_or_after_the_wait() {
    let (_scratch, root, _) = root();
    let mut reader = tokio::task::JoinSet::new();
    let of = root.clone();
    reader.spawn(async move { of.tell_arrivals().await });
    for early in [true, false] {
        let files = root.create(&format!("early-{early}").parse().unwrap()).unwrap();
        let arrival = files.watch(READY_FOR_CLIENT);
        files.write("something_else", b"").unwrap();
        let path = files.mappings().join(READY_FOR_CLIENT);
        if early {
            std::fs::write(&path, "").unwrap();
            arrival.wait().await;
        } else {
            tokio::join!(arrival.wait(), async { std::fs::write(path, "").unwrap() });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_is_seen_where_there_is_no_watch() {
    let (_scratch, root, id) = root();
    let mut files = root.create(&id).unwrap();
    for watches in [files.watches.clone(), None] {
        files.watches = watches;
        let arrival = files.watch(READY);
        let later = async {
            sleep(Duration::from_secs(3)).await;
            files.write(READY, b"").unwrap();
        };
        tokio::join!(arrival.wait(), later);
        files.dir.remove_file(READY).unwrap();
    }
}
