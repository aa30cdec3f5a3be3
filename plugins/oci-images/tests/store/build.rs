//! Archives made for tests, and a store to put them into.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use host_core::{ErrorKind, ImageRef, PluginError};
use oci_images::{Config, Store};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A store in a directory of its own.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store"), config).await.unwrap();
        Self { directory, store }
    }

    /// Another view of the same store, as another process has it.
    pub(crate) async fn again(&self) -> Store {
        Store::open(self.store.root().to_owned(), Config::default()).await.unwrap()
    }

    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) async fn load(&self, archive: &[u8]) -> Result<Vec<ImageRef>, PluginError> {
        self.store.load(&self.file("archive.tar", archive)).await
    }

    /// Where the layers of an image are, topmost first.
    pub(crate) async fn layers(&self, image: &str) -> Vec<PathBuf> {
        let unpacked = self.store.acquire(&name(image), "looking").await.unwrap();
        self.store.release("looking").await.unwrap();
        unpacked.layers.iter().map(|layer| self.store.root().join(layer)).collect()
    }

    /// Loads an image of one layer and says where that is.
    pub(crate) async fn unpack(&self, layer: &[u8]) -> PathBuf {
        self.load(&Image::new(&[layer]).named("test/layer").layout()).await.unwrap();
        self.layers("test/layer").await.remove(0)
    }

    /// How many things there are in a part of the store.
    pub(crate) fn count(&self, part: &str) -> usize {
        fs::read_dir(self.store.root().join(part)).unwrap().count()
    }

    /// The archive is refused with this text, and nothing of it is left.
    pub(crate) async fn refuses(&self, archive: &[u8], text: &str) {
        let error = self.load(archive).await.unwrap_err();
        let told = host_core::chain(&error);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{told}");
        assert!(told.contains(text), "{told:?} does not say {text:?}");
        self.is_empty().await;
    }

    pub(crate) async fn is_empty(&self) {
        assert_eq!(self.store.all().await.unwrap(), []);
        for part in ["l", "tmp", "trash", "configs", "users"] {
            assert_eq!(self.count(part), 0, "{part} is not empty");
        }
    }
}

pub(crate) fn name(text: &str) -> ImageRef {
    text.parse().unwrap()
}

pub(crate) fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A tar whose entries may be as wrong as a test likes.
#[derive(Default)]
pub(crate) struct Layer(Vec<u8>);

impl Layer {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn header(kind: EntryType, path: &str, size: u64) -> Header {
        let mut header = Header::new_gnu();
        let name = &mut header.as_gnu_mut().unwrap().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header
    }

    pub(crate) fn add(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &str) -> Self {
        self.add(Self::header(EntryType::Regular, path, data.len() as u64), data.as_bytes())
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.add(Self::header(EntryType::Directory, path, 0), b"")
    }

    pub(crate) fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, path, 0);
        header.set_link_name_literal(target).unwrap();
        self.add(header, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    /// Pax records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..).find(|length: &usize| *length == rest + length.to_string().len()).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.add(Self::header(EntryType::XHeader, "pax", data.len() as u64), &data)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// An image of layers, to be packed in one form or another.
pub(crate) struct Image {
    pub(crate) config: Value,
    /// As they are stored, and the digest of each one's tar.
    pub(crate) layers: Vec<(Vec<u8>, String)>,
    names: Vec<String>,
}

impl Image {
    pub(crate) fn new(layers: &[&[u8]]) -> Self {
        Self::packed(layers, <[u8]>::to_vec)
    }

    pub(crate) fn packed(layers: &[&[u8]], pack: fn(&[u8]) -> Vec<u8>) -> Self {
        let layers: Vec<_> = layers.iter().map(|layer| (pack(layer), digest(layer))).collect();
        let ids: Vec<_> = layers.iter().map(|(_, id)| id).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "User": "1000", "Cmd": ["/x"] },
            "rootfs": { "type": "layers", "diff_ids": ids },
        });
        Self { config, layers, names: Vec::new() }
    }

    pub(crate) fn named(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    pub(crate) fn config(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    pub(crate) fn id(&self) -> String {
        digest(&self.config())
    }

    pub(crate) fn manifest(&self) -> Value {
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(content, _)| descriptor("application/vnd.oci.image.layer.v1.tar", content))
            .collect();
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &self.config()),
            "layers": layers,
        })
    }

    /// The members of an OCI layout.
    pub(crate) fn members(&self) -> Members {
        let manifest = serde_json::to_vec(&self.manifest()).unwrap();
        let mut members = Members::new();
        members.blob(&self.config());
        members.blob(&manifest);
        for (content, _) in &self.layers {
            members.blob(content);
        }
        let mut manifests: Vec<Value> = Vec::new();
        for name in &self.names {
            let mut one = descriptor(MANIFEST, &manifest);
            one["annotations"] = json!({ "io.containerd.image.name": name });
            manifests.push(one);
        }
        if manifests.is_empty() {
            manifests.push(descriptor(MANIFEST, &manifest));
        }
        members.set("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        members.index(&manifests);
        members
    }

    pub(crate) fn layout(&self) -> Vec<u8> {
        self.members().tar()
    }

    /// What `docker save` wrote before it wrote layouts.
    pub(crate) fn saved(&self) -> Members {
        let mut members = Members::new();
        let config = format!("{}.json", &self.id()["sha256:".len()..]);
        members.set(&config, &self.config());
        let mut layers = Vec::new();
        for (number, (content, _)) in self.layers.iter().enumerate() {
            let member = format!("{number}/layer.tar");
            members.set(&member, content);
            layers.push(member);
        }
        let list = json!([{ "Config": config, "RepoTags": self.names, "Layers": layers }]);
        members.set("manifest.json", &serde_json::to_vec(&list).unwrap());
        members
    }
}

pub(crate) fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(content), "size": content.len() })
}

/// Members of an archive of images, by name.
#[derive(Default)]
pub(crate) struct Members(pub(crate) BTreeMap<String, Vec<u8>>);

impl Members {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn set(&mut self, name: &str, content: &[u8]) {
        self.0.insert(name.to_owned(), content.to_vec());
    }

    pub(crate) fn blob(&mut self, content: &[u8]) {
        self.set(&blob_name(content), content);
    }

    pub(crate) fn index(&mut self, manifests: &[Value]) {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        self.set("index.json", &serde_json::to_vec(&index).unwrap());
    }

    /// Changes a JSON member.
    pub(crate) fn edit(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.0[name]).unwrap();
        change(&mut value);
        self.set(name, &serde_json::to_vec(&value).unwrap());
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        self.tar_with(|_| {})
    }

    pub(crate) fn tar_with(&self, more: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, content) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &content[..]).unwrap();
        }
        more(&mut builder);
        builder.into_inner().unwrap()
    }

    pub(crate) fn write(&self, directory: &Path) {
        for (name, content) in &self.0 {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
}

pub(crate) fn blob_name(content: &[u8]) -> String {
    format!("blobs/sha256/{}", &digest(content)["sha256:".len()..])
}
