//! What is to be done, decided from what is wanted and what is seen. Pure and synchronous; doing is the host's.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    id::MandelboxId,
    lifecycle::EndReason,
    pubsub::{DesiredState, InstanceStatus, MandelboxRow, MandelboxStatus},
    runtime::{Container, ContainerId, ContainerState},
};

/// Label that carries a mandelbox's id.
pub const LABEL_MANDELBOX: &str = "host-service.mandelbox";
/// Label that carries the name of the host that made it.
pub const LABEL_INSTANCE: &str = "host-service.instance";
/// Label that carries the run of the service that made it: what another run made is not this one's to remove.
pub const LABEL_RUN: &str = "host-service.run";

/// What this host has and does.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// No new mandelboxes are taken.
    pub draining: bool,
    /// Every mandelbox with an owner task, and whether it is ending already.
    pub owned: BTreeMap<MandelboxId, Owned>,
    /// Rows that have been dealt with, up to the status they have here: refused, forgotten, or their mandelbox has
    /// lived and ended. The control plane may not have said yet that such a row has changed; a row of the same id that
    /// is another allocation is a new one.
    pub spent: BTreeMap<MandelboxId, MandelboxRow>,
}

/// A mandelbox with an owner task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The row it was made for.
    pub row: MandelboxRow,
    /// It is on its way out already.
    pub ending: bool,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Give it an owner, which claims it first.
    SpinUp(MandelboxRow),
    /// This host takes no new ones: delete the row, so that the control plane can choose another host.
    Refuse(MandelboxRow),
    /// End it.
    End(MandelboxId, EndReason),
    /// A row says that it lives here, and nothing here does: delete the row.
    Forget(MandelboxRow),
    /// Take no new ones and end with the last.
    Drain(DrainCause),
    /// A container of this host that no owner knows: remove it.
    RemoveOrphan(ContainerId),
}

/// Who ordered a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainCause {
    /// The row says `DRAINING`.
    ControlPlane,
    /// The row says `HOST_SERVICE_UNRESPONSIVE`: the control plane gave this host up.
    GivenUp,
    /// The row is gone.
    Unregistered,
    /// A signal.
    Signal,
    /// The admin API.
    Operator,
    /// The cloud takes the machine away.
    Interruption,
    /// The service cannot go on.
    Failure,
}

/// From the control plane's full state to steps. Idempotent: what is under way is not planned again.
pub fn plan(desired: &DesiredState, observed: &Observed) -> Vec<Step> {
    let mut steps: Vec<Step> =
        drain_cause(desired.instance).filter(|_| !observed.draining).map(Step::Drain).into_iter().collect();
    let draining = observed.draining || !steps.is_empty();
    let mut seen = BTreeSet::new();
    for row in &desired.mandelboxes {
        seen.insert(&row.id);
        steps.extend(plan_row(row, draining, observed));
    }
    let unwanted = observed.owned.iter().filter(|(id, owned)| !owned.ending && !seen.contains(id));
    steps.extend(unwanted.map(|(id, _)| Step::End(id.clone(), EndReason::RowDeleted)));
    steps
}

fn drain_cause(instance: Option<InstanceStatus>) -> Option<DrainCause> {
    match instance {
        None => Some(DrainCause::Unregistered),
        Some(InstanceStatus::Draining) => Some(DrainCause::ControlPlane),
        Some(InstanceStatus::Unresponsive) => Some(DrainCause::GivenUp),
        Some(InstanceStatus::PreConnection | InstanceStatus::Active) => None,
    }
}

fn plan_row(row: &MandelboxRow, draining: bool, observed: &Observed) -> Option<Step> {
    match (observed.owned.get(&row.id), row.status) {
        (Some(owned), MandelboxStatus::Dying) if !owned.ending => {
            Some(Step::End(row.id.clone(), EndReason::RowDying))
        }
        // The id was given away anew: the one of before is gone, and the new one is spun up after it.
        (Some(owned), _) if !owned.ending && !owned.row.is_same(row) => {
            Some(Step::End(row.id.clone(), EndReason::RowDeleted))
        }
        (Some(_), _) => None,
        (None, status) if spent(observed, row).is_some_and(|settled| status <= settled) => None,
        (None, MandelboxStatus::Allocated) if draining => Some(Step::Refuse(row.clone())),
        (None, MandelboxStatus::Allocated) => Some(Step::SpinUp(row.clone())),
        (None, _) => Some(Step::Forget(row.clone())),
    }
}

/// Up to which status this very allocation has been dealt with.
fn spent(observed: &Observed, row: &MandelboxRow) -> Option<MandelboxStatus> {
    observed.spent.get(&row.id).filter(|spent| spent.is_same(row)).map(|spent| spent.status)
}

/// From the runtime's full list to steps. `expected` are the mandelboxes whose containers ran *before* the list
/// was asked for: a container started meanwhile may be missing from it.
pub fn compare(
    listed: &[Container],
    expected: &BTreeMap<MandelboxId, ContainerId>,
    observed: &Observed,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (id, container) in expected {
        let found = listed.iter().find(|c| c.id == *container);
        let reason = match found.map(|c| &c.state) {
            None => EndReason::ContainerLost,
            Some(ContainerState::Exited(exit)) => EndReason::Exited(*exit),
            Some(ContainerState::Created | ContainerState::Running) => continue,
        };
        if observed.owned.get(id).is_some_and(|owned| !owned.ending) {
            steps.push(Step::End(id.clone(), reason));
        }
    }
    let orphans =
        listed.iter().filter(|container| owner(container).is_none_or(|id| !observed.owned.contains_key(&id)));
    steps.extend(orphans.map(|container| Step::RemoveOrphan(container.id.clone())));
    steps
}

/// Whose a container is, by its label.
fn owner(container: &Container) -> Option<MandelboxId> {
    container.labels.get(LABEL_MANDELBOX)?.parse().ok()
}

#[cfg(test)]
mod tests;
