//! The two tables and the rules for changing them. Pure: no lock, no clock, no I/O.

use std::{collections::BTreeMap, time::Duration};

use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{
        Allocation, Claim, DesiredState, Heartbeat, InstanceFacts, InstanceStatus, MandelboxRow,
        MandelboxStatus, Registered, Result, StaleAfter,
    },
};

/// A host's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    /// Where it is in its life.
    pub status: InstanceStatus,
    /// What the host said of itself; in `PRE_CONNECTION` what the control plane expects of it, `None` where it
    /// expects nothing.
    pub facts: Option<InstanceFacts>,
    /// The last one reported.
    pub heartbeat: Option<Heartbeat>,
}

/// Mandelboxes with the host that each belongs to. A row's host is always in the instance table.
pub(crate) type Mandelboxes = BTreeMap<MandelboxId, (InstanceName, MandelboxRow)>;

/// `instance_info` and `mandelbox_info`.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    instances: BTreeMap<InstanceName, InstanceRow>,
    mandelboxes: Mandelboxes,
    revision: u64,
}

impl Tables {
    /// Rows that outlived the process that kept them. Whatever their hosts' status was, those hosts are gone:
    /// each may register again, and nothing is expected of it.
    pub(crate) fn restored(mandelboxes: Mandelboxes) -> Self {
        let waiting = InstanceRow { status: InstanceStatus::PreConnection, facts: None, heartbeat: None };
        let hosts = mandelboxes.values().map(|(host, _)| (host.clone(), waiting.clone()));
        Self { instances: hosts.collect(), mandelboxes, revision: 0 }
    }

    pub(crate) fn mandelboxes(&self) -> &Mandelboxes {
        &self.mandelboxes
    }

    /// As long as it is the same, so are the mandelboxes' rows.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn instance(&self, name: &InstanceName) -> Option<&InstanceRow> {
        self.instances.get(name)
    }

    pub(crate) fn desired(&self, of: &InstanceName) -> DesiredState {
        let own = |(host, row): &(InstanceName, MandelboxRow)| (host == of).then(|| row.clone());
        DesiredState {
            instance: self.instances.get(of).map(|row| row.status),
            mandelboxes: self.mandelboxes.values().filter_map(own).collect(),
        }
    }

    pub(crate) fn register(&mut self, facts: &InstanceFacts, heartbeat: &Heartbeat) -> Result<Registered> {
        if let Some(row) = self.instances.get(&facts.name) {
            match row.status {
                InstanceStatus::Draining | InstanceStatus::Unresponsive => {
                    return Ok(Registered::Unwanted(row.status));
                }
                InstanceStatus::PreConnection => expect(row.facts.as_ref(), facts)?,
                InstanceStatus::Active => same_machine(row.facts.as_ref(), facts)?,
            }
        }
        let row = InstanceRow {
            status: InstanceStatus::Active,
            facts: Some(facts.clone()),
            heartbeat: Some(*heartbeat),
        };
        self.instances.insert(facts.name.clone(), row);
        Ok(Registered::Active)
    }

    pub(crate) fn claim(&mut self, instance: &InstanceName, wanted: &MandelboxRow) -> Claim {
        let same = |row: &MandelboxRow| row.is_same(wanted) && row.user == wanted.user;
        match self.own(instance, &wanted.id) {
            Some(row) if row.status == MandelboxStatus::Allocated && same(row) => {
                row.status = MandelboxStatus::Connecting;
                Claim::Won(row.clone())
            }
            _ => Claim::Lost,
        }
    }

    pub(crate) fn advance(&mut self, instance: &InstanceName, mandelbox: &MandelboxId, to: MandelboxStatus) {
        if let Some(row) = self.own(instance, mandelbox) {
            row.status = row.status.max(to);
        }
    }

    pub(crate) fn heartbeat(&mut self, instance: &InstanceName, heartbeat: &Heartbeat) {
        if let Some(row) = self.instances.get_mut(instance) {
            row.heartbeat = Some(*heartbeat);
        }
    }

    pub(crate) fn mark_draining(&mut self, instance: &InstanceName) {
        if let Some(row) = self.instances.get_mut(instance) {
            row.status = row.status.max(InstanceStatus::Draining);
        }
    }

    pub(crate) fn remove(&mut self, instance: &InstanceName, mandelbox: &MandelboxId) {
        if self.own(instance, mandelbox).is_some() {
            self.mandelboxes_mut().remove(mandelbox);
        }
    }

    pub(crate) fn remove_stale(
        &mut self,
        instance: &InstanceName,
        after: StaleAfter,
        working_on: &[MandelboxId],
        now_ms: i64,
    ) -> Vec<MandelboxId> {
        let stale = |(id, (host, row)): (&MandelboxId, &(InstanceName, MandelboxRow))| {
            let stale = host == instance && is_stale(row, after, now_ms) && !working_on.contains(id);
            stale.then(|| id.clone())
        };
        let removed: Vec<_> = self.mandelboxes.iter().filter_map(stale).collect();
        for id in &removed {
            self.mandelboxes_mut().remove(id);
        }
        removed
    }

    pub(crate) fn allocate(&mut self, instance: &InstanceName, new: &Allocation, now_ms: i64) -> Result<()> {
        if let Some((host, _)) = self.mandelboxes.get(&new.id) {
            return Err(exists(&new.id, host));
        }
        let row = MandelboxRow {
            id: new.id.clone(),
            user: new.user.clone(),
            session: new.session.clone(),
            app: new.app.clone(),
            status: MandelboxStatus::Allocated,
            created_ms: now_ms,
        };
        self.put_mandelbox(instance, row)
    }

    /// Inserts or replaces, whatever the row was.
    pub(crate) fn put_instance(&mut self, name: InstanceName, row: InstanceRow) {
        self.instances.insert(name, row);
    }

    /// Any status, also an earlier one: the control plane may. `false` when there is no such row.
    pub(crate) fn set_instance_status(&mut self, instance: &InstanceName, status: InstanceStatus) -> bool {
        let row = self.instances.get_mut(instance);
        row.map(|row| row.status = status).is_some()
    }

    /// With all its mandelboxes.
    pub(crate) fn delete_instance(&mut self, instance: &InstanceName) {
        self.instances.remove(instance);
        self.mandelboxes_mut().retain(|_, (host, _)| host != instance);
    }

    /// Inserts, or replaces a row of the same host.
    pub(crate) fn put_mandelbox(&mut self, instance: &InstanceName, row: MandelboxRow) -> Result<()> {
        if !self.instances.contains_key(instance) {
            let message = format!("there is no instance {instance}: nothing has registered under this name");
            return Err(PluginError::new(ErrorKind::NotFound, message));
        }
        match self.mandelboxes.get(&row.id) {
            Some((host, _)) if host != instance => return Err(exists(&row.id, host)),
            _ => {}
        }
        self.mandelboxes_mut().insert(row.id.clone(), (instance.clone(), row));
        Ok(())
    }

    pub(crate) fn delete_mandelbox(&mut self, mandelbox: &MandelboxId) {
        self.mandelboxes_mut().remove(mandelbox);
    }

    fn own(&mut self, instance: &InstanceName, mandelbox: &MandelboxId) -> Option<&mut MandelboxRow> {
        let (host, row) = self.mandelboxes_mut().get_mut(mandelbox)?;
        (host == instance).then_some(row)
    }

    fn mandelboxes_mut(&mut self) -> &mut Mandelboxes {
        self.revision += 1;
        &mut self.mandelboxes
    }
}

