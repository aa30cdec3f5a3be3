//! A registry that does wrong what a real one never would, when a test wants it to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::build::{Image, MANIFEST, digest};

/// What a request gets.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Status, more header lines, content.
    Whole(u16, String, Vec<u8>),
    /// Half of the content, then the connection is closed.
    Half(Vec<u8>),
    /// Half of the content, then nothing more.
    Stalled(Vec<u8>),
    /// Nothing at all.
    Silent,
    /// Content of no length, without end.
    Endless,
}

impl Answer {
    pub(crate) fn ok(content: &[u8]) -> Self {
        Self::Whole(200, String::new(), content.to_vec())
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::Whole(status, String::new(), Vec::new())
    }
}

type Twist = dyn Fn(&Asked, Option<Answer>) -> Answer + Send + Sync;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
}

/// Serves until it is dropped.
pub(crate) struct Fake {
    pub(crate) host: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl Fake {
    /// Offers images by their tags at `test/a`; `twist` may answer otherwise than one should.
    pub(crate) async fn new(
        images: &[(&str, &Image)],
        twist: impl Fn(&Asked, Option<Answer>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (content, log, twist) = (Arc::new(content(images)), Arc::clone(&asked), Arc::new(twist));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (content, log) = (Arc::clone(&content), Arc::clone(&log));
                let twist: Arc<Twist> = twist.clone();
                connections.spawn(async move {
                    // A client that hangs up has had enough.
                    let _ = serve(stream, &content, &log, &*twist).await;
                });
            }
        });
        Self { host, asked, _tasks: tasks }
    }

    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}/test/a:{tag}", self.host)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Requests for this blob.
    pub(crate) fn fetched(&self, blob: &[u8]) -> usize {
        let path = format!("/v2/test/a/blobs/{}", digest(blob));
        self.asked().iter().filter(|asked| asked.path == path).count()
    }
}

fn content(images: &[(&str, &Image)]) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::from([("/v2/".to_owned(), Vec::new())]);
    for (tag, image) in images {
        let manifest = serde_json::to_vec(&image.manifest()).unwrap();
        for name in [(*tag).to_owned(), digest(&manifest)] {
            content.insert(format!("/v2/test/a/manifests/{name}"), manifest.clone());
        }
        for blob in image.layers.iter().map(|(layer, _)| layer.clone()).chain([image.config()]) {
            content.insert(format!("/v2/test/a/blobs/{}", digest(&blob)), blob);
        }
    }
    content
}

async fn serve(
    mut stream: TcpStream,
    content: &BTreeMap<String, Vec<u8>>,
    log: &Mutex<Vec<Asked>>,
    twist: &Twist,
) -> std::io::Result<()> {
    let asked = head(&mut stream).await?;
    log.lock().unwrap().push(asked.clone());
    let there = content.get(&asked.path).map(|content| Answer::ok(content));
    match twist(&asked, there) {
        Answer::Whole(status, headers, content) => {
            begin(&mut stream, status, &headers, Some(content.len())).await?;
            stream.write_all(&content).await
        }
        Answer::Half(content) => {
            begin(&mut stream, 200, "", Some(content.len())).await?;
            stream.write_all(&content[..content.len() / 2]).await
        }
        Answer::Stalled(content) => {
            begin(&mut stream, 200, "", Some(content.len())).await?;
            stream.write_all(&content[..content.len() / 2]).await?;
            std::future::pending().await
        }
        Answer::Silent => std::future::pending().await,
        Answer::Endless => {
            begin(&mut stream, 200, "", None).await?;
            loop {
                stream.write_all(&[b' '; 64 << 10]).await?;
            }
        }
    }
}

async fn head(stream: &mut TcpStream) -> std::io::Result<Asked> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then(|| value.to_owned())
    };
    Ok(Asked { path, authorization: text.lines().find_map(header) })
}

async fn begin(
    stream: &mut TcpStream,
    status: u16,
    headers: &str,
    length: Option<usize>,
) -> std::io::Result<()> {
    let length = length.map(|length| format!("Content-Length: {length}\r\n")).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: {MANIFEST}\r\n{headers}{length}\r\n"
    );
    stream.write_all(head.as_bytes()).await
}

/// A twist that is none.
pub(crate) fn straight(_: &Asked, there: Option<Answer>) -> Answer {
    there.unwrap_or_else(|| {
        let error: Value =
            serde_json::json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "unknown" }] });
        Answer::Whole(404, String::new(), serde_json::to_vec(&error).unwrap())
    })
}
