//! The thread that writes.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use host_core::telemetry::{Level, Record};
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use crate::{json, pretty};

/// Written at once, to spare system calls when records come fast.
const BATCH_BYTES: usize = 32 * 1024;

/// Waking a sleeping thread costs the waker microseconds. So the writer looks for records by itself, this often, as
/// long as some came lately; only the first one after a quiet time has to wake it.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOKS: u32 = 200;

/// How long to leave a sink alone that is non-blocking and full.
const PAUSE: Duration = Duration::from_millis(10);

/// Under lasting overload, what was dropped is told no more often.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// For people, in colour or not.
    Pretty {
        /// With ANSI colours.
        colour: bool,
    },
    /// One JSON object a line.
    Json,
}

/// What waits for the writer.
pub(crate) enum Item {
    Record(Arc<Record>),
    /// To be answered when everything before it is written.
    Flush(oneshot::Sender<()>),
}

pub(crate) struct Writer<W> {
    queue: mpsc::Receiver<Item>,
    look: Look,
    output: Output<W>,
    dropped: Arc<AtomicU64>,
    told: Told,
    batch: Vec<u8>,
    flushes: Vec<oneshot::Sender<()>>,
    /// Who speaks, for lines of the writer's own.
    last: Option<Arc<Record>>,
}

/// What has been said about dropped records.
struct Told {
    count: u64,
    at: Option<Instant>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(queue: mpsc::Receiver<Item>, look: Look, sink: W, dropped: Arc<AtomicU64>) -> Self {
        Self {
            queue,
            look,
            output: Output { sink, torn: false },
            dropped,
            told: Told { count: 0, at: None },
            batch: Vec::new(),
            flushes: Vec::new(),
            last: None,
        }
    }

    /// Ends when nobody can send any more and everything is written.
    pub(crate) fn run(mut self) {
        while let Some(first) = self.next() {
            self.take(first);
            while self.batch.len() < BATCH_BYTES
                && let Ok(next) = self.queue.try_recv()
            {
                self.take(next);
            }
            self.write_batch();
            self.tell_dropped();
            for flush in self.flushes.drain(..) {
                // Whoever asked may have given up.
                flush.send(()).ok();
            }
        }
    }

    /// Waits for an item; `None` when there will be none.
    fn next(&mut self) -> Option<Item> {
        for _ in 0..LOOKS {
            match self.queue.try_recv() {
                Ok(item) => return Some(item),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => thread::sleep(LOOK_EVERY),
            }
        }
        self.queue.blocking_recv()
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Record(record) => {
                self.push(&record);
                self.last = Some(record);
            }
            Item::Flush(done) => self.flushes.push(done),
        }
    }

    fn push(&mut self, record: &Record) {
        match self.look {
            Look::Pretty { colour } => pretty::push(&mut self.batch, record, colour),
            Look::Json => json::push(&mut self.batch, record),
        }
    }

    fn write_batch(&mut self) {
        let lost = self.output.write(&self.batch);
        self.dropped.fetch_add(lost, Ordering::Relaxed);
        self.batch.clear();
        // One huge record should not hold its memory for ever.
        self.batch.shrink_to(2 * BATCH_BYTES);
    }

    /// Says how many records were dropped, once there is room again.
    fn tell_dropped(&mut self) {
        let dropped = self.dropped.load(Ordering::Relaxed);
        let is_early = self.told.at.is_some_and(|at| at.elapsed() < TELL_EVERY);
        if dropped == self.told.count || (is_early && !self.queue.is_empty()) {
            return;
        }
        let Some(record) = self.dropped_record(dropped) else {
            return;
        };
        self.push(&record);
        if self.output.write(&self.batch) == 0 {
            self.told = Told { count: dropped, at: Some(Instant::now()) };
        }
        self.batch.clear();
    }

    fn dropped_record(&self, dropped: u64) -> Option<Record> {
        let last = self.last.as_ref()?;
        let fields = [("records", dropped - self.told.count), ("since_start", dropped)];
        let field = |(name, count): (&str, u64)| (name.to_owned(), count.into());
        Some(Record {
            at: SystemTime::now(),
            level: Level::Warn,
            target: module_path!(),
            message: "records were dropped".to_owned(),
            fields: fields.into_iter().map(field).collect(),
            instance: last.instance.clone(),
            environment: Arc::clone(&last.environment),
        })
    }
}

/// Where lines go. A line that could not be written whole is lost, and the next one begins on a line of its own.
struct Output<W> {
    sink: W,
    /// The last line has no end.
    torn: bool,
}

impl<W: Write> Output<W> {
    /// Blocks as long as the sink does. Returns how many lines were lost.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if self.torn {
            self.torn = self.write_some(b"\n") == 0;
        }
        let written = if self.torn { 0 } else { self.write_some(lines) };
        self.torn |= written > 0 && lines[written - 1] != b'\n';
        let lost = lines[written..].iter().filter(|byte| **byte == b'\n').count();
        u64::try_from(lost).unwrap_or(u64::MAX)
    }

    /// Returns how much was written before it failed for good.
    fn write_some(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.sink.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(_) => break,
            }
        }
        written
    }
}
