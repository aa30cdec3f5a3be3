//! A registry, as much of it as a pull needs.
//!
//! `oci-client` signs in and streams blobs. It would take a manifest of any size into memory, so manifests are asked
//! for here, with the token that it got, and read no further than their limit.

use std::{fs, future::Future, path::Path, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use host_core::{ErrorKind, PluginError};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
};
use reqwest::{StatusCode, header::ACCEPT, redirect};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    Registry,
    credentials::{self, Credentials},
    digest::{Digest, Hasher},
    error::{Result, invalid, unreadable},
    image::{Blob, DOCUMENT_BYTES_MAX},
};

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";
const REDIRECTS_MAX: usize = 5;
/// Of what a server says about its refusal.
const SAID_CHARS_MAX: usize = 300;

/// The content of a blob, in pieces.
pub(crate) type Pieces = BoxStream<'static, Result<bytes::Bytes>>;

/// One repository of a registry, signed in to.
pub(crate) struct Remote {
    reference: Reference,
    client: Client,
    documents: reqwest::Client,
    scheme: &'static str,
    credentials: Option<Credentials>,
    token: Option<SecretString>,
    timeout: Duration,
}

/// What a registry is spoken to with; its files are read by [`Access::read`].
pub(crate) struct Access {
    credentials: Option<Credentials>,
    roots: Vec<CertificateDer<'static>>,
    plain_http: bool,
}

impl Access {
    /// # Errors
    /// `Denied` or `Invalid` for a file of the section that cannot be used.
    pub(crate) fn read(host: &str, registry: &Registry) -> Result<Self> {
        let credentials = credentials::find(host, registry)?;
        let roots = registry.ca_file.as_deref().map_or_else(|| Ok(Vec::new()), roots)?;
        Ok(Self { credentials, roots, plain_http: registry.plain_http })
    }
}

fn roots(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let shown = file.display();
    let unreadable = |error| {
        PluginError::new(ErrorKind::Denied, format!("cannot read the ca_file {shown}")).with_source(error)
    };
    let content = fs::read(file).map_err(|error: std::io::Error| unreadable(error))?;
    let roots = CertificateDer::pem_slice_iter(&content).collect::<std::result::Result<Vec<_>, _>>();
    match roots {
        Ok(roots) if !roots.is_empty() => Ok(roots),
        _ => Err(invalid(format!("the ca_file {shown} holds no certificates as PEM"))),
    }
}

impl Remote {
    /// Signs in, if the registry asks for that.
    pub(crate) async fn connect(reference: Reference, access: Access, timeout: Duration) -> Result<Self> {
        install_provider();
        let Access { credentials, roots, plain_http } = access;
        let broken = |error: &dyn std::fmt::Display| {
            PluginError::new(ErrorKind::Internal, format!("cannot set up a client of registries: {error}"))
        };
        let documents = documents(&roots, plain_http, timeout).map_err(|error| broken(&error))?;
        let client =
            Client::try_from(client_config(&roots, plain_http, timeout)).map_err(|error| broken(&error))?;
        let scheme = if plain_http { "http" } else { "https" };
        let mut remote = Self { reference, client, documents, scheme, credentials, token: None, timeout };
        remote.sign_in().await?;
        Ok(remote)
    }

    async fn sign_in(&mut self) -> Result<()> {
        let auth = Credentials::for_client(self.credentials.as_ref());
        let token = self.client.auth(&self.reference, &auth, RegistryOperation::Pull);
        let token = self.in_time(async { token.await.map_err(|error| self.refused(error)) }).await?;
        self.token = token.map(Into::into);
        Ok(())
    }

    /// The manifest or index that a digest means, or the pulled reference itself.
    pub(crate) async fn manifest(&self, digest: Option<&Digest>) -> Result<Vec<u8>> {
        let name = digest.map(Digest::as_str).or(self.reference.digest());
        let wanted = name.or(self.reference.tag()).unwrap_or("latest");
        let (registry, repository) = (self.reference.resolve_registry(), self.reference.repository());
        let url = format!("{}://{registry}/v2/{repository}/manifests/{wanted}", self.scheme);
        let mut request = self.documents.get(url).header(ACCEPT, MANIFESTS);
        request = match (&self.token, &self.credentials) {
            (Some(token), _) => request.bearer_auth(token.expose_secret()),
            (None, Some(who)) => request.basic_auth(who.username(), Some(who.password().expose_secret())),
            (None, None) => request,
        };
        let content = self.in_time(async {
            let answer = request.send().await.map_err(|error| self.failed(error))?;
            if answer.status() != StatusCode::OK {
                return Err(self.status(answer.status()));
            }
            self.small(answer.bytes_stream()).await
        });
        let content = content.await?;
        match name.map(str::parse::<Digest>).transpose()? {
            Some(said) if said != Digest::of(&content) => {
                let found = Digest::of(&content);
                Err(invalid(format!("the manifest {said} of {} is {found}", self.reference)))
            }
            _ => Ok(content),
        }
    }

