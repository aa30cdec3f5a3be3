//! The keys that an issuer serves: fetched at start, again and again, and when a token names one that is not known.
//!
//! ```text
//!   Verifier ──▶ Known ──── asked ───▶ Refresh ──▶ GET jwks_url
//!                  ▲                     │
//!                  └────── state ◀───────┘   one fetch at a time, whoever asks
//! ```
//!
//! What a fetch brings replaces the whole set; a fetch that fails changes nothing but the time of the last one. So the
//! last good set outlives an outage, and a flood of tokens with made-up keys costs the issuer one request per
//! [`Served::pause`] and the flood's requests nothing but a look at the state.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, Url, redirect};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::keys::{Keys, KeysError};
use crate::{outgoing, retry::Pauses};

/// Real sets have two to ten keys of half a KiB.
const LARGEST_SET_BYTES: usize = 256 << 10;
/// Between two tries while there is no set, or an old one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A key set at its issuer.
#[derive(Debug, Clone)]
pub struct Served {
    /// Of the set; the configuration has checked that it is safe.
    pub url: String,
    /// Between two fetches when nobody asks.
    pub refresh: Duration,
    /// The least between two fetches for tokens with unknown keys.
    pub pause: Duration,
    /// Of one fetch.
    pub timeout: Duration,
}

/// What was last heard of the issuer.
#[derive(Debug, Clone)]
struct State {
    keys: Option<Arc<Keys>>,
    tried: Instant,
}

/// The keys, as they are at the moment.
#[derive(Debug)]
pub(in crate::transport) struct Known {
    state: watch::Receiver<State>,
    asked: Arc<Notify>,
    pause: Duration,
    timeout: Duration,
}

/// The keys, as they were at one moment.
pub(super) struct Seen<'a> {
    known: &'a Known,
    receiver: watch::Receiver<State>,
    state: State,
}

/// Keeps the keys fresh.
#[derive(Debug)]
pub(in crate::transport) struct Refresh {
    issuer: Issuer,
    state: watch::Sender<State>,
    asked: Arc<Notify>,
    refresh: Duration,
    pause: Duration,
}

#[derive(Debug)]
struct Issuer {
    client: Client,
    url: Url,
    /// For errors.
    place: String,
    timeout: Duration,
}

/// The first fetch.
///
/// # Errors
/// The URL is none. What the network or the issuer does is no error here: it may be over when a client comes.
pub(super) async fn ask(served: &Served) -> Result<(Known, Refresh), KeysError> {
    let issuer = Issuer::new(served)?;
    let keys = issuer.fetch().await.inspect_err(|error| lament(error, false)).ok().map(Arc::new);
    let (state, receiver) = watch::channel(State { keys, tried: Instant::now() });
    let (pause, timeout) = (served.pause, served.timeout);
    let asked = Arc::new(Notify::new());
    let known = Known { state: receiver, asked: asked.clone(), pause, timeout };
    Ok((known, Refresh { issuer, state, asked, refresh: served.refresh, pause }))
}

/// The keys, once.
pub(super) async fn fetch(served: &Served) -> Result<Keys, KeysError> {
    Issuer::new(served)?.fetch().await
}

impl Known {
    /// A set that never changes.
    pub(super) fn forever(keys: Keys) -> Self {
        let state = State { keys: Some(Arc::new(keys)), tried: Instant::now() };
        let (_, state) = watch::channel(state);
        Self { state, asked: Arc::default(), pause: Duration::MAX, timeout: Duration::ZERO }
    }

    pub(super) fn now(&self) -> Seen<'_> {
        let mut receiver = self.state.clone();
        let state = receiver.borrow_and_update().clone();
        Seen { known: self, receiver, state }
    }
}

impl Seen<'_> {
    pub(super) fn keys(&self) -> Option<&Keys> {
        self.state.keys.as_deref()
    }

    /// What the issuer has now; `None` where it was asked a moment ago, or does not answer.
    pub(super) async fn newer(mut self) -> Option<Arc<Keys>> {
        if self.state.tried.elapsed() < self.known.pause {
            return None;
        }
        self.known.asked.notify_one();
        // The fetch has a deadline of its own; this one is for a refresher that has ended.
        timeout(2 * self.known.timeout, self.receiver.changed()).await.ok()?.ok()?;
        self.receiver.borrow().keys.clone()
    }
}

impl Refresh {
    /// Until it is dropped.
    pub(in crate::transport) async fn run(self) {
        let mut pauses = Pauses::up_to(LONGEST_PAUSE.min(self.refresh));
        let mut fresh = self.state.borrow().keys.is_some();
        loop {
            tokio::select! {
                () = sleep(self.refresh), if fresh => {}
                () = pauses.pause(), if !fresh => {}
                () = self.asked.notified() => {
                    // Somebody asked while the last fetch was under way, and has its outcome.
                    if self.state.borrow().tried.elapsed() < self.pause {
                        continue;
                    }
                }
            }
            fresh = self.fetch(fresh).await;
            if fresh {
                pauses.reset();
            }
        }
    }

    /// Whether the keys are the issuer's now.
    async fn fetch(&self, was_fresh: bool) -> bool {
        let fetched = self.issuer.fetch().await;
        let known = self.state.borrow().keys.is_some();
        let keys = match fetched {
            Ok(keys) => {
                if !was_fresh {
                    tracing::info!(keys = keys.count(), "the issuer of tokens has told its keys");
                }
                Some(Arc::new(keys))
            }
            Err(error) => {
                if was_fresh {
                    lament(&error, known);
                }
                None
            }
        };
        let fresh = keys.is_some();
        self.state.send_modify(|state| {
            state.keys = keys.or(state.keys.take());
            state.tried = Instant::now();
        });
        fresh
    }
}

fn lament(error: &KeysError, known: bool) {
    let error = host_core::chain(error);
    if known {
        tracing::warn!(error, "the issuer of tokens does not tell its keys; the last ones count");
    } else {
        tracing::error!(
            error,
            "the issuer of tokens does not tell its keys; clients are refused until it does"
        );
    }
}

impl Issuer {
    fn new(served: &Served) -> Result<Self, KeysError> {
        let place = format!("auth.jwks_url {}", served.url);
        let unusable = |reason: String| KeysError::NotServed { place: place.clone(), reason };
        let url = Url::parse(&served.url).map_err(|error| unusable(error.to_string()))?;
        let tls = if url.scheme() == "https" { outgoing::trusting() } else { outgoing::plain() };
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::none()) // to where nobody has checked that it is safe
            .no_proxy()
            .pool_max_idle_per_host(0) // the next request is an hour away
            .timeout(served.timeout)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { client, url, place, timeout: served.timeout })
    }

    async fn fetch(&self) -> Result<Keys, KeysError> {
        let failed = |reason| KeysError::NotServed { place: self.place.clone(), reason };
        let text = timeout(self.timeout, self.text()).await;
        let late = |_| failed(format!("no complete answer within {:?}", self.timeout));
        Keys::parse(&text.map_err(late)?.map_err(failed)?, &self.place)
    }

    async fn text(&self) -> Result<Vec<u8>, String> {
        let told = |error: reqwest::Error| host_core::chain(&error.without_url());
        let mut answer = self.client.get(self.url.clone()).send().await.map_err(told)?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(format!("status {}", answer.status()));
        }
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(told)? {
            if text.len() + part.len() > LARGEST_SET_BYTES {
                return Err(format!("more than {LARGEST_SET_BYTES} bytes"));
            }
            text.extend_from_slice(&part);
        }
        Ok(text)
    }
}
