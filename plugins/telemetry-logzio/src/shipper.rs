//! The thread that takes batches from the disk to the listener. What it cannot deliver stays on disk.
//!
//! ```text
//!  200 ─────────────── delivered ──▶ position moves on
//!  400 with counts ─── delivered; the listener's losses are counted, nothing is sent again
//!  413 ─────────────── half as much; a single line is given up and counted
//!  401, 403 ────────── stop until the next start: only another token helps
//!  anything else ───── the same again after a pause
//! ```

use std::{
    io::{self, Write},
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use host_core::{PluginError, chain};
use reqwest::{
    Url,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use telemetry_http::{Client, Pauses, Reply, pause_asked_for};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    spool::{Batch, Reader},
    spooler::Flush,
};

/// Any line fits, so that a listener that wants less gets it one by one.
const SMALLEST_BATCH_BYTES: usize = 1;

pub(crate) struct Shipper {
    pub(crate) spool: Reader,
    pub(crate) client: Client,
    pub(crate) target: Target,
    pub(crate) largest_batch: usize,
    pub(crate) linger: Duration,
    pub(crate) written: watch::Receiver<u64>,
    pub(crate) flushes: mpsc::UnboundedReceiver<Flush>,
    pub(crate) dropped: Box<dyn Fn(u64) + Send>,
    pub(crate) state: State,
}

/// Where to, and as whom.
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) token: SecretString,
}

/// How it goes.
#[derive(Default)]
pub(crate) struct State {
    waiting: Vec<Flush>,
    pauses: Pauses,
    /// Only another token helps.
    refused: bool,
    /// The listener wants less at once.
    batch: Option<usize>,
}

/// What became of a batch.
enum Outcome {
    /// It is the listener's now, but for so many lines.
    Taken {
        lost: u64,
    },
    TooLarge,
    Refused(u16),
    Failed {
        why: String,
        pause: Option<Duration>,
    },
}

/// The listener's account of a batch that it took in part.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Partly {
    malformed_lines: u64,
    #[serde(default)]
    oversized_lines: u64,
}

impl Shipper {
    /// Runs until `end`; what is then in flight will be sent again.
    pub(crate) async fn run(mut self, end: CancellationToken) {
        end.run_until_cancelled(async {
            loop {
                self.step().await;
            }
        })
        .await;
    }

    async fn step(&mut self) {
        self.answer();
        let end = *self.written.borrow_and_update();
        let left = end.saturating_sub(self.spool.position());
        if self.state.refused || left == 0 {
            return self.wait().await;
        }
        if left < self.largest_batch as u64
            && self.state.waiting.is_empty()
            && !self.state.pauses.is_failing()
        {
            self.pause(self.linger).await;
        }
        let end = *self.written.borrow();
        let longest = self.state.batch.unwrap_or(self.largest_batch);
        match self.spool.batch(end, longest) {
            Ok(Some(batch)) => {
                let outcome = self.send(&batch).await;
                self.conclude(&batch, outcome).await;
            }
            Ok(None) => self.wait().await,
            Err(error) => self.fail(format!("the spool cannot be read: {error}"), None).await,
        }
    }

    /// Tells whoever waits for what is delivered; whoever waits in vain need not wait for long.
    fn answer(&mut self) {
        while let Ok(flush) = self.flushes.try_recv() {
            self.state.waiting.push(flush);
        }
        let (position, refused) = (self.spool.position(), self.state.refused);
        for (place, done) in std::mem::take(&mut self.state.waiting) {
            if place <= position {
                // Whoever asked may have given up.
                let _ = done.send(());
            } else if !refused && !done.is_closed() {
                self.state.waiting.push((place, done));
            }
        }
    }

    /// Until something is written or asked.
    async fn wait(&mut self) {
        tokio::select! {
            Ok(()) = self.written.changed() => {}
            Some(flush) = self.flushes.recv() => self.state.waiting.push(flush),
            else => std::future::pending().await, // the spooler has ended, and soon this does
        }
    }

    /// A while, or until somebody waits.
    async fn pause(&mut self, pause: Duration) {
        tokio::select! {
            () = sleep(pause) => {}
            Some(flush) = self.flushes.recv() => {
                self.state.waiting.push(flush);
                self.state.pauses.reset();
            }
        }
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let body = match compress(&batch.text) {
            Ok(body) => body,
            Err(error) => return Outcome::Failed { why: error.to_string(), pause: None },
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let mut url = self.target.url.clone();
        url.query_pairs_mut().append_pair("token", self.target.token.expose_secret());
        outcome(self.client.post(url, headers, body).await)
    }

    async fn conclude(&mut self, batch: &Batch, outcome: Outcome) {
        match outcome {
            Outcome::Taken { lost } => {
                (self.dropped)(lost);
                if lost > 0 {
                    tracing::warn!(lines = lost, "logz.io did not take every line of a batch");
                }
                if self.state.pauses.reset() {
                    tracing::info!("logz.io takes records again");
                }
                self.state.batch = self
                    .state
                    .batch
                    .map(|limit| limit.saturating_mul(2))
                    .filter(|limit| *limit < self.largest_batch);
                self.advance(batch);
            }
            Outcome::TooLarge if lines(batch) > 1 => {
                self.state.batch = Some((batch.text.len() / 2).max(SMALLEST_BATCH_BYTES));
            }
            Outcome::TooLarge => {
                (self.dropped)(1);
                tracing::warn!(bytes = batch.text.len(), "a line is too long for logz.io");
                self.advance(batch);
            }
            Outcome::Refused(status) => {
                self.state.refused = true;
                tracing::error!(
                    status,
                    "logz.io refuses the token; records stay in the spool until a start with another one"
                );
            }
            Outcome::Failed { why, pause } => self.fail(why, pause).await,
        }
    }

    /// Should the position not be written, some are sent twice after a restart.
    fn advance(&mut self, batch: &Batch) {
        if let Err(error) = self.spool.advance(batch.end) {
            tracing::warn!(%error, "the spool's position cannot be written");
        }
    }

    async fn fail(&mut self, why: String, asked_for: Option<Duration>) {
        if !self.state.pauses.is_failing() {
            tracing::warn!(why, "logz.io takes no records; they wait in the spool");
        }
        let pause = self.state.pauses.next_pause();
        self.pause(asked_for.map_or(pause, |asked_for| asked_for.max(pause))).await;
    }
}

fn outcome(answer: Result<Reply, PluginError>) -> Outcome {
    let reply = match answer {
        Ok(reply) => reply,
        Err(error) => return Outcome::Failed { why: chain(&error), pause: None },
    };
    match reply.status {
        200..300 => Outcome::Taken { lost: 0 },
        400 => match serde_json::from_slice::<Partly>(&reply.body) {
            Ok(partly) => Outcome::Taken { lost: partly.malformed_lines + partly.oversized_lines },
            Err(_) => Outcome::Failed { why: "it answers 400 without saying why".to_owned(), pause: None },
        },
        413 => Outcome::TooLarge,
        status @ (401 | 403) => Outcome::Refused(status),
        status => {
            Outcome::Failed { why: format!("it answers {status}"), pause: pause_asked_for(&reply.headers) }
        }
    }
}

fn lines(batch: &Batch) -> usize {
    batch.text.iter().filter(|byte| **byte == b'\n').count()
}

fn compress(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}
