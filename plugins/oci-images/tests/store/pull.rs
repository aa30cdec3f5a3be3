//! Pulls that go wrong, or have to be careful, from a registry of the tests' own.

use std::{
    collections::BTreeMap,
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use host_core::{ErrorKind, PluginError, chain, runtime::PullProgress};
use oci_images::{Config, Registry};
use serde_json::json;

use crate::{
    build::{Image, Layer, MANIFEST, Place, architecture, descriptor, digest, gzip, name},
    fake::{Answer, Asked, Fake, straight},
};

pub(crate) fn config(host: &str, registry: Registry) -> Config {
    Config {
        timeout: Duration::from_secs(20),
        registries: BTreeMap::from([(host.to_owned(), registry)]),
        ..Config::default()
    }
}

fn plain(host: &str) -> Config {
    config(host, Registry { plain_http: true, ..Registry::default() })
}

fn layer(text: &str) -> Vec<u8> {
    Layer::new().file("text", text).end()
}

fn image(texts: &[&str]) -> Image {
    let layers: Vec<_> = texts.iter().map(|text| layer(text)).collect();
    Image::packed(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>(), gzip)
}

async fn pull(place: &Place, image: &str) -> Result<host_core::runtime::Image, PluginError> {
    place.store.pull(&name(image), &|_| ()).await
}

/// What comes from a registry with this twist, which must fail and leave nothing.
async fn fails(
    texts: &[&str],
    twist: impl Fn(&Asked, Option<Answer>) -> Answer + Send + Sync + 'static,
) -> PluginError {
    let fake = Fake::new(&[("1", &image(texts))], twist).await;
    let config = Config { timeout: Duration::from_millis(500), ..plain(&fake.host) };
    let place = Place::with(config).await;
    let begun = Instant::now();
    let error = pull(&place, &fake.image("1")).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    place.is_empty().await;
    error
}

/// A twist for blobs only.
fn on_blobs(twist: impl Fn(Vec<u8>) -> Answer) -> impl Fn(&Asked, Option<Answer>) -> Answer {
    on("/blobs/", twist)
}

fn on(part: &'static str, twist: impl Fn(Vec<u8>) -> Answer) -> impl Fn(&Asked, Option<Answer>) -> Answer {
    move |asked, there| match there {
        Some(Answer::Whole(200, _, content)) if asked.path.contains(part) => twist(content),
        there => straight(asked, there),
    }
}

/// Only layers: they are packed.
fn on_layers(twist: impl Fn(Vec<u8>) -> Answer) -> impl Fn(&Asked, Option<Answer>) -> Answer {
    on_blobs(
        move |content| if content.starts_with(&[0x1f, 0x8b]) { twist(content) } else { Answer::ok(&content) },
    )
}

#[tokio::test]
async fn only_what_is_missing_is_fetched() {
    let (first, second) = (image(&["base", "one"]), image(&["base", "two", "base"]));
    let fake = Fake::new(&[("1", &first), ("2", &second)], straight).await;
    let place = Place::with(plain(&fake.host)).await;
    pull(&place, &fake.image("1")).await.unwrap();
    let told = Mutex::new(Vec::new());
    let pulled =
        place.store.pull(&name(&fake.image("2")), &|now| told.lock().unwrap().push(now)).await.unwrap();
    assert_eq!(pulled.names, [name(&fake.image("2"))]);
    assert_eq!(fake.fetched(&second.layers[0].0), 1);
    assert_eq!(fake.fetched(&second.layers[1].0), 1);
    let told = told.into_inner().unwrap();
    let total_bytes = second.layers[..2].iter().map(|(layer, _)| layer.len() as u64).sum();
    let there = second.layers[0].0.len() as u64;
    assert_eq!(told.first(), Some(&PullProgress { done_bytes: there, total_bytes }));
    assert_eq!(told.last(), Some(&PullProgress { done_bytes: total_bytes, total_bytes }));
    // What is here already is confirmed, and found to be the same.
    assert_eq!(pull(&place, &fake.image("2")).await.unwrap(), pulled);
    assert_eq!(fake.fetched(&second.layers[1].0), 1);
}

#[tokio::test]
async fn this_host_is_chosen_from_an_index() {
    let ours = image(&["ours"]);
    let manifest = serde_json::to_vec(&ours.manifest()).unwrap();
    let entry = |architecture: &str| {
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let index = |entries: Vec<serde_json::Value>| {
        serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": entries })).unwrap()
    };
    let (several, foreign) =
        (index(vec![entry("s390x"), entry(architecture())]), index(vec![entry("s390x")]));
    let fake = Fake::new(&[("1", &ours)], move |asked, there| match asked.path.rsplit('/').next() {
        Some("several") => Answer::ok(&several),
        Some("foreign") => Answer::ok(&foreign),
        _ => straight(asked, there),
    })
    .await;
    let place = Place::with(plain(&fake.host)).await;
    assert_eq!(pull(&place, &fake.image("several")).await.unwrap().id, ours.id());
    let error = pull(&place, &fake.image("foreign")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(
        chain(&error).contains("linux/s390x") && chain(&error).contains(architecture()),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn an_image_is_pulled_by_its_digest() {
    let image = image(&["x"]);
    let fake = Fake::new(&[("1", &image)], straight).await;
    let place = Place::with(plain(&fake.host)).await;
    let manifest = digest(&serde_json::to_vec(&image.manifest()).unwrap());
    let by_digest = format!("{}/test/a@{manifest}", fake.host);
    let pulled = pull(&place, &by_digest).await.unwrap();
    assert_eq!((pulled.id, pulled.names), (image.id(), vec![name(&by_digest)]));
}

#[tokio::test]
async fn a_manifest_that_is_not_the_one_asked_for() {
    let image = image(&["x"]);
    let fake = Fake::new(
        &[("1", &image)],
        on("/manifests/", |mut content| {
            content.push(b' ');
            Answer::ok(&content)
        }),
    )
    .await;
    let place = Place::with(plain(&fake.host)).await;
    let manifest = digest(&serde_json::to_vec(&image.manifest()).unwrap());
    let error = pull(&place, &format!("{}/test/a@{manifest}", fake.host)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", chain(&error));
    place.is_empty().await;
}

#[tokio::test]
async fn what_the_registry_says_has_its_kind() {
    for (status, kind) in [
        (401, ErrorKind::Denied),
        (403, ErrorKind::Denied),
        (404, ErrorKind::NotFound),
        (429, ErrorKind::Unavailable),
        (500, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
    ] {
        let error = fails(&["x"], on("/manifests/", move |_| Answer::status(status))).await;
        assert_eq!(error.kind(), kind, "manifest {status}: {}", chain(&error));
        let error = fails(&["x", "y"], on_layers(move |_| Answer::status(status))).await;
        assert_eq!(error.kind(), kind, "layer {status}: {}", chain(&error));
    }
}

#[tokio::test]
async fn a_registry_that_dies_half_way() {
    for part in ["/blobs/", "/manifests/"] {
        let error = fails(&["x", "y", "z"], on(part, Answer::Half)).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{part}: {}", chain(&error));
    }
    let error = fails(&["x", "y", "z"], on_layers(Answer::Half)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
}

#[tokio::test]
async fn a_registry_that_says_nothing_more() {
    for part in ["/blobs/", "/manifests/"] {
        let error = fails(&["x", "y"], on(part, Answer::Stalled)).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{part}: {}", chain(&error));
    }
    let error = fails(&["x", "y"], on_layers(Answer::Stalled)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
    for part in ["/v2/", "/blobs/", "/manifests/"] {
        let error = fails(&["x", "y"], on(part, |_| Answer::Silent)).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{part}: {}", chain(&error));
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there() {
    let place = Place::new().await;
    for image in ["127.0.0.1:1/conformance/absent:never-built", "registry.invalid/absent"] {
        let error = pull(&place, image).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{image}: {}", chain(&error));
    }
    place.is_empty().await;
}

#[tokio::test]
async fn bytes_that_are_wrong() {
    for part in ["/blobs/", "/manifests/"] {
        let error = fails(&["x", "y"], on(part, |content| Answer::ok(&vec![b' '; content.len()]))).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{part}: {}", chain(&error));
    }
    let error = fails(&["x", "y"], on_layers(|content| Answer::ok(&vec![b' '; content.len()]))).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", chain(&error));
    // A layer that is one, but of other content.
    let error = fails(&["x", "y"], on_layers(|_| Answer::ok(&gzip(&layer("z"))))).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", chain(&error));
}

#[tokio::test]
async fn content_without_end() {
    for part in ["/blobs/", "/manifests/"] {
        let error = fails(&["x"], on(part, |_| Answer::Endless)).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{part}: {}", chain(&error));
    }
    let error = fails(&["x"], on_layers(|_| Answer::Endless)).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", chain(&error));
}

#[tokio::test]
async fn layers_that_are_said_to_be_too_large() {
    let image = image(&["x"]);
    let mut manifest = image.manifest();
    manifest["layers"][0]["size"] = json!(u64::MAX >> 1);
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let error = fails(&["x"], on("/manifests/", move |_| Answer::ok(&manifest))).await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(chain(&error).contains("unpacked_bytes_max"), "{}", chain(&error));
}

/// The same rules as for archives.
#[tokio::test]
async fn a_hostile_layer() {
    let hostile = Layer::new().symlink("a", "/proc/nowhere").file("a/passwd", "x").end();
    let fake = Fake::new(&[("1", &Image::packed(&[&layer("x"), &hostile], gzip))], straight).await;
    let place = Place::with(plain(&fake.host)).await;
    let error = pull(&place, &fake.image("1")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(chain(&error).contains("leads through a link"), "{}", chain(&error));
    place.is_empty().await;
}

/// As Docker Hub has it: a challenge, another server's token, and the token from then on.
#[tokio::test]
async fn a_token_is_fetched_and_shown() {
    let token = |asked: &Asked, there: Option<Answer>, host: &str| match &asked.authorization {
        _ if asked.path.starts_with("/token") => Answer::ok(br#"{"token":"a-token"}"#),
        Some(shown) if shown == "Bearer a-token" => straight(asked, there),
        _ => {
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
            Answer::Whole(401, challenge, Vec::new())
        }
    };
    // The host is known only once it listens, and the client says it.
    let host = std::sync::Arc::new(std::sync::OnceLock::new());
    let known = std::sync::Arc::clone(&host);
    let fake = Fake::new(&[("1", &image(&["x"]))], move |asked, there| {
        token(asked, there, known.get().map(String::as_str).unwrap_or_default())
    })
    .await;
    host.set(fake.host.clone()).unwrap();
    let place = Place::with(plain(&fake.host)).await;
    pull(&place, &fake.image("1")).await.unwrap();
    let scope = fake.asked().into_iter().find(|asked| asked.path.starts_with("/token")).unwrap().path;
    assert!(scope.contains("repository%3Atest%2Fa%3Apull"), "{scope}");
}

#[tokio::test]
async fn nobody_is_signed_in_by_a_token_server_that_refuses() {
    let place_host = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let known = std::sync::Arc::clone(&place_host);
    let fake = Fake::new(&[("1", &image(&["x"]))], move |asked, _| {
        if asked.path.starts_with("/token") {
            return Answer::Whole(401, String::new(), b"no".to_vec());
        }
        let realm = known.get().map(String::as_str).unwrap_or_default();
        Answer::Whole(401, format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\"\r\n"), Vec::new())
    })
    .await;
    place_host.set(fake.host.clone()).unwrap();
    let place = Place::with(plain(&fake.host)).await;
    assert_eq!(pull(&place, &fake.image("1")).await.unwrap_err().kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_leaves_nothing_for_long() {
    let fake = Fake::new(&[("1", &image(&["x", "y"]))], on_layers(Answer::Stalled)).await;
    let place = Place::with(plain(&fake.host)).await;
    {
        let wanted = name(&fake.image("1"));
        let pull = place.store.pull(&wanted, &|_| ());
        tokio::pin!(pull);
        let deadline = Instant::now() + Duration::from_secs(10);
        while fake.asked().iter().filter(|asked| asked.path.contains("/blobs/")).count() < 3 {
            assert!(Instant::now() < deadline, "the layers are not asked for");
            tokio::select! {
                biased;
                pulled = &mut pull => panic!("it ended: {pulled:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        drop(place.again().await);
        if place.count("tmp") == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "the working directory stays");
    }
    place.is_empty().await;
}

#[tokio::test]
async fn several_pulls_of_the_same_at_once() {
    let fake = Fake::new(&[("1", &image(&["a", "b", "c", "d"]))], straight).await;
    let place = Place::with(plain(&fake.host)).await;
    let wanted = name(&fake.image("1"));
    let pulls = (0..4).map(|_| place.store.pull(&wanted, &|_| ()));
    let pulled = futures::future::join_all(pulls).await;
    let ids: Vec<_> = pulled.into_iter().map(|pulled| pulled.unwrap().id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!((place.count("l"), place.count("tmp"), place.count("trash")), (4, 0, 0));
    let layers = place.layers(&fake.image("1")).await;
    assert_eq!(fs::read_to_string(layers[0].join("text")).unwrap(), "d");
}

#[tokio::test]
async fn an_id_cannot_be_pulled() {
    let place = Place::new().await;
    let error = pull(&place, &digest(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", chain(&error));
    for bad in ["No/Upper:case", "a//b:c", "a/../../info", "a:b:c"] {
        assert_eq!(pull(&place, bad).await.unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
    }
}