    async fn small(&self, pieces: impl Stream<Item = reqwest::Result<bytes::Bytes>>) -> Result<Vec<u8>> {
        let mut pieces = std::pin::pin!(pieces);
        let mut content = Vec::new();
        while let Some(piece) = pieces.next().await {
            content.extend_from_slice(&piece.map_err(|error| self.failed(error))?);
            if content.len() as u64 > DOCUMENT_BYTES_MAX {
                let reference = &self.reference;
                return Err(invalid(format!(
                    "the manifest of {reference} is of more than {DOCUMENT_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(content)
    }

    /// A small blob, whole and verified.
    pub(crate) async fn document(&self, blob: &Blob) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = async {
            let mut pieces = self.blob(blob).await?;
            while let Some(piece) = pieces.next().await {
                content.extend_from_slice(&piece?);
            }
            Ok(())
        };
        self.in_time(read).await?;
        Ok(content)
    }

    /// A blob, verified: no more than its descriptor says, and an error at the end if it was another.
    pub(crate) async fn blob(&self, blob: &Blob) -> Result<Pieces> {
        let stream = async {
            let stream = self.client.pull_blob_stream(&self.reference, blob.digest.as_str()).await;
            stream.map_err(|error| self.refused(error))
        };
        let stream = self.in_time(stream).await?;
        let name = self.reference.to_string();
        let mut check = Some((Hasher::default(), 0));
        let blob = blob.clone();
        let verified =
            stream.stream.map(Some).chain(futures::stream::iter([None])).filter_map(move |piece| {
                std::future::ready(match piece {
                    Some(piece) => Some(piece.map_err(|error| broken_off(&name, error)).and_then(|piece| {
                        take(&mut check, &blob, &piece)?;
                        Ok(piece)
                    })),
                    // The end.
                    None => {
                        let check = check.take();
                        check.and_then(|(hasher, count)| blob.check(&hasher.finish(), count).err()).map(Err)
                    }
                })
            });
        Ok(verified.boxed())
    }

    /// Small things are there in a moment or not at all: a server must not hold a pull by a byte now and then.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(self.timeout, work).await.unwrap_or_else(|_| Err(self.silent()))
    }

    fn silent(&self) -> PluginError {
        let message = format!("the registry of {} does not answer within {:?}", self.reference, self.timeout);
        PluginError::new(ErrorKind::Unavailable, message)
    }

    /// Addresses are left out of errors: after a redirect they may hold a signature.
    fn failed(&self, error: reqwest::Error) -> PluginError {
        unavailable(&self.reference.to_string(), error)
    }

    fn status(&self, status: StatusCode) -> PluginError {
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::Unavailable,
            status if status.is_server_error() => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        PluginError::new(kind, format!("the registry of {} says {status}", self.reference))
    }

    fn refused(&self, error: OciDistributionError) -> PluginError {
        let kind = match &error {
            OciDistributionError::RequestError(_) => {
                let OciDistributionError::RequestError(error) = error else { return self.silent() };
                return self.failed(error);
            }
            OciDistributionError::ServerError { code, .. } => {
                return self.status(StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
            }
            OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. } => ErrorKind::Denied,
            OciDistributionError::RegistryError { envelope, .. } => {
                envelope.errors.first().map_or(ErrorKind::Internal, |error| kind_of(&error.code))
            }
            OciDistributionError::DigestError(_) => ErrorKind::Invalid,
            _ => ErrorKind::Internal,
        };
        let said: String = error.to_string().chars().take(SAID_CHARS_MAX).collect();
        PluginError::new(kind, format!("the registry of {} refuses: {said}", self.reference))
    }
}

fn kind_of(code: &OciErrorCode) -> ErrorKind {
    match code {
        OciErrorCode::Unauthorized | OciErrorCode::Denied => ErrorKind::Denied,
        OciErrorCode::BlobUnknown
        | OciErrorCode::ManifestBlobUnknown
        | OciErrorCode::ManifestUnknown
        | OciErrorCode::NameUnknown
        | OciErrorCode::NotFound => ErrorKind::NotFound,
        OciErrorCode::NameInvalid => ErrorKind::Invalid,
        OciErrorCode::Toomanyrequests => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    }
}

fn take(check: &mut Option<(Hasher, u64)>, blob: &Blob, piece: &[u8]) -> Result<()> {
    let Some((hasher, count)) = check else { return Ok(()) };
    hasher.update(piece);
    *count += piece.len() as u64;
    if *count > blob.size {
        let Blob { digest, size } = blob;
        return Err(invalid(format!("{digest} is of more than the {size} bytes its descriptor says")));
    }
    Ok(())
}

/// A stream of the client ended with an error: the connection's, or its own check of the digest.
fn broken_off(name: &str, error: std::io::Error) -> PluginError {
    if error.get_ref().is_some_and(|inner| inner.is::<reqwest::Error>()) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<reqwest::Error>().ok());
        return inner.map_or_else(|| invalid(name), |inner| unavailable(name, *inner));
    }
    unreadable(&format!("a blob of {name}"), error)
}

fn unavailable(name: &str, error: reqwest::Error) -> PluginError {
    let message = format!("the registry of {name} cannot be reached, or broke off");
    PluginError::new(ErrorKind::Unavailable, message).with_source(error.without_url())
}

/// Both clients use what the process has for TLS; a program that has chosen keeps its choice.
fn install_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else may be first; then theirs is used.
        let _: std::result::Result<(), Arc<_>> = rustls::crypto::ring::default_provider().install_default();
    }
}

fn client_config(roots: &[CertificateDer<'_>], plain_http: bool, timeout: Duration) -> ClientConfig {
    let certificate =
        |root: &CertificateDer<'_>| Certificate { encoding: CertificateEncoding::Der, data: root.to_vec() };
    ClientConfig {
        protocol: if plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
        tls_certs_only: roots.iter().map(certificate).collect(),
        connect_timeout: Some(timeout),
        read_timeout: Some(timeout),
        user_agent: concat!("host-service/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    }
}

fn documents(
    roots: &[CertificateDer<'_>],
    plain_http: bool,
    timeout: Duration,
) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("host-service/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(timeout)
        .read_timeout(timeout)
        .https_only(!plain_http)
        .redirect(redirect::Policy::limited(REDIRECTS_MAX));
    if !roots.is_empty() {
        let roots = roots.iter().map(|root| reqwest::Certificate::from_der(root));
        builder = builder.tls_certs_only(roots.collect::<reqwest::Result<Vec<_>>>()?);
    }
    builder.build()
}
