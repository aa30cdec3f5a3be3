//! Calls that fail, lose their answer or hang, as tests want them to.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use host_core::{ErrorKind, PluginError, pubsub::Result};
use tokio::sync::watch;

/// The operations of `PubSub`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the method of that name")]
pub enum Operation {
    Watch,
    Register,
    Claim,
    SetStatus,
    Heartbeat,
    MarkDraining,
    Remove,
    Unregister,
    RemoveStale,
    Allocate,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 10] = [
        Self::Watch,
        Self::Register,
        Self::Claim,
        Self::SetStatus,
        Self::Heartbeat,
        Self::MarkDraining,
        Self::Remove,
        Self::Unregister,
        Self::RemoveStale,
        Self::Allocate,
    ];
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and changes nothing.
    Refuse(ErrorKind),
    /// It takes effect, and the caller is told that it failed.
    LoseAnswer(ErrorKind),
    /// It neither takes effect nor returns until the fault is lifted; then it goes on.
    Hang,
}

#[derive(Debug, Clone, Copy)]
struct Planned {
    fault: Fault,
    /// How many more calls it concerns; `None` is all.
    calls: Option<u32>,
}

/// What is to go wrong, and how often each operation was called.
#[derive(Debug)]
pub(crate) struct Faults {
    planned: watch::Sender<BTreeMap<Operation, Planned>>,
    calls: [AtomicU64; Operation::ALL.len()],
}

impl Default for Faults {
    fn default() -> Self {
        Self { planned: watch::Sender::new(BTreeMap::new()), calls: Default::default() }
    }
}

impl Faults {
    pub(crate) fn plan(&self, operation: Operation, fault: Fault, calls: Option<u32>) {
        self.planned.send_modify(|planned| match calls {
            Some(0) => drop(planned.remove(&operation)),
            _ => drop(planned.insert(operation, Planned { fault, calls })),
        });
    }

    pub(crate) fn lift_all(&self) {
        self.planned.send_modify(BTreeMap::clear);
    }

    pub(crate) fn calls(&self, operation: Operation) -> u64 {
        self.calls[operation as usize].load(Ordering::Relaxed)
    }

    /// Lets a call through to `effect`, unless it is to fail or to hang.
    pub(crate) async fn call<T>(
        &self,
        operation: Operation,
        effect: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.calls[operation as usize].fetch_add(1, Ordering::Relaxed);
        match self.next(operation).await {
            None | Some(Fault::Hang) => effect(),
            Some(Fault::Refuse(kind)) => Err(failed(operation, kind)),
            Some(Fault::LoseAnswer(kind)) => effect().and(Err(failed(operation, kind))),
        }
    }

    /// The next call's fault. [`Fault::Hang`] is waited out first.
    async fn next(&self, operation: Operation) -> Option<Fault> {
        let mut changes = self.planned.subscribe();
        loop {
            match self.take(operation) {
                Some(Fault::Hang) => {}
                fault => return fault,
            }
            // The sender is in `self`, so it is never closed.
            changes.changed().await.ok();
        }
    }

    fn take(&self, operation: Operation) -> Option<Fault> {
        let mut taken = None;
        self.planned.send_if_modified(|planned| {
            let Some(next) = planned.get_mut(&operation) else {
                return false;
            };
            taken = Some(next.fault);
            match (next.fault, &mut next.calls) {
                (Fault::Hang, _) | (_, None) => {}
                (_, Some(left @ 2..)) => *left -= 1,
                (_, Some(_)) => drop(planned.remove(&operation)),
            }
            false
        });
        taken
    }
}

fn failed(operation: Operation, kind: ErrorKind) -> PluginError {
    PluginError::new(kind, format!("{operation:?} was told to fail"))
}