fn exists(mandelbox: &MandelboxId, on: &InstanceName) -> PluginError {
    PluginError::new(ErrorKind::Conflict, format!("mandelbox {mandelbox} exists already, on instance {on}"))
}

fn is_stale(row: &MandelboxRow, after: StaleAfter, now_ms: i64) -> bool {
    let limit = match row.status {
        MandelboxStatus::Allocated => after.allocated,
        MandelboxStatus::Connecting => after.connecting,
        MandelboxStatus::Running | MandelboxStatus::Dying => return false,
    };
    let age_ms = u64::try_from(now_ms.saturating_sub(row.created_ms)).unwrap_or(0);
    Duration::from_millis(age_ms) > limit
}

/// What the control plane wrote when it asked for the machine must be what has come up.
fn expect(expected: Option<&InstanceFacts>, facts: &InstanceFacts) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let differs = |what: &str, want: &str, have: &str| format!("{what} is {have:?}, expected {want:?}");
    let mut wrong = Vec::new();
    for (what, want, have) in [
        ("image id", &expected.image_id, &facts.image_id),
        ("region", &expected.region, &facts.region),
        ("instance type", &expected.instance_type, &facts.instance_type),
    ] {
        if want != have {
            wrong.push(differs(what, want, have));
        }
    }
    if !is_same_commit(&expected.commit, &facts.commit) {
        wrong.push(differs("commit", &expected.commit, &facts.commit));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let message = format!("instance {} is not the one asked for: {}", facts.name, wrong.join("; "));
    Err(PluginError::new(ErrorKind::Invalid, message))
}

/// Either may be abbreviated.
fn is_same_commit(one: &str, other: &str) -> bool {
    !one.is_empty() && !other.is_empty() && (one.starts_with(other) || other.starts_with(one))
}

/// A host whose answer was lost, or that was restarted or rebuilt, registers again: the row takes its new facts.
/// Two machines cannot share a name.
fn same_machine(active: Option<&InstanceFacts>, facts: &InstanceFacts) -> Result<()> {
    match active {
        Some(active) if active.cloud_id != facts.cloud_id => {
            let message = format!(
                "instance {} is active already on machine {:?}; this is machine {:?}",
                facts.name, active.cloud_id, facts.cloud_id
            );
            Err(PluginError::new(ErrorKind::Conflict, message))
        }
        _ => Ok(()),
    }
}
