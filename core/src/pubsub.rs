//! Where desired state comes from and where this host reports: a database, or memory.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{
    error::PluginError,
    id::{AppName, InstanceName, MandelboxId, SessionId, UserId},
};

/// What an operation returns.
pub type Result<T> = std::result::Result<T, PluginError>;

macro_rules! status {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every value, in the order of a life.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As the database writes it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// From the database's text; `None` for a status this version does not know.
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|status| status.as_str() == text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

status! {
    /// A host's status.
    InstanceStatus {
        /// The machine was asked for; its host service has not reported yet.
        PreConnection = "PRE_CONNECTION",
        /// It takes mandelboxes.
        Active = "ACTIVE",
        /// It takes no new ones and ends when the last has ended.
        Draining = "DRAINING",
        /// The control plane has given it up.
        Unresponsive = "HOST_SERVICE_UNRESPONSIVE",
    }
}

status! {
    /// A mandelbox's status. It only ever moves forward.
    MandelboxStatus {
        /// Given to a host, which has not reacted yet.
        Allocated = "ALLOCATED",
        /// Claimed: the host spins it up and waits for its client.
        Connecting = "CONNECTING",
        /// Its client has its answer.
        Running = "RUNNING",
        /// It is being ended; the row goes when it is gone.
        Dying = "DYING",
    }
}

/// One mandelbox as the control plane wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MandelboxRow {
    /// Which.
    pub id: MandelboxId,
    /// Whose.
    pub user: UserId,
    /// The client's session.
    pub session: SessionId,
    /// What runs in it, where the control plane says so.
    pub app: Option<AppName>,
    /// Where it is in its life.
    pub status: MandelboxStatus,
    /// Unix time in ms.
    pub created_ms: i64,
}

impl MandelboxRow {
    /// Both are the same allocation, at whatever status.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.id, &self.session, self.created_ms) == (&other.id, &other.session, other.created_ms)
    }
}

/// Everything the control plane wants of one host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DesiredState {
    /// `None` when the host has no row.
    pub instance: Option<InstanceStatus>,
    /// Every row of this host, whatever its status.
    pub mandelboxes: Vec<MandelboxRow>,
}

/// What a host says of itself when it registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFacts {
    /// The key.
    pub name: InstanceName,
    /// The cloud's id of the machine.
    pub cloud_id: String,
    /// The machine image.
    pub image_id: String,
    /// The region.
    pub region: String,
    /// The machine type.
    pub instance_type: String,
    /// Where clients reach it.
    pub ip: String,
    /// The commit this binary was built from.
    pub commit: String,
}

/// What a host has left, reported about every minute and when its capacity changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Unix time in ms.
    pub at_ms: i64,
    /// Available memory.
    pub memory_remaining_kb: i64,
    /// Idle CPU in 10⁻⁹ CPUs.
    pub nanocpus_remaining: i64,
    /// Free GPU memory, all devices together.
    pub gpu_vram_remaining_kb: i64,
    /// How many mandelboxes it can have as it is now, those that it has included.
    pub capacity: u32,
}

/// The answer to [`PubSub::register`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Registered {
    /// This host is `ACTIVE` now.
    Active,
    /// The control plane does not want it (any more): shut down quietly.
    Unwanted(InstanceStatus),
}

/// The answer to [`PubSub::claim`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// This caller, and no other, moved the row from `ALLOCATED` to `CONNECTING`.
    Won(MandelboxRow),
    /// The row is gone, is another host's or another allocation, or was not `ALLOCATED`.
    Lost,
}

/// A mandelbox to be allocated to a host by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Which; must be new.
    pub id: MandelboxId,
    /// Whose.
    pub user: UserId,
    /// The client's session.
    pub session: SessionId,
    /// What runs in it.
    pub app: Option<AppName>,
}

/// How long a row may stay before a host has to show progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaleAfter {
    /// In `ALLOCATED`.
    pub allocated: Duration,
    /// In `CONNECTING`.
    pub connecting: Duration,
}

/// The control plane's data, as one host needs it.
///
/// Every operation is idempotent and may be cancelled by dropping its future; the caller owns deadlines.
#[async_trait]
pub trait PubSub: Send + Sync + fmt::Debug + 'static {
    /// The *full* desired state of `instance`: at once, and again after every change. Level-triggered: several
    /// changes may come as one item. The stream ends, with an error as its last item where one is known, when
    /// the connection is lost; the caller watches again and gets the full state first.
    async fn watch(&self, instance: &InstanceName) -> Result<BoxStream<'static, Result<DesiredState>>>;

    /// Makes this host `ACTIVE`. Registering again from the same machine (`cloud_id`) succeeds.
    ///
    /// # Errors
    /// `Invalid` when the row does not match these facts (the error names each), `NotFound` when there must be a
    /// row and is none, `Conflict` when another machine is active under this name.
    async fn register(&self, facts: &InstanceFacts, heartbeat: &Heartbeat) -> Result<Registered>;

    /// Moves a row of this instance from `ALLOCATED` to `CONNECTING`, atomically: of any number of callers exactly one
    /// wins. It must still be the same allocation of the same user: an id may have been given away anew meanwhile.
    async fn claim(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<Claim>;

    /// Moves a row of this instance forward to `status`. A row that is further already, or gone, stays as it is.
    async fn set_status(
        &self,
        instance: &InstanceName,
        mandelbox: &MandelboxId,
        status: MandelboxStatus,
    ) -> Result<()>;

    /// Reports resources. A row that is gone stays gone.
    async fn heartbeat(&self, instance: &InstanceName, heartbeat: &Heartbeat) -> Result<()>;

    /// Sets this host's status to `DRAINING`. A host that was given up (`HOST_SERVICE_UNRESPONSIVE`) stays so, and a
    /// row that is gone stays gone.
    async fn mark_draining(&self, instance: &InstanceName) -> Result<()>;

    /// Deletes a mandelbox's row of this instance.
    async fn remove(&self, instance: &InstanceName, mandelbox: &MandelboxId) -> Result<()>;

    /// Deletes this host's row, and with it all its mandelboxes' rows.
    async fn unregister(&self, instance: &InstanceName) -> Result<()>;

    /// Deletes rows of this instance that were created too long ago for their `ALLOCATED` or `CONNECTING`, except
    /// those of `working_on`. Returns which.
    async fn remove_stale(
        &self,
        instance: &InstanceName,
        after: StaleAfter,
        working_on: &[MandelboxId],
    ) -> Result<Vec<MandelboxId>>;

    /// Inserts an `ALLOCATED` row, as the control plane would; for local development.
    ///
    /// # Errors
    /// `Conflict` when the id exists, `NotFound` when the instance does not.
    async fn allocate(&self, instance: &InstanceName, allocation: &Allocation) -> Result<()>;

    /// How many writes of mandelboxes' statuses this has accepted and not delivered yet, because the control plane is
    /// away. They are delivered in order once it is back, also by a later run of the service.
    fn undelivered(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_databases_words_in_the_order_of_a_life() {
        assert_eq!(MandelboxStatus::parse("CONNECTING"), Some(MandelboxStatus::Connecting));
        assert_eq!(InstanceStatus::parse("HOST_SERVICE_UNRESPONSIVE"), Some(InstanceStatus::Unresponsive));
        assert_eq!(MandelboxStatus::parse("allocated"), None);
        assert!(MandelboxStatus::ALL.is_sorted());
    }
}
