//! The keys that an issuer serves: new ones, an issuer that is away, and one that answers anything.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
    routing::get,
};
use host_service::transport::{Auth, KeySource, Served};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    client::Said,
    issuer::{Issuer, claims},
    tokens::with_token,
    world::{Setup, World, told, trust, until},
};

/// What the issuer's server does when it is asked.
#[derive(Debug, Clone)]
enum Serves {
    Keys(String),
    Status(u16),
    Text(&'static str),
    Redirect,
    /// More than any set of keys has, and never the end of it.
    Flood,
    /// Takes the request and says nothing.
    Silence,
}

/// A server of key sets.
struct Stand {
    url: String,
    serves: Arc<Mutex<Serves>>,
    asked: Arc<AtomicUsize>,
    _server: JoinSet<()>,
}

impl Stand {
    async fn of(serves: Serves) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/.well-known/jwks.json", listener.local_addr().unwrap());
        let (serves, asked) = (Arc::new(Mutex::new(serves)), Arc::new(AtomicUsize::new(0)));
        let (what, count) = (serves.clone(), asked.clone());
        let answer = move || {
            count.fetch_add(1, Ordering::SeqCst);
            let serves = what.lock().unwrap().clone();
            async move { serves.answer().await }
        };
        let router = Router::new().route("/.well-known/jwks.json", get(answer));
        let server = async move { axum::serve(listener, router).await.unwrap() };
        Self { url, serves, asked, _server: JoinSet::from_iter([server]) }
    }

    fn serve(&self, serves: Serves) {
        *self.serves.lock().unwrap() = serves;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Refreshed every `refresh`; unknown keys are asked for after `pause`.
    fn trusted(&self, refresh: Duration, pause: Duration) -> Auth {
        let timeout = Duration::from_millis(500);
        trust(KeySource::Served(Served { url: self.url.clone(), refresh, pause, timeout }))
    }
}

impl Serves {
    fn keys(issuer: &Issuer) -> Self {
        Self::Keys(issuer.keys().to_string())
    }

