//! The thread that sends errors, one after the other.
//!
//! ```text
//!  2xx ─────────────── sent
//!  429, limits ─────── a pause as long as the server says, then the same again
//!  5xx, no answer ──── a pause that grows, then the same again, up to a number of tries
//!  401, 403 ────────── nothing more until the next start: only another DSN helps
//!  any other ───────── given up, counted and told: the server will never take it
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use host_core::chain;
use reqwest::{
    Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use sentry::{Envelope, types::Dsn};
use telemetry_http::{Client, Pauses, Reply, pause_asked_for};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    event,
    looker::{Job, Shared, Trouble},
};

const AGENT: &str = concat!("host-service/", env!("CARGO_PKG_VERSION"));
/// What Sentry's own clients wait after a bare 429.
const USUAL_LIMIT: Duration = Duration::from_secs(60);
/// A server that means longer is asked again all the same.
const LONGEST_LIMIT: Duration = Duration::from_secs(60 * 60);
/// An error that the server fails over again and again must not hold up the others for ever.
const MOST_TRIES: u32 = 10;
const TELL_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Courier {
    client: Client,
    url: Url,
    headers: HeaderMap,
    shared: Arc<Shared>,
    dropped: Arc<AtomicU64>,
    pauses: Pauses,
    refused: bool,
    told: u64,
    told_at: Option<Instant>,
}

/// What became of an event.
enum Outcome {
    Sent,
    Limited(Duration),
    Failed(String),
    Refused(u16),
    GivenUp(u16),
}

impl Courier {
    pub(crate) fn new(client: Client, dsn: &Dsn, shared: Arc<Shared>, dropped: Arc<AtomicU64>) -> Self {
        Self {
            client,
            url: dsn.envelope_api_url(),
            headers: headers(dsn),
            shared,
            dropped,
            pauses: Pauses::default(),
            refused: false,
            told: 0,
            told_at: None,
        }
    }

    /// Ends with the looker, or at once at `end`: what is then in flight is given up.
    pub(crate) async fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>, end: CancellationToken) {
        end.run_until_cancelled(async {
            while let Some(job) = jobs.recv().await {
                match job {
                    Job::Flush(done) => {
                        // Whoever asked may have given up.
                        let _ = done.send(());
                    }
                    Job::Send(trouble) => {
                        self.deliver(&trouble).await;
                        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                        self.tell_dropped();
                    }
                }
            }
        })
        .await;
    }

    /// Until it is sent or given up.
    async fn deliver(&mut self, trouble: &Trouble) {
        let mut envelope = Vec::new();
        let event = event::of(&trouble.record, &trouble.crumbs);
        if self.refused || Envelope::from(event).to_writer(&mut envelope).is_err() {
            return self.lost();
        }
        for _ in 0..MOST_TRIES {
            let answer = self.client.post(self.url.clone(), self.headers.clone(), envelope.clone()).await;
            let (outcome, limit) = match answer {
                Ok(reply) => (outcome(&reply), limit(&reply)),
                Err(error) => (Outcome::Failed(chain(&error)), None),
            };
            match outcome {
                Outcome::Sent => {
                    if self.pauses.reset() {
                        tracing::info!("Sentry takes errors again");
                    }
                    self.pause(limit.unwrap_or_default()).await;
                    return;
                }
                Outcome::Limited(limit) => self.pause(limit).await,
                Outcome::Failed(why) => {
                    if !self.pauses.is_failing() {
                        tracing::warn!(why, "Sentry takes no errors; they wait");
                    }
                    let pause = self.pauses.next_pause();
                    self.pause(pause).await;
                }
                Outcome::Refused(status) => {
                    self.refused = true;
                    tracing::error!(
                        status,
                        "Sentry refuses the DSN; no errors are sent until the next start"
                    );
                    return self.lost();
                }
                Outcome::GivenUp(status) => {
                    tracing::warn!(status, bytes = envelope.len(), "Sentry does not take an error as it is");
                    return self.lost();
                }
            }
        }
        self.lost();
    }

    fn lost(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A while, or until somebody waits for a flush.
    async fn pause(&self, pause: Duration) {
        if pause.is_zero() {
            return;
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = self.shared.hurry.notified() => {}
        }
    }

    /// Told to the other plugins.
    fn tell_dropped(&mut self) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped == self.told || self.told_at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        tracing::warn!(
            records = dropped - self.told,
            since_start = dropped,
            "records for Sentry were dropped"
        );
        (self.told, self.told_at) = (dropped, Some(Instant::now()));
    }
}

fn headers(dsn: &Dsn) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-sentry-envelope"));
    if let Ok(mut auth) = HeaderValue::from_str(&dsn.to_auth(Some(AGENT)).to_string()) {
        auth.set_sensitive(true);
        headers.insert(HeaderName::from_static("x-sentry-auth"), auth);
    }
    headers
}

fn outcome(reply: &Reply) -> Outcome {
    match reply.status {
        200..300 => Outcome::Sent,
        429 => {
            let asked = limit(reply).or_else(|| pause_asked_for(&reply.headers));
            Outcome::Limited(asked.unwrap_or(USUAL_LIMIT).min(LONGEST_LIMIT))
        }
        status @ (401 | 403) => Outcome::Refused(status),
        status @ (500.. | 300..=399 | 404 | 405 | 408) => Outcome::Failed(format!("it answers {status}")),
        status => Outcome::GivenUp(status),
    }
}

/// How long `X-Sentry-Rate-Limits` wants no errors: `60:error;transaction:organization, 2700::key`; no category is all.
fn limit(reply: &Reply) -> Option<Duration> {
    let limits = reply.headers.get("x-sentry-rate-limits")?.to_str().ok()?;
    let seconds = limits.split(',').filter_map(|limit| {
        let mut parts = limit.trim().split(':');
        let seconds = parts.next()?.trim().parse::<f64>().ok().filter(|seconds| *seconds >= 0.0)?;
        let categories = parts.next().unwrap_or_default();
        let ours = categories.is_empty() || categories.split(';').any(|category| category == "error");
        ours.then(|| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST_LIMIT).min(LONGEST_LIMIT))
    });
    seconds.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, headers: &[(&'static str, &str)]) -> Reply {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        Reply { status, headers, body: Vec::new() }
    }

    #[test]
    fn limits_are_read_as_sentry_writes_them() {
        let seconds =
            |text: &str| limit(&reply(200, &[("x-sentry-rate-limits", text)])).map(|limit| limit.as_secs());
        assert_eq!(seconds("60:error;transaction:organization, 2700:default:organization"), Some(60));
        assert_eq!(seconds("5::key, 10:error:project:reason"), Some(10));
        assert_eq!(seconds("60:transaction:key"), None);
        for nonsense in ["", "nonsense", "-5:error:key", "NaN::", "::"] {
            assert_eq!(seconds(nonsense), None, "{nonsense:?}");
        }
        assert_eq!(seconds("1e300::key"), Some(3600));
    }

    #[test]
    fn a_429_asks_for_the_pause_that_it_names_or_a_minute() {
        let seconds = |headers: &[_]| match outcome(&reply(429, headers)) {
            Outcome::Limited(limit) => limit.as_secs(),
            _ => panic!("it is no limit"),
        };
        assert_eq!(seconds(&[]), 60);
        assert_eq!(seconds(&[("retry-after", "7")]), 7);
        assert_eq!(seconds(&[("retry-after", "7"), ("x-sentry-rate-limits", "9::key")]), 9);
    }
}
