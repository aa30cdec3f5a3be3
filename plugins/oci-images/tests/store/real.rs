//! Debian's `docker-registry` on loopback, without and with passwords and TLS.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use oci_client::{
    Client, Reference, RegistryOperation,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use oci_images::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::build::{Image, MANIFEST, digest};

/// What the host must have, and which Debian packages have it.
const NEEDED: [(&str, &str); 3] =
    [("docker-registry", "docker-registry"), ("htpasswd", "apache2-utils"), ("setpriv", "util-linux")];
/// A loaded machine needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const USER: &str = "mandelbox";
pub(crate) const PASSWORD: &str = "a-very-secret-password";

/// What a registry asks of its clients.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asks {
    pub(crate) password: bool,
    pub(crate) tls: bool,
}

/// A running registry; killed when this is dropped, and by the kernel when the thread that started it ends.
pub(crate) struct Real {
    pub(crate) host: String,
    process: Child,
    directory: TempDir,
    asks: Asks,
}

impl Real {
    /// `None`, with a word to the reader, when this host lacks what it takes; in CI that is a failure.
    pub(crate) fn start(asks: Asks) -> Option<Self> {
        for (program, package) in NEEDED {
            if !is_installed(program) {
                let lack = format!("{program} is not installed; it is in the package {package}");
                assert!(std::env::var_os("CI").is_none(), "{lack}");
                println!("skipped: {lack}");
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.yml"), config(directory.path(), asks)).unwrap();
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(directory.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = process.stderr.take().unwrap();
        // From here on it is killed whatever happens.
        let mut registry = Self { host: String::new(), process, directory, asks };
        registry.host = listening(log);
        Some(registry)
    }

    /// How this registry is to be spoken to by one who knows all.
    pub(crate) fn section(&self) -> Registry {
        Registry {
            username: self.asks.password.then(|| USER.to_owned()),
            password_file: self.asks.password.then(|| self.secret(PASSWORD)),
            ca_file: self.asks.tls.then(|| self.directory.path().join("ca.pem")),
            plain_http: !self.asks.tls,
        }
    }

    pub(crate) fn secret(&self, password: &str) -> PathBuf {
        let path = self.directory.path().join(format!("password-{}", password.len()));
        let file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        std::io::Write::write_all(&mut file.unwrap(), format!("{password}\n").as_bytes()).unwrap();
        path
    }

    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}/test/a:{tag}", self.host)
    }

    /// Puts an image there, as those do who build images.
    pub(crate) async fn push(&self, tag: &str, image: &Image) {
        let manifest = serde_json::to_vec(&image.manifest()).unwrap();
        let blobs = image.layers.iter().map(|(layer, _)| layer.clone()).chain([image.config()]);
        self.push_all(tag, &manifest, blobs).await;
    }

    pub(crate) async fn push_all(&self, tag: &str, manifest: &[u8], blobs: impl Iterator<Item = Vec<u8>>) {
        let reference: Reference = self.image(tag).parse().unwrap();
        let auth = match self.asks.password {
            true => RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned()),
            false => RegistryAuth::Anonymous,
        };
        let client = self.client();
        client.auth(&reference, &auth, RegistryOperation::Push).await.unwrap();
        for blob in blobs {
            let digest = digest(&blob);
            client.push_blob(&reference, blob, &digest).await.unwrap();
        }
        client.push_manifest_raw(&reference, manifest.to_vec(), MANIFEST.parse().unwrap()).await.unwrap();
    }

    fn client(&self) -> Client {
        let mut config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        if self.asks.tls {
            let data = fs::read(self.directory.path().join("ca.pem")).unwrap();
            config.protocol = ClientProtocol::Https;
            config.tls_certs_only = vec![Certificate { encoding: CertificateEncoding::Pem, data }];
        }
        // The pushing client needs one too, and somebody may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_from(config).unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn config(directory: &Path, asks: Asks) -> String {
    let shown = directory.display();
    let mut config = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {shown}/data}}}}\n\
         http:\n  addr: 127.0.0.1:0\n"
    );
    if asks.tls {
        certify(directory);
        config += &format!("  tls: {{certificate: {shown}/server.pem, key: {shown}/key.pem}}\n");
    }
    if asks.password {
        // The registry knows only bcrypt.
        let made = Command::new("htpasswd").args(["-Bbn", USER, PASSWORD]).output().unwrap();
        fs::write(directory.join("htpasswd"), made.stdout).unwrap();
        config += &format!("auth: {{htpasswd: {{realm: test, path: {shown}/htpasswd}}}}\n");
    }
    config
}

/// A certificate authority and, signed by it, the server's certificate for its address.
fn certify(directory: &Path) {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let server =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    fs::write(directory.join("ca.pem"), root.pem()).unwrap();
    fs::write(directory.join("server.pem"), server.pem()).unwrap();
    fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
}

/// The address that the log says it listens on. The log is read on, so that the registry never waits for a reader.
fn listening(log: impl std::io::Read + Send + 'static) -> String {
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    let mut all = String::new();
    loop {
        let line = heard.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("it does not listen:\n{all}"));
        if let Some((_, rest)) = line.split_once("listening on ") {
            let address =
                |text: &str| text.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
            return address(rest);
        }
        all += &line;
        all.push('\n');
    }
}
