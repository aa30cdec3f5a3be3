//! A certificate that is renewed while it is in use.

use std::{fs, path::Path};

use host_service::{
    lobby::Lobby,
    transport::{Auth, Certificate, Options, Server},
};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Client, trusting},
    world::{LIMITS, LONG, Setup, options, within},
};

/// Certificate and key.
fn make() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (certificate.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart_and_a_broken_one_is_not() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let (certificate, key, trusted) = (at("cert.pem"), at("key.pem"), at("trusted.pem"));
    let pairs = [make(), make()];
    replace(&certificate, &pairs[0].0);
    replace(&key, &pairs[0].1);
    let files = Certificate::Files { certificate: certificate.clone(), key: key.clone() };
    let options = Options { certificate: files, ..options(scratch.path(), Auth::Off, LIMITS) };
    let server = Server::build(options, Lobby::new(Setup::default().lobby), None).await.unwrap();
    let (address, stop) = (server.local_addr().unwrap(), CancellationToken::new());
    let mut server = JoinSet::from_iter([server.run(stop.clone(), 10 * LONG)]);
    let sees = async |pair: &(String, String)| {
        replace(&trusted, &pair.0);
        let stream = TcpStream::connect(address).await.unwrap();
        Client::connect(&trusting(&trusted), stream).await.is_ok()
    };
    let sees_soon = async |pair: &(String, String)| within(async { while !sees(pair).await {} }).await;
    assert!(sees(&pairs[0]).await && !sees(&pairs[1]).await);

    replace(&certificate, &pairs[1].0); // half of it
    tokio::time::sleep(super::world::CHECK * 5).await;
    assert!(sees(&pairs[0]).await, "a certificate without its key changes nothing");
    replace(&key, &pairs[1].1);
    sees_soon(&pairs[1]).await;
    assert!(!sees(&pairs[0]).await);

    fs::remove_file(&key).unwrap();
    replace(&certificate, "garbage");
    tokio::time::sleep(super::world::CHECK * 5).await;
    assert!(sees(&pairs[1]).await, "the last good one stays");
    replace(&key, &pairs[0].1);
    replace(&certificate, &pairs[0].0);
    sees_soon(&pairs[0]).await;
    stop.cancel();
    within(server.join_next()).await; // looking at files is nothing that the end waits for
}
