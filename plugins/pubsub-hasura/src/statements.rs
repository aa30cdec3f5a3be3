//! What a host does to its rows: one mutation each, atomic in the database by its conditions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use control_plane::{Delivery, Entry, Raw, Read, Ripe, Write, short};
use cynic::{MutationBuilder, QueryBuilder};
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{Allocation, Claim, Heartbeat, MandelboxRow, MandelboxStatus, Result, StaleAfter},
};

use crate::{operations as ops, operations::Bigint, server::Server};

/// Whether the server is there, believes this host and has everything that a host needs.
pub(crate) async fn check(server: &Server) -> Result<()> {
    server.try_first("looking at Hasura's schema", ops::Check::build(())).await.map(drop)
}

/// Everything about a host, at one time.
pub(crate) async fn read(server: &Server, instance: &InstanceName) -> Result<Read> {
    let query = ops::ReadHost::build(ops::Host { instance: instance.as_str() });
    let found = server.run("reading from Hasura", query).await?;
    Ok(Read {
        instance: status(found.cloud_instance_info),
        mandelboxes: found.cloud_mandelbox_info.into_iter().map(Raw::from).collect(),
    })
}

/// The host's status; its name is the key, so there is at most one.
pub(crate) fn status(rows: Vec<ops::InstanceStatus>) -> Option<String> {
    rows.into_iter().next().map(|row| row.status)
}

impl From<ops::Mandelbox> for Raw {
    fn from(row: ops::Mandelbox) -> Self {
        Self {
            id: row.mandelbox_id,
            user: row.user_id,
            session: row.session_id,
            app: row.app,
            status: row.status,
            created_ms: row.creation_time_utc_unix_ms.0,
        }
    }
}

pub(crate) async fn claim(server: &Server, instance: &InstanceName, row: &MandelboxRow) -> Result<Claim> {
    const DOING: &str = "claiming a mandelbox";
    let mutation = ops::ClaimMandelbox::build(ops::Allocated {
        instance: instance.as_str(),
        id: row.id.as_str(),
        user: row.user.as_str(),
        session: row.session.as_str(),
        created: Bigint(row.created_ms),
    });
    let answer = server.run(DOING, mutation).await?.update_cloud_mandelbox_info;
    let Some(claimed) = answer.filter(|claimed| claimed.affected_rows == 1) else { return Ok(Claim::Lost) };
    match claimed.returning.into_iter().next().map(|row| Raw::from(row).understand()) {
        Some(Ok(row)) => Ok(Claim::Won(row)),
        Some(Err(why)) => Err(PluginError::new(ErrorKind::Invalid, format!("{DOING}: {why}"))),
        // Where the role may write but not read, the row is as it was seen.
        None => Ok(Claim::Won(MandelboxRow { status: MandelboxStatus::Connecting, ..row.clone() })),
    }
}

#[async_trait]
impl Delivery for Server {
    async fn deliver(&self, entry: &Entry) -> Result<()> {
        let (instance, id) = (entry.instance.as_str(), entry.mandelbox.as_str());
        // Whatever its creation time, where none is known: null is no value that Hasura compares with.
        let from = Bigint(entry.created_ms.unwrap_or(i64::MIN));
        let to = Bigint(entry.created_ms.unwrap_or(i64::MAX));
        match entry.write {
            Write::Status(status) => {
                let earlier = MandelboxStatus::ALL.iter().filter(|earlier| **earlier < status);
                let before = Some(earlier.map(|status| status.as_str()).collect());
                let moved = ops::Moved { instance, id, status: status.as_str(), before, from, to };
                let mutation = ops::MoveMandelbox::build(moved);
                self.run("writing a mandelbox's status", mutation).await.map(drop)
            }
            Write::Remove => {
                let one = ops::One { instance, id, from, to };
                let mutation = ops::RemoveMandelbox::build(one);
                self.run("removing a mandelbox's row", mutation).await.map(drop)
            }
        }
    }

