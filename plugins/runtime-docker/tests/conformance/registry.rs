//! A registry on loopback with one image, as much of one as a pull takes.

use std::{
    fs,
    future::ready,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use host_core::ImageRef;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};

const REPOSITORY: &str = "test/pullable";
const TAG: &str = "current-build";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Serves until it is dropped.
pub(crate) struct Registry {
    port: u16,
    _tasks: JoinSet<()>,
}

/// An unpacked OCI layout, and the digest of the manifest in it that [`TAG`] means.
struct Layout {
    directory: TempDir,
    manifest: String,
}

impl Registry {
    /// Offers the image that an OCI archive has under `name`.
    pub(crate) async fn offering(archive: &Path, name: &str) -> Result<Self> {
        let layout = Arc::new(Layout::unpacked(archive, name)?);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let layout = Arc::clone(&layout);
                let service = service_fn(move |request| ready(answer(&layout, &request)));
                connections.spawn(async move {
                    // A client that hangs up has what it wanted.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Self { port, _tasks: tasks })
    }

    pub(crate) fn image(&self) -> ImageRef {
        format!("127.0.0.1:{}/{REPOSITORY}:{TAG}", self.port).parse().unwrap()
    }
}

impl Layout {
    fn unpacked(archive: &Path, name: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let unpacked = Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(directory.path())
            .status()?;
        ensure!(unpacked.success(), "cannot unpack {}", archive.display());
        let index: Value = serde_json::from_slice(&fs::read(directory.path().join("index.json"))?)?;
        let manifests = index["manifests"].as_array().context("an index without manifests")?;
        let named = |manifest: &&Value| manifest["annotations"]["io.containerd.image.name"] == name;
        let manifest = manifests.iter().find(named).context("no image of that name")?;
        let manifest = manifest["digest"].as_str().context("a manifest without digest")?.to_owned();
        Ok(Self { directory, manifest })
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let digest = digest.trim_start_matches("sha256:");
        self.directory.path().join("blobs/sha256").join(digest)
    }

    /// Digest and media type of what a path means.
    fn find(&self, path: &str) -> Option<(String, &'static str)> {
        let (kind, name) = path.strip_prefix(&format!("/v2/{REPOSITORY}/"))?.split_once('/')?;
        match (kind, name) {
            ("manifests", TAG) => Some((self.manifest.clone(), MANIFEST)),
            ("manifests", digest) => Some((digest.to_owned(), MANIFEST)),
            ("blobs", digest) => Some((digest.to_owned(), "application/octet-stream")),
            _ => None,
        }
    }
}

fn answer(layout: &Layout, request: &Request<Incoming>) -> http::Result<Response<Full<Bytes>>> {
    let path = request.uri().path();
    if path == "/v2/" {
        return Ok(Response::new(Full::default()));
    }
    let found = layout.find(path);
    let content = found.as_ref().and_then(|(digest, _)| fs::read(layout.blob(digest)).ok());
    let (Some((digest, kind)), Some(content)) = (found, content) else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default());
    };
    let answer = Response::builder()
        .header(CONTENT_TYPE, kind)
        .header("Docker-Content-Digest", digest)
        .header("Content-Length", content.len());
    answer.body(match *request.method() {
        Method::HEAD => Full::default(),
        _ => content.into(),
    })
}