    async fn answer(self) -> Response {
        match self {
            Self::Keys(keys) => keys.into_response(),
            Self::Status(status) => (StatusCode::from_u16(status).unwrap(), "{\"keys\":[]}").into_response(),
            Self::Text(text) => text.into_response(),
            Self::Redirect => {
                let there = HeaderMap::from_iter([(LOCATION, "http://127.0.0.1:1/".parse().unwrap())]);
                (StatusCode::FOUND, there).into_response()
            }
            Self::Flood => {
                let part = || Ok::<_, std::io::Error>(vec![b' '; 1 << 16]);
                let flood = futures::stream::repeat_with(part);
                axum::body::Body::from_stream(flood).into_response()
            }
            Self::Silence => std::future::pending().await,
        }
    }
}

const NEVER: Duration = Duration::from_secs(3600);
const AT_ONCE: Duration = Duration::from_millis(1);

async fn world(auth: Auth) -> World {
    World::with(Setup { auth, ..Setup::default() }).await
}

async fn ask(world: &World, id: &str, token: &str) -> Said {
    let body = with_token(id, token);
    world.put(&body).await
}

/// A token that counts meets its mandelbox.
async fn granted(world: &World, id: &str, token: &str) {
    let (said, _seat) = tokio::join!(ask(world, id, token), world.mandelbox(id, "ann"));
    assert_eq!((said.status, said.body), (200, told()), "{id}");
}

#[tokio::test]
async fn a_token_signed_with_a_new_key_is_taken_at_once() {
    let (old, new) = (Issuer::new(), Issuer::rotated("new-"));
    let stand = Stand::of(Serves::keys(&old)).await;
    let world = world(stand.trusted(NEVER, AT_ONCE)).await;
    granted(&world, "a", &old.token("ann")).await;
    granted(&world, "b", &old.es256(&claims("ann"))).await;
    assert_eq!(stand.asked(), 1, "known keys are not asked for");
    stand.serve(Serves::keys(&new));
    granted(&world, "c", &new.token("ann")).await;
    assert_eq!(stand.asked(), 2);
    granted(&world, "d", &new.es256(&claims("ann"))).await;
    assert_eq!(stand.asked(), 2);
    assert_eq!(
        ask(&world, "e", &old.token("ann")).await.refused(),
        (401, "token_invalid"),
        "a key withdrawn"
    );
}

#[tokio::test]
async fn keys_are_fetched_again_and_again_without_being_asked_for() {
    let (old, new) = (Issuer::new(), Issuer::rotated("new-"));
    let stand = Stand::of(Serves::keys(&old)).await;
    let world = world(stand.trusted(Duration::from_millis(20), NEVER)).await;
    stand.serve(Serves::keys(&new));
    let before = stand.asked();
    until(|| stand.asked() > before + 1).await; // the first of them may have been under way
    granted(&world, "a", &new.token("ann")).await;
    assert_eq!(ask(&world, "b", &old.token("ann")).await.refused(), (401, "token_invalid"));
}

#[tokio::test]
async fn a_flood_of_unknown_keys_costs_the_issuer_one_request() {
    let issuer = Issuer::new();
    let stand = Stand::of(Serves::keys(&issuer)).await;
    let world = world(stand.trusted(NEVER, Duration::from_secs(5))).await;
    let unknown = |number: usize| {
        issuer.rsa_signed(&json!({"alg": "RS256", "kid": format!("k{number}")}), &claims("ann"))
    };
    let flood = (0..200).map(|number| {
        let (world, token) = (&world, unknown(number));
        async move { ask(world, "m", &token).await.refused().0 }
    });
    let told = futures::future::join_all(flood).await;
    assert!(told.iter().all(|status| *status == 401), "{told:?}");
    granted(&world, "m", &issuer.token("ann")).await;
    // One at the start; one more where the flood took longer than a pause on a machine that is busy.
    assert!(stand.asked() <= 3, "{}", stand.asked());
}

#[tokio::test]
async fn unknown_keys_that_come_together_wait_for_one_fetch() {
    let (old, new) = (Issuer::new(), Issuer::rotated("new-"));
    let stand = Stand::of(Serves::keys(&old)).await;
    let pause = Duration::from_millis(200);
    let world = world(stand.trusted(NEVER, pause)).await;
    stand.serve(Serves::keys(&new));
    tokio::time::sleep(pause).await; // what is tested begins after a pause
    let ids: Vec<_> = (0..20).map(|number| format!("m{number}")).collect();
    let token = new.token("ann");
    futures::future::join_all(ids.iter().map(|id| granted(&world, id, &token))).await;
    assert_eq!(stand.asked(), 2);
}

#[tokio::test]
async fn the_last_good_keys_outlive_an_issuer_that_is_away_or_answers_anything() {
    let issuer = Issuer::new();
    let stand = Stand::of(Serves::keys(&issuer)).await;
    let world = world(stand.trusted(Duration::from_millis(20), AT_ONCE)).await;
    for (number, serves) in [
        Serves::Status(500),
        Serves::Status(404),
        Serves::Text("<!DOCTYPE html><html>maintenance</html>"),
        Serves::Text(r#"{"keys":[]}"#),
        Serves::Text(""),
        Serves::Redirect,
        Serves::Flood,
        Serves::Silence,
    ]
    .into_iter()
    .enumerate()
    {
        stand.serve(serves.clone());
        let before = stand.asked();
        until(|| stand.asked() > before + 1).await;
        granted(&world, &format!("m{number}"), &issuer.token("ann")).await;
        let unknown = issuer.rsa_signed(&json!({"alg": "RS256", "kid": "unknown"}), &claims("ann"));
        assert_eq!(ask(&world, "n", &unknown).await.refused(), (401, "token_invalid"), "{serves:?}");
    }
    let new = Issuer::rotated("new-");
    stand.serve(Serves::keys(&new));
    granted(&world, "new", &new.token("ann")).await;
}

#[tokio::test]
async fn without_any_keys_clients_are_told_to_come_again_until_the_issuer_is_there() {
    let issuer = Issuer::new();
    let stand = Stand::of(Serves::Status(503)).await;
    let world = world(stand.trusted(NEVER, NEVER)).await;
    let said = ask(&world, "m", &issuer.token("ann")).await;
    assert_eq!(said.refused(), (503, "keys_unavailable"));
    assert!(said.head.contains("retry-after"), "{said:?}");
    let hmac = super::issuer::hs256(b"", &claims("ann"));
    assert_eq!(ask(&world, "m", &hmac).await.refused().0, 503, "nobody gets in");
    stand.serve(Serves::keys(&issuer));
    let before = stand.asked();
    until(|| stand.asked() > before).await;
    let mut status = 503;
    while status == 503 {
        status = ask(&world, "m", &issuer.token("ann")).await.status;
    }
    assert_eq!(status, 408, "the token counts; nothing was allocated");
}