    async fn heartbeat(&self, instance: &InstanceName, beat: &Heartbeat) -> Result<()> {
        let beat = ops::Beat {
            instance: instance.as_str(),
            at: Bigint(beat.at_ms),
            memory: Bigint(beat.memory_remaining_kb),
            cpu: Bigint(beat.nanocpus_remaining),
            vram: Bigint(beat.gpu_vram_remaining_kb),
            capacity: Bigint(beat.capacity.into()),
        };
        self.run("writing a heartbeat", ops::BeatInstance::build(beat)).await.map(drop)
    }
}

/// `machine` is which the row must be of, where that is known; also below.
pub(crate) async fn mark_draining(
    server: &Server,
    instance: &InstanceName,
    machine: Option<&str>,
) -> Result<()> {
    let mutation = ops::DrainInstance::build(ended(instance, machine));
    server.run("marking this host as draining", mutation).await.map(drop)
}

fn ended<'a>(instance: &'a InstanceName, machine: Option<&'a str>) -> ops::Ended<'a> {
    ops::Ended { instance: instance.as_str(), machine: ops::Is { _eq: machine } }
}

pub(crate) async fn unregister(
    server: &Server,
    instance: &InstanceName,
    machine: Option<&str>,
) -> Result<()> {
    let mutation = ops::RemoveInstance::build(ended(instance, machine));
    server.run("removing the instance's row", mutation).await.map(drop)
}

/// `ripe` is which rows this host has seen for long enough. Without it, while nobody watches, creation times have to
/// do, by this host's clock: Hasura compares with no other.
pub(crate) async fn remove_stale(
    server: &Server,
    instance: &InstanceName,
    after: StaleAfter,
    working_on: &[MandelboxId],
    ripe: Option<Ripe>,
) -> Result<Vec<MandelboxId>> {
    const DOING: &str = "removing stale rows";
    let instance = instance.as_str();
    let kept = Some(working_on.iter().map(MandelboxId::as_str).collect());
    let removed = match ripe {
        Some(ripe) if ripe == Ripe::default() => return Ok(Vec::new()),
        Some(Ripe { allocated, connecting }) => {
            let (allocated, connecting) = (Some(allocated), Some(connecting));
            let rows = ops::RipeRows { instance, kept, allocated, connecting };
            server.run(DOING, ops::RemoveRipe::build(rows)).await?.delete_cloud_mandelbox_info
        }
        None => {
            let (allocated, connecting) = (Bigint(ago(after.allocated)), Bigint(ago(after.connecting)));
            let rows = ops::Stale { instance, kept, allocated, connecting };
            server.run(DOING, ops::RemoveOld::build(rows)).await?.delete_cloud_mandelbox_info
        }
    };
    let mut ids = Vec::new();
    for row in removed.map(|removed| removed.returning).unwrap_or_default() {
        match row.mandelbox_id.parse() {
            Ok(id) => ids.push(id),
            Err(_) => {
                let id = short(&row.mandelbox_id);
                tracing::warn!(id, "a row that could never be used was removed as stale");
            }
        }
    }
    Ok(ids)
}

pub(crate) async fn allocate(server: &Server, instance: &InstanceName, new: &Allocation) -> Result<()> {
    let mutation = ops::AllocateMandelbox::build(ops::New {
        instance: instance.as_str(),
        id: new.id.as_str(),
        user: new.user.as_str(),
        session: new.session.as_str(),
        app: new.app.as_ref().map(|app| app.as_str()),
        created: Bigint(ago(Duration::ZERO)),
    });
    let answer = server.run("allocating a mandelbox", mutation).await;
    let inserted = answer.map_err(|error| match error.kind() {
        // An id that exists is no error here, so it is the other constraint.
        ErrorKind::Conflict => PluginError::new(
            ErrorKind::NotFound,
            format!("there is no instance {instance}: nothing has registered under this name"),
        ),
        _ => error,
    })?;
    match inserted.insert_cloud_mandelbox_info {
        Some(inserted) if inserted.affected_rows == 1 => Ok(()),
        _ => Err(PluginError::new(ErrorKind::Conflict, format!("mandelbox {} exists already", new.id))),
    }
}

/// Unix time in ms, so long ago, by this host's clock.
fn ago(duration: Duration) -> i64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.saturating_sub(duration).as_millis()).unwrap_or(i64::MAX)
}
