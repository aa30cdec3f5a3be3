//! The server's certificate: from files, or made by itself.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use ring::digest::{SHA256, digest};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider},
    sign::CertifiedKey,
};

use super::reload::{Files, Reload, Shown};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject};

/// How long a certificate made here is valid: longer than any host lives without a restart.
const VALID: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
/// It is made anew when less is left.
const RENEW: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clients' clocks may be behind.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum Certificate {
    /// PEM files: the chain, the server's own first, and its key.
    Files {
        /// `http.certificate`
        certificate: PathBuf,
        /// `http.key`
        key: PathBuf,
    },
    /// A self-signed one, made in this directory and used again while it is valid.
    Generated {
        /// `cert.pem` and `key.pem` are in here.
        directory: PathBuf,
        /// The IP addresses it is for, beside this machine's loopback.
        addresses: Vec<IpAddr>,
    },
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read as PEM.
    #[error("{setting} {} cannot be read", path.display())]
    Unreadable {
        /// What names the file.
        setting: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// They do not go together, or are of a kind that is not supported.
    #[error("the certificate {} cannot be used with the key {}", certificate.display(), key.display())]
    Unusable {
        /// The chain.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// TLS itself cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// A certificate cannot be made.
    #[error("a self-signed certificate could not be made")]
    NotMade(#[from] rcgen::Error),
    /// A certificate was made and cannot be kept.
    #[error("the self-signed certificate could not be written to {}", path.display())]
    NotKept {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A chain with its key, and where they are.
pub(super) struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    paths: (PathBuf, PathBuf),
}

/// TLS 1.2 and 1.3 for HTTP/1.1; and what keeps the certificate that of its files, where it is from files.
pub(super) fn config(certificate: &Certificate) -> Result<(ServerConfig, Option<Reload>), CertificateError> {
    // Before they are read: what changes meanwhile is read again.
    let files = Files::of(certificate);
    let pair = match certificate {
        Certificate::Files { certificate, key } => {
            warn_if_shared(key);
            Pair::read(("http.certificate", certificate), ("http.key", key))?
        }
        Certificate::Generated { directory, addresses } => generated(directory, addresses)?,
    };
    let shown = Arc::new(Shown(RwLock::new(pair.certified()?)));
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let mut config = config?.with_no_client_auth().with_cert_resolver(shown.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((config, files.map(|files| Reload { files, shown })))
}

impl Pair {
    pub(super) fn read(
        certificate: (&'static str, &Path),
        key: (&'static str, &Path),
    ) -> Result<Self, CertificateError> {
        let unreadable = |(setting, path): (&'static str, &Path), source| CertificateError::Unreadable {
            setting,
            path: path.to_owned(),
            source,
        };
        let chain: Vec<_> = CertificateDer::pem_file_iter(certificate.1)
            .and_then(Iterator::collect)
            .and_then(
                |chain: Vec<_>| {
                    if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) }
                },
            )
            .map_err(|source| unreadable(certificate, source))?;
        let of = PrivateKeyDer::from_pem_file(key.1).map_err(|source| unreadable(key, source))?;
        Ok(Self { chain, key: of, paths: (certificate.1.to_owned(), key.1.to_owned()) })
    }

    pub(super) fn certified(self) -> Result<Arc<CertifiedKey>, CertificateError> {
        let (certificate, key) = self.paths;
        let sha256 = self.chain.first().map(|first| fingerprint(first));
        let place = certificate.display().to_string();
        let made = CertifiedKey::from_der(self.chain, self.key, &provider());
        let made = made.map_err(|source| CertificateError::Unusable { certificate, key, source })?;
        tracing::info!(certificate = place, sha256, "TLS certificate");
        Ok(Arc::new(made))
    }

    /// Whether a client that trusts it would take it for all `names`, now and for a while.
    fn is_good_for(&self, names: &[ServerName<'_>]) -> bool {
        let Some(first) = self.chain.first() else {
            return false;
        };
        let mut roots = RootCertStore::empty();
        if roots.add(first.clone()).is_err() {
            return false;
        }
        let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()
        else {
            return false;
        };
        let now = UnixTime::now();
        let later = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + RENEW);
        let takes = |name, time| verifier.verify_server_cert(first, &[], name, &[], time).is_ok();
        names.iter().all(|name| takes(name, now) && takes(name, later))
            && CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider()).is_ok()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(default_provider())
}

/// The pair that is kept in `directory`, made there if it is missing or of no more use.
fn generated(directory: &Path, addresses: &[IpAddr]) -> Result<Pair, CertificateError> {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let read = || Pair::read(("certificate", &certificate), ("key", &key));
    let names = names(addresses);
    if is_private(directory) && is_private(&key) && read().is_ok_and(|pair| pair.is_good_for(&names)) {
        return read();
    }
    let names = names.iter().map(|name| name.to_str().into_owned()).collect::<Vec<_>>();
    let (made, made_key) = make(names)?;
    let not_kept = |source| CertificateError::NotKept { path: directory.to_owned(), source };
    make_private(directory).map_err(not_kept)?;
    // The key first: a certificate without its key would be the only half that looks whole.
    write(&key, made_key.as_bytes()).map_err(not_kept)?;
    write(&certificate, made.as_bytes()).map_err(not_kept)?;
    read()
}

fn names(addresses: &[IpAddr]) -> Vec<ServerName<'static>> {
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    let addresses = loopback.iter().chain(addresses).filter(|address| !address.is_unspecified());
    let localhost = ServerName::try_from("localhost").ok();
    localhost.into_iter().chain(addresses.map(|&address| ServerName::from(address))).collect()
}

/// Certificate and key, PEM.
fn make(names: Vec<String>) -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut parameters = rcgen::CertificateParams::new(names)?;
    let now = SystemTime::now();
    parameters.not_before = (now - BACKDATED).into();
    parameters.not_after = (now + VALID).into();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "host-service");
    let certificate = parameters.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// It exists, is no link, and nobody but its owner may do anything with it.
fn is_private(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|of| !of.is_symlink() && of.mode() & 0o077 == 0)
}

/// An existing directory is taken over, unless it is somebody else's; a link is not followed.
fn make_private(directory: &Path) -> io::Result<()> {
    if let Some(parent) = directory.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(directory)?.is_dir() {
                fs::set_permissions(directory, Permissions::from_mode(0o700))
            } else {
                Err(io::Error::new(io::ErrorKind::NotADirectory, "there is something else of that name"))
            }
        }
        result => result,
    }
}

