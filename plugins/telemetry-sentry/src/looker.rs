//! The thread that looks at every record: each becomes a breadcrumb, and an error an event with the breadcrumbs before
//! it. Events are made when it is their turn to be sent, so that waiting costs pointers.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use host_core::telemetry::{Level, Record};
use telemetry_http::{Item, Outlet};
use tokio::sync::{Notify, mpsc, oneshot};

/// What the courier gets, in order.
pub(crate) enum Job {
    Send(Box<Trouble>),
    /// To be answered when everything before it is sent or given up.
    Flush(oneshot::Sender<()>),
}

/// An error, and the records before it.
pub(crate) struct Trouble {
    pub(crate) record: Arc<Record>,
    pub(crate) crumbs: Vec<Arc<Record>>,
}

/// What both threads know.
#[derive(Default)]
pub(crate) struct Shared {
    /// Errors that wait or are being sent.
    pub(crate) waiting: AtomicUsize,
    /// Somebody waits for a flush: pauses are to be cut short.
    pub(crate) hurry: Notify,
}

pub(crate) struct Looker {
    pub(crate) outlet: Outlet,
    pub(crate) jobs: mpsc::UnboundedSender<Job>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) most_waiting: usize,
    pub(crate) most_crumbs: usize,
}

impl Looker {
    /// Ends when nobody can send any more.
    pub(crate) fn run(mut self) {
        let mut crumbs = VecDeque::with_capacity(self.most_crumbs);
        while let Some(item) = self.outlet.wait() {
            match item {
                Item::Flush(done) => {
                    // Without a courier, whoever asked is told by the end of the channel.
                    let _ = self.jobs.send(Job::Flush(done));
                    self.shared.hurry.notify_one();
                }
                Item::Record(record) => {
                    if record.level == Level::Error {
                        self.pass_on(&record, &crumbs);
                    }
                    if crumbs.len() == self.most_crumbs {
                        crumbs.pop_front();
                    }
                    if self.most_crumbs > 0 {
                        crumbs.push_back(record);
                    }
                }
            }
        }
    }

    fn pass_on(&self, record: &Arc<Record>, crumbs: &VecDeque<Arc<Record>>) {
        let trouble = Trouble { record: record.clone(), crumbs: crumbs.iter().cloned().collect() };
        let has_room = self.shared.waiting.fetch_add(1, Ordering::Relaxed) < self.most_waiting;
        if !has_room || self.jobs.send(Job::Send(Box::new(trouble))).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.outlet.lost(1);
        }
    }
}
