//! Whatever a tar holds, nothing outside of the target directory is touched.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use proptest::{collection::vec, prelude::*};
use tar::Header;

use super::*;

/// One entry: type, path, link, mode, attribute and data.
#[derive(Debug, Clone)]
struct Any {
    kind: u8,
    path: String,
    link: String,
    mode: u32,
    attribute: &'static str,
    data: Vec<u8>,
}

/// Few names, so that entries meet each other.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "d"]),
        1 => prop::sample::select(vec!["..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", ".wh..wh.x"]),
    ];
    (any::<bool>(), vec(part, 0..4), 0..20u8).prop_map(|(absolute, parts, special)| match special {
        0 => "../outside/canary".into(),
        1 => "OUTSIDE".into(),
        2 => "OUTSIDE/canary".into(),
        _ => format!("{}{}", if absolute { "/" } else { "" }, parts.join("/")),
    })
}

fn entry() -> impl Strategy<Value = Any> {
    let kind = prop::sample::select(b"000555112223346LKxgSZ7".to_vec());
    let attribute =
        prop::sample::select(vec!["", "user.a", "trusted.overlay.redirect", "security.capability", "user."]);
    (kind, path(), path(), 0..0o10000u32, attribute, vec(any::<u8>(), 0..600))
        .prop_map(|(kind, path, link, mode, attribute, data)| Any { kind, path, link, mode, attribute, data })
}

impl Any {
    fn pack(&self, outside: &Path, tar: &mut Vec<u8>) {
        let named = |text: &str| text.replace("OUTSIDE", &outside.display().to_string()).into_bytes();
        if !self.attribute.is_empty() {
            let record = format!(" SCHILY.xattr.{}=x\n", self.attribute);
            let length = (record.len()..).find(|all| *all == record.len() + all.to_string().len());
            block(b'x', b"pax", b"", 0, format!("{}{record}", length.unwrap()).as_bytes(), tar);
        }
        block(b'L', b"long", b"", 0, &named(&self.path), tar);
        block(b'K', b"long", b"", 0, &named(&self.link), tar);
        block(self.kind, b"name", b"link", self.mode, &self.data, tar);
    }
}

fn block(kind: u8, path: &[u8], link: &[u8], mode: u32, data: &[u8], tar: &mut Vec<u8>) {
    let mut header = Header::new_gnu();
    let fields = header.as_gnu_mut().unwrap();
    fields.name[..path.len()].copy_from_slice(path);
    fields.linkname[..link.len()].copy_from_slice(link);
    fields.typeflag = [kind];
    header.set_mode(mode);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    // Types without data have none, whatever follows.
    let data = if matches!(kind, b'1'..=b'6') { &[] } else { data };
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// Mode, links, owner, inode, times and content.
type State = (u32, u64, u32, u64, [i64; 2], Vec<u8>);

/// All that can be seen of a tree without changing it.
fn seen(root: &Path) -> BTreeMap<PathBuf, State> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if found.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let times = [found.mtime_nsec(), found.ctime_nsec()];
        let state = (found.mode(), found.nlink(), found.uid(), found.ino(), times, content);
        seen.insert(path, state);
    }
    seen
}

/// Nothing but what layers may bring: whiteouts are the only devices, and no mark is left as a file.
fn check(target: &Path) {
    for path in seen(target).into_keys() {
        let kind = fs::symlink_metadata(&path).unwrap();
        assert!(!kind.file_type().is_block_device(), "{}", path.display());
        assert!(!kind.file_type().is_char_device() || kind.rdev() == 0, "{}", path.display());
        let name = path.file_name().unwrap().as_bytes();
        assert!(!name.starts_with(WHITEOUT), "{}", path.display());
    }
}

/// Unpacks into a directory beside one that must not change.
fn try_to_escape(pack: impl FnOnce(&Path) -> Vec<u8>) {
    let place = tempfile::tempdir().unwrap();
    let (target, outside) = (place.path().join("target"), place.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "alive").unwrap();
    let before = seen(&outside);
    let tar = pack(&outside);
    let budget = Arc::new(Budget::new(1 << 30, 1000));
    let unpacked = unpack(&tar[..], &target, &Digest::of(&tar), &budget, &Stop::default());
    assert_eq!(seen(&outside), before, "{unpacked:?}");
    let mut names = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.all(|name| name == "target" || name == "outside"));
    if target.exists() {
        check(&target);
    }
    if let Err(error) = unpacked {
        assert_eq!(error.kind(), host_core::ErrorKind::Invalid, "{}", host_core::chain(&error));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_of_any_kind_and_name_stay_inside(entries in vec(entry(), 1..12)) {
        try_to_escape(|outside| {
            let mut tar = Vec::new();
            entries.iter().for_each(|entry| entry.pack(outside, &mut tar));
            tar
        });
    }

    #[test]
    fn damaged_headers_stay_inside(
        entries in vec(entry(), 1..6),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        try_to_escape(|outside| {
            let mut tar = Vec::new();
            entries.iter().for_each(|entry| entry.pack(outside, &mut tar));
            for (index, byte) in changes {
                let at = index.index(tar.len());
                tar[at] = byte;
                // With a checksum that fits, or nothing behind it would be read.
                let start = at / 512 * 512;
                let mut header = Header::from_byte_slice(&tar[start..start + 512]).clone();
                header.set_cksum();
                tar[start..start + 512].copy_from_slice(header.as_bytes());
            }
            tar
        });
    }

    #[test]
    fn noise_is_refused(noise in vec(any::<u8>(), 512..4096)) {
        try_to_escape(|_| noise);
    }
}
