//! What a control plane can do to the tables, and what tests can do to the connection. None of it can fail by a
//! [`Fault`]: faults are the host's trouble.

use host_core::{
    ErrorKind, InstanceName, MandelboxId,
    pubsub::{DesiredState, InstanceFacts, InstanceStatus, MandelboxRow, Result},
};

use crate::{Fault, InstanceRow, MemoryPubSub, Operation, feeds::Lost};

impl MemoryPubSub {
    /// Inserts a host's row, or replaces it. In `PRE_CONNECTION` the facts are what registration expects.
    pub fn insert_instance(&self, facts: InstanceFacts, status: InstanceStatus) {
        let name = facts.name.clone();
        let row = InstanceRow { status, facts: Some(facts), heartbeat: None };
        self.change(&name, |tables| tables.put_instance(name.clone(), row));
    }

    /// Sets any status. `false` when there is no such host.
    pub fn set_instance_status(&self, instance: &InstanceName, status: InstanceStatus) -> bool {
        self.change(instance, |tables| tables.set_instance_status(instance, status))
    }

    /// Deletes a host's row and its mandelboxes'.
    pub fn delete_instance(&self, instance: &InstanceName) {
        self.change(instance, |tables| tables.delete_instance(instance));
    }

    /// Inserts a mandelbox's row in any state, or replaces this host's.
    ///
    /// # Errors
    /// `NotFound` when there is no such host, `Conflict` when another host has a mandelbox of this id.
    pub fn put_mandelbox(&self, instance: &InstanceName, row: MandelboxRow) -> Result<()> {
        self.change(instance, |tables| tables.put_mandelbox(instance, row))
    }

    /// Deletes a mandelbox's row, as if its user had gone.
    pub fn delete_mandelbox(&self, mandelbox: &MandelboxId) {
        if let Some((instance, _)) = self.mandelbox(mandelbox) {
            self.change(&instance, |tables| tables.delete_mandelbox(mandelbox));
        }
    }

    /// A host's row.
    pub fn instance(&self, instance: &InstanceName) -> Option<InstanceRow> {
        self.lock().tables.instance(instance).cloned()
    }

    /// A mandelbox's row, and whose it is.
    pub fn mandelbox(&self, mandelbox: &MandelboxId) -> Option<(InstanceName, MandelboxRow)> {
        self.lock().tables.mandelboxes().get(mandelbox).cloned()
    }

    /// What a watch of this host would yield first.
    pub fn desired(&self, instance: &InstanceName) -> DesiredState {
        self.lock().tables.desired(instance)
    }

    /// Returns when this host's desired state is so, with that state.
    pub async fn until(
        &self,
        instance: &InstanceName,
        mut condition: impl FnMut(&DesiredState) -> bool,
    ) -> DesiredState {
        let mut feed = self.subscribe(instance);
        loop {
            // A copy, so that the condition may look at this control plane as well.
            let state = feed.borrow_and_update().clone();
            if let Ok(state) = state
                && condition(&state)
            {
                return state;
            }
            if feed.changed().await.is_err() {
                // It was cut; there is a new one.
                feed = self.subscribe(instance);
            }
        }
    }

    /// Unix time in ms on this control plane's clock, which follows tokio's, also while that is paused.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Cuts every watch: each stream ends with an `Unavailable` error. What else is to fail is up to
    /// [`MemoryPubSub::fault`].
    pub fn disconnect(&self) {
        self.lock().feeds.cut(Lost(ErrorKind::Unavailable));
    }

    /// From now on this goes wrong with every call of `operation`.
    pub fn fault(&self, operation: Operation, fault: Fault) {
        self.faults.plan(operation, fault, None);
    }

    /// This goes wrong with the next calls of `operation`, so many of them. [`Fault::Hang`] stays until lifted.
    pub fn fault_next(&self, operation: Operation, calls: u32, fault: Fault) {
        self.faults.plan(operation, fault, Some(calls));
    }

    /// Lifts every fault. Calls that hang go on.
    pub fn heal(&self) {
        self.faults.lift_all();
    }

    /// How many calls of `operation` have begun, those that failed or hang included.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.faults.calls(operation)
    }
}