/// Whole or not at all, and never readable by others.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// A key that was given may be shared with a group on purpose, but not with everybody.
pub(super) fn warn_if_shared(key: &Path) {
    if fs::metadata(key).is_ok_and(|of| of.mode() & 0o007 != 0) {
        tracing::warn!(key = %key.display(), "everybody on this machine can read http.key: chmod o= it");
    }
}

/// As `openssl x509 -fingerprint -sha256` shows it.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = digest(&SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn made_in(directory: &Path, addresses: &[IpAddr]) -> Vec<u8> {
        generated(directory, addresses).unwrap().chain[0].to_vec()
    }

    #[test]
    fn a_certificate_is_made_once_and_kept_private() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("state/tls");
        let first = made_in(&directory, &[]);
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("key.pem")), 0o600);
        assert_eq!(mode(&directory.join("cert.pem")), 0o600);
        assert_eq!(made_in(&directory, &[]), first);
        let left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    #[test]
    fn one_that_is_of_no_more_use_is_made_anew() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("tls");
        let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        let mut before = made_in(&directory, &[]);
        let mut anew = |why: &str, addresses: &[IpAddr]| {
            let now = made_in(&directory, addresses);
            assert_ne!(now, before, "{why}");
            before = now;
        };
        anew("for another address", &["192.0.2.1".parse().unwrap()]);
        fs::write(&certificate, "garbage").unwrap();
        anew("broken", &[]);
        let (_, other) = make(vec!["localhost".into()]).unwrap();
        fs::write(&key, other).unwrap();
        anew("another one's key", &[]);
        fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        anew("a key that others could read", &[]);
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).unwrap();
        anew("a directory that others could enter", &[]);
        assert_eq!((mode(&directory), mode(&key)), (0o700, 0o600));
    }

    #[test]
    fn one_that_ends_soon_is_not_good_enough() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        let mut is_good = |left: Duration| {
            parameters.not_after = (SystemTime::now() + left).into();
            let chain = vec![parameters.self_signed(&key).unwrap().der().clone()];
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let names = [ServerName::try_from("localhost").unwrap()];
            Pair { chain, key, paths: Default::default() }.is_good_for(&names)
        };
        assert!(is_good(VALID));
        assert!(!is_good(RENEW / 2));
    }

    #[test]
    fn a_link_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (elsewhere, directory) = (scratch.path().join("elsewhere"), scratch.path().join("tls"));
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &directory).unwrap();
        assert!(matches!(generated(&directory, &[]), Err(CertificateError::NotKept { .. })));
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        for (name, (certificate, key)) in [("a", make(vec![]).unwrap()), ("b", make(vec![]).unwrap())] {
            fs::write(path(&format!("{name}.crt")), certificate).unwrap();
            fs::write(path(&format!("{name}.key")), key).unwrap();
        }
        fs::write(path("empty"), "").unwrap();
        let error = |certificate: &str, key: &str| {
            let source = Certificate::Files { certificate: path(certificate), key: path(key) };
            config(&source).map(drop).map_err(|error| host_core::chain(&error))
        };
        assert_eq!(error("a.crt", "a.key"), Ok(()));
        let wrong = |result: Result<(), String>, texts: &[&str]| {
            let error = result.unwrap_err();
            assert!(texts.iter().all(|text| error.contains(text)), "{error}");
        };
        wrong(error("a.crt", "b.key"), &["a.crt", "b.key", "cannot be used"]);
        wrong(error("absent", "a.key"), &["http.certificate", "absent", "No such file"]);
        wrong(error("empty", "a.key"), &["http.certificate", "empty"]);
        wrong(error("a.crt", "a.crt"), &["http.key", "a.crt"]);
    }
}
