//! The thread that takes records from the queue to the disk.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use host_core::{
    chain,
    telemetry::{Level, Record},
};
use telemetry_http::{Item, Outlet};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    line,
    spool::{NotTaken, Writer},
};

/// Written at once, to spare system calls when records come fast.
const PART_BYTES: usize = 256 << 10;
/// Under lasting overload, what was dropped is told no more often.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// To be answered when everything before the place is delivered.
pub(crate) type Flush = (u64, oneshot::Sender<()>);

pub(crate) struct Spooler {
    pub(crate) outlet: Outlet,
    pub(crate) spool: Writer,
    /// How far the shipper may read.
    pub(crate) end: watch::Sender<u64>,
    pub(crate) flushes: mpsc::UnboundedSender<Flush>,
    told: Told,
    /// Who speaks, for lines of its own.
    last: Option<Arc<Record>>,
    failing: bool,
}

/// What has been said about dropped records.
#[derive(Default)]
struct Told {
    count: u64,
    at: Option<Instant>,
}

impl Spooler {
    pub(crate) fn new(
        outlet: Outlet,
        spool: Writer,
        end: watch::Sender<u64>,
        flushes: mpsc::UnboundedSender<Flush>,
    ) -> Self {
        Self { outlet, spool, end, flushes, told: Told::default(), last: None, failing: false }
    }

    /// Ends when nobody can send any more and everything is on disk.
    pub(crate) fn run(mut self) {
        let mut lines = Vec::new();
        while let Some(first) = self.outlet.wait() {
            let (mut count, mut flushes) = (0, Vec::new());
            let mut next = Some(first);
            while let Some(item) = next {
                match item {
                    Item::Record(record) => {
                        line::push(&mut lines, &record);
                        count += 1;
                        self.last = Some(record);
                    }
                    Item::Flush(done) => flushes.push(done),
                }
                next = if lines.len() < PART_BYTES { self.outlet.ready() } else { None };
            }
            self.append(&lines, count);
            self.tell_dropped();
            lines.clear();
            // One huge record should not hold its memory for ever.
            lines.shrink_to(2 * PART_BYTES);
            self.end.send_replace(self.spool.end());
            self.pass_on(flushes);
        }
        // The last ones should survive even a machine that goes with its service.
        let _ = self.spool.sync();
    }

    fn append(&mut self, lines: &[u8], count: u64) {
        if lines.is_empty() {
            return;
        }
        match self.spool.append(lines) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.outlet.lost(count);
                self.fails(&error);
            }
        }
    }

    /// Told once, to the other plugins: here there is no place for it.
    fn fails(&mut self, error: &NotTaken) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(error = %chain(error), "records for logz.io are being lost");
        }
    }

    /// Whoever asks for a flush is about to end, and so may the machine be.
    fn pass_on(&self, flushes: Vec<oneshot::Sender<()>>) {
        if flushes.is_empty() {
            return;
        }
        if let Err(error) = self.spool.sync() {
            tracing::warn!(%error, "the spool could not be synchronized");
        }
        for done in flushes {
            // Without a shipper, whoever asked is told by the end of the channel.
            let _ = self.flushes.send((self.spool.end(), done));
        }
    }

    /// Says how many records were dropped, once there is room again.
    fn tell_dropped(&mut self) {
        let dropped = self.outlet.dropped.load(std::sync::atomic::Ordering::Relaxed);
        let is_early = self.told.at.is_some_and(|at| at.elapsed() < TELL_EVERY);
        if dropped == self.told.count || self.failing || (is_early && !self.outlet.is_empty()) {
            return;
        }
        let Some(last) = &self.last else { return };
        let fields = [("records", dropped - self.told.count), ("since_start", dropped)];
        let field = |(name, count): (&str, u64)| (name.to_owned(), count.into());
        let record = Record {
            at: SystemTime::now(),
            level: Level::Warn,
            target: module_path!(),
            message: "records were dropped".to_owned(),
            fields: fields.into_iter().map(field).collect(),
            instance: last.instance.clone(),
            environment: Arc::clone(&last.environment),
        };
        let mut line = Vec::new();
        line::push(&mut line, &record);
        if self.spool.append(&line).is_ok() {
            self.told = Told { count: dropped, at: Some(Instant::now()) };
        }
    }
}
