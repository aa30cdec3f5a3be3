//! The Name tag from moto's server, which answers as EC2's API does.

use std::{
    env, fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use host_service::identity;
use tempfile::TempDir;
use tokio::{net::TcpListener, time::sleep};

use super::identity::{loaded, without_tags};

/// It imports hundreds of modules before it listens.
const START: Duration = Duration::from_secs(60);

struct Moto {
    process: Child,
    endpoint: String,
    _scratch: TempDir,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where `scripts/setup.sh` puts it, or this machine's.
fn program() -> Option<PathBuf> {
    let ours = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../build/moto/bin/moto_server");
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join("moto_server"))
        .chain([ours])
        .find(|file| file.is_file())
}

impl Moto {
    async fn start() -> Option<Self> {
        let Some(program) = program() else {
            assert!(env::var_os("CI").is_none(), "no moto_server; scripts/setup.sh test installs it");
            eprintln!("skipped: no moto_server; scripts/setup.sh test installs it");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let scratch = tempfile::tempdir().unwrap();
        let log = fs::File::create(scratch.path().join("log")).unwrap();
        let process = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut moto = Self { process, endpoint: format!("http://127.0.0.1:{port}/"), _scratch: scratch };
        let began = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            let log = || fs::read_to_string(moto._scratch.path().join("log")).unwrap_or_default();
            assert!(moto.process.try_wait().unwrap().is_none(), "moto ended: {}", log());
            assert!(began.elapsed() < START, "moto does not listen: {}", log());
            sleep(Duration::from_millis(50)).await;
        }
        Some(moto)
    }

    /// One of EC2's actions; its answer.
    async fn ask(&self, form: &str) -> String {
        let client =
            reqwest::Client::builder().no_proxy().tls_backend_preconfigured(plain()).build().unwrap();
        let request = client
            .post(&self.endpoint)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/eu-west-1/ec2/aws4_request, SignedHeaders=host, Signature=0")
            .body(form.to_owned());
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{status}: {text}");
        text
    }
}

fn plain() -> rustls::ClientConfig {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    config.unwrap().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
}

#[tokio::test]
async fn ec2s_api_tells_the_name_of_an_instance() {
    let Some(moto) = Moto::start().await else { return };
    let version = "Version=2016-11-15";
    let images = moto.ask(&format!("Action=DescribeImages&{version}")).await;
    let image = images.split("<imageId>").nth(1).unwrap().split('<').next().unwrap();
    let run =
        format!("Action=RunInstances&{version}&MinCount=1&MaxCount=1&ImageId={image}&InstanceType=t2.micro");
    let ran = moto.ask(&run).await;
    let id = ran.split("<instanceId>").nth(1).unwrap().split('<').next().unwrap().to_owned();
    let imds = without_tags().await;
    imds.set("instance-id", &id);
    let endpoint = format!("instance.ec2_endpoint={}", moto.endpoint);
    let loaded = loaded(&imds.endpoint, &[&endpoint, "instance.metadata_timeout=60s"]);
    let nameless = format!("{:#}", identity::find(&loaded).await.unwrap_err());
    assert!(nameless.contains("no Name tag"), "{nameless}");
    moto.ask(&format!("Action=CreateTags&{version}&ResourceId.1={id}&Tag.1.Key=Name&Tag.1.Value=host-9"))
        .await;
    assert_eq!(identity::find(&loaded).await.unwrap().name.as_str(), "host-9");
}
