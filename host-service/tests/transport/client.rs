//! A client that sends what it is told to, byte by byte where need be.

use std::{io, path::Path, sync::Arc, time::Duration};

use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring::default_provider},
};

/// Ends a test that waits for what never comes; a paused clock gets there at once.
const PATIENCE: Duration = Duration::from_secs(120);

/// Trusts the certificate in that file and no other.
pub(crate) fn trusting(certificate: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// A connection to the server.
pub(crate) struct Client<S>(pub(crate) TlsStream<S>);

/// What the server said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    /// In lower case, without the status line.
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Said {
    /// Its code, which every refusal has.
    pub(crate) fn code(&self) -> &str {
        assert_eq!(self.body["result"], Value::Null, "{self:?}");
        assert!(self.body["error"].as_str().is_some_and(|error| !error.is_empty()), "{self:?}");
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        self.body["code"].as_str().unwrap()
    }

    /// Status and code.
    pub(crate) fn refused(&self) -> (u16, &str) {
        (self.status, self.code())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn connect(connector: &TlsConnector, stream: S) -> io::Result<Self> {
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.map(Self)
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// One request, and what is said to it.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Said {
        self.send(request(method, path, headers, body)).await;
        self.hear().await
    }

    /// A `json_transport` with that body.
    pub(crate) async fn put(&mut self, body: &Value) -> Said {
        self.ask("PUT", "/json_transport", "", body.to_string().as_bytes()).await
    }

    /// The next answer.
    pub(crate) async fn hear(&mut self) -> Said {
        timeout(PATIENCE, hear(&mut self.0)).await.expect("an answer")
    }

    /// Everything until the server closes, as text.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        // A server that closes without saying so in TLS is fine here.
        let _ = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("the end");
        String::from_utf8(rest).unwrap()
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// The next answer on any stream.
pub(crate) async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Said {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let (status, head) = head.split_once("\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Said { status: status.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_owned(), body }
}
