//! What a host does about its own row when it starts. Looking and writing are the caller's; nobody may write between.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use host_core::{
    ErrorKind, InstanceName, PluginError,
    pubsub::{InstanceFacts, InstanceStatus, Result},
};

use crate::rows::{short, unknown_status};

/// The row as the control plane, or an earlier registration, left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// `status`.
    pub status: String,
    /// `cloud_provider_id`.
    pub cloud_id: String,
    /// `aws_ami_id`.
    pub image_id: String,
    /// `location`.
    pub region: String,
    /// `aws_instance_type`.
    pub instance_type: String,
    /// `commit_hash`.
    pub commit: String,
}

/// What there is to do about the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// It becomes `ACTIVE`, with this host's facts, if it still is as it was seen.
    Activate(&'a Expected),
    /// It is made.
    Create,
    /// It is left alone: the host is not wanted.
    Leave(InstanceStatus),
}

/// `create` is whether a missing row is made.
///
/// # Errors
/// As [`register`](host_core::pubsub::PubSub::register).
pub fn decide<'a>(row: Option<&'a Expected>, facts: &InstanceFacts, create: bool) -> Result<Step<'a>> {
    let Some(row) = row else {
        return if create { Ok(Step::Create) } else { Err(no_row(facts)) };
    };
    match InstanceStatus::parse(&row.status).ok_or_else(|| unknown_status(&row.status))? {
        status @ (InstanceStatus::Draining | InstanceStatus::Unresponsive) => Ok(Step::Leave(status)),
        InstanceStatus::PreConnection => matches(row, facts).map(|()| Step::Activate(row)),
        InstanceStatus::Active => same_machine(row, facts).map(|()| Step::Activate(row)),
    }
}

fn no_row(facts: &InstanceFacts) -> PluginError {
    let message = format!(
        "there is no row for instance {}: whoever starts a host inserts its row into cloud.instance_info first",
        facts.name
    );
    PluginError::new(ErrorKind::NotFound, message)
}

/// What the control plane wrote when it asked for the machine must be what has come up.
fn matches(row: &Expected, facts: &InstanceFacts) -> Result<()> {
    let compared = [
        ("image id", &row.image_id, &facts.image_id),
        ("region", &row.region, &facts.region),
        ("instance type", &row.instance_type, &facts.instance_type),
    ];
    let differs =
        |what: &str, want: &str, have: &str| format!("{what} is {have:?}, the row says {:?}", short(want));
    let mut wrong: Vec<_> = compared
        .iter()
        .filter(|(_, want, have)| want != have)
        .map(|(what, want, have)| differs(what, want, have))
        .collect();
    if !is_same_commit(&row.commit, &facts.commit) {
        wrong.push(differs("commit", &row.commit, &facts.commit));
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

/// A host whose answer was lost, or that was restarted, registers again; two machines cannot share a name.
fn same_machine(row: &Expected, facts: &InstanceFacts) -> Result<()> {
    if row.cloud_id == facts.cloud_id {
        return Ok(());
    }
    let message = format!(
        "instance {} is active already on machine {:?}; this is machine {:?}",
        facts.name,
        short(&row.cloud_id),
        facts.cloud_id
    );
    Err(PluginError::new(ErrorKind::Conflict, message))
}

/// Which machine registers under a name from here. A registration whose answer is lost may have come second to another
/// machine's; so what ends a host's row ends only one that is this machine's. A tool, which registers nothing, ends any.
#[derive(Debug, Default)]
pub struct Machines(Mutex<BTreeMap<InstanceName, String>>);

impl Machines {
    /// No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceName, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is about to register.
    pub fn registers(&self, facts: &InstanceFacts) {
        self.lock().insert(facts.name.clone(), facts.cloud_id.clone());
    }

    /// The id of the machine that the row must be of, where one is known.
    pub fn of(&self, instance: &InstanceName) -> Option<String> {
        self.lock().get(instance).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> InstanceFacts {
        InstanceFacts {
            name: "h".parse().unwrap(),
            cloud_id: "i-1".into(),
            image_id: "ami-1".into(),
            region: "us-east-1".into(),
            instance_type: "g4dn.xlarge".into(),
            ip: "192.0.2.1".into(),
            commit: "abcdef".into(),
        }
    }

    fn row(status: &str) -> Expected {
        Expected {
            status: status.into(),
            cloud_id: "i-1".into(),
            image_id: "ami-1".into(),
            region: "us-east-1".into(),
            instance_type: "g4dn.xlarge".into(),
            commit: "abc".into(),
        }
    }

    #[test]
    fn the_row_decides() {
        let other = Expected { cloud_id: "i-2".into(), ..row("ACTIVE") };
        let wrong = Expected { commit: "abx".into(), ..row("PRE_CONNECTION") };
        let (waiting, active) = (row("PRE_CONNECTION"), row("ACTIVE"));
        for (row, create, expected) in [
            (Some(&waiting), false, Ok(Step::Activate(&waiting))),
            (Some(&active), false, Ok(Step::Activate(&active))),
            (Some(&row("DRAINING")), false, Ok(Step::Leave(InstanceStatus::Draining))),
            (Some(&row("RETIRED")), false, Err(ErrorKind::Invalid)),
            (None, true, Ok(Step::Create)),
            (None, false, Err(ErrorKind::NotFound)),
            (Some(&other), false, Err(ErrorKind::Conflict)),
            (Some(&wrong), false, Err(ErrorKind::Invalid)),
        ] {
            assert_eq!(decide(row, &facts(), create).map_err(|error| error.kind()), expected, "{row:?}");
        }
    }

    #[test]
    fn the_last_machine_that_registered_under_a_name_is_this_one() {
        let (machines, name) = (Machines::default(), facts().name);
        assert_eq!(machines.of(&name), None);
        machines.registers(&facts());
        machines.registers(&InstanceFacts { cloud_id: "i-2".into(), ..facts() });
        assert_eq!(machines.of(&name).as_deref(), Some("i-2"));
        assert_eq!(machines.of(&"other".parse().unwrap()), None);
    }
}
