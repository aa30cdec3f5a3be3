//! The life of one mandelbox, as one state machine with one owner.
//!
//! ```text
//!              Won            Launched           Delivered             Ready
//!  Claiming ───────▶ Launching ───────▶ AwaitingClient ─────▶ AwaitingApplication ─────▶ Running
//!     │                  │                   │                        │                     │
//!     └──────────────────┴────────┬──────────┴────────────────────────┴─────────────────────┘
//!                                 │ End(reason): lost claim, failure, exit, order, vanished row, panic
//!                                 ▼
//!                               Ending ───────▶ Gone
//!                                      Removed: nothing of it is left, its container is observed to be gone
//! ```
//!
//! Leases and files belong to the mandelbox until `Gone`: they are never given back while a container may use them.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::runtime::Exit;

/// Where a mandelbox is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its row is being claimed.
    Claiming,
    /// Leases, files, container: everything up to a started container.
    Launching,
    /// The container runs; the client's startup data has not come yet.
    AwaitingClient,
    /// The application has its data and is not ready yet.
    AwaitingApplication,
    /// The client has its answer.
    Running,
    /// Whatever is left is being taken down.
    Ending(EndReason),
    /// Nothing is left.
    Gone(EndReason),
}

impl Phase {
    /// A stable name, for labels and records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Claiming => "claiming",
            Self::Launching => "launching",
            Self::AwaitingClient => "awaiting_client",
            Self::AwaitingApplication => "awaiting_application",
            Self::Running => "running",
            Self::Ending(_) => "ending",
            Self::Gone(_) => "gone",
        }
    }

    /// Every name, in the order of a life.
    pub const NAMES: [&str; 7] =
        ["claiming", "launching", "awaiting_client", "awaiting_application", "running", "ending", "gone"];

    /// Whether it is on its way out.
    pub fn is_ending(&self) -> bool {
        matches!(self, Self::Ending(_) | Self::Gone(_))
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// `event` has no place in this state, which is a fault of the caller.
    pub fn after(self, event: Event) -> Result<Self, OutOfPlace> {
        match (self, event) {
            (Self::Claiming, Event::Won) => Ok(Self::Launching),
            (Self::Launching, Event::Launched) => Ok(Self::AwaitingClient),
            (Self::AwaitingClient, Event::Delivered) => Ok(Self::AwaitingApplication),
            (Self::AwaitingApplication, Event::Ready) => Ok(Self::Running),
            // The first reason is the true one; what comes later is its consequence.
            (Self::Ending(reason), Event::End(_)) => Ok(Self::Ending(reason)),
            (Self::Ending(reason), Event::Removed) => Ok(Self::Gone(reason)),
            (phase, Event::End(reason)) if !phase.is_ending() => Ok(Self::Ending(reason)),
            (phase, event) => Err(OutOfPlace { phase: phase.name(), event }),
        }
    }
}

/// What moves a mandelbox on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The claim was won.
    Won,
    /// Its container runs.
    Launched,
    /// Its startup data came and was handed over.
    Delivered,
    /// The application said that it can take its client.
    Ready,
    /// It is to end, or has ended by itself.
    End(EndReason),
    /// Nothing of it is left.
    Removed,
}

/// An event that its state does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {event:?} has no place in phase {phase}")]
pub struct OutOfPlace {
    phase: &'static str,
    event: Event,
}

/// Why a mandelbox ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum EndReason {
    /// Another caller won its row, or the row went.
    ClaimLost,
    /// A step of its spin-up failed.
    SpinUpFailed {
        /// Which.
        stage: Stage,
        /// How, for people.
        error: String,
    },
    /// Its first process ended.
    Exited(Exit),
    /// Its container was removed by somebody else, or lost with its engine.
    ContainerLost,
    /// Its row was deleted.
    RowDeleted,
    /// Its row was set to `DYING`.
    RowDying,
    /// An operator stopped it.
    Stopped,
    /// The host drains and its time is over.
    Drained,
    /// The task that owned it panicked.
    Panicked,
}

impl EndReason {
    /// A stable name, for labels and records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClaimLost => "claim_lost",
            Self::SpinUpFailed { .. } => "spin_up_failed",
            Self::Exited(_) => "exited",
            Self::ContainerLost => "container_lost",
            Self::RowDeleted => "row_deleted",
            Self::RowDying => "row_dying",
            Self::Stopped => "stopped",
            Self::Drained => "drained",
            Self::Panicked => "panicked",
        }
    }

    /// Whether its processes may still run and deserve a grace period before they are killed.
    pub fn deserves_grace(&self) -> bool {
        matches!(self, Self::RowDeleted | Self::RowDying | Self::Stopped | Self::Drained)
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClaimLost => write!(f, "the row was claimed by another caller or deleted"),
            Self::SpinUpFailed { stage, error } => write!(f, "{stage} failed: {error}"),
            Self::Exited(Exit { oom: true, .. }) => write!(f, "the container ran out of memory"),
            Self::Exited(Exit { code: Some(code), .. }) => {
                write!(f, "the container exited with status {code}")
            }
            Self::Exited(_) => write!(f, "the container exited"),
            Self::ContainerLost => write!(f, "the container is gone"),
            Self::RowDeleted => write!(f, "its row was deleted"),
            Self::RowDying => write!(f, "its row was set to DYING"),
            Self::Stopped => write!(f, "it was stopped by an operator"),
            Self::Drained => write!(f, "the host was drained"),
            Self::Panicked => write!(f, "its task panicked"),
        }
    }
}

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A step of the spin-up, for timings and failures.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Stage {
            $($(#[$doc])* $name,)*
        }

        impl Stage {
            /// Every stage.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// A stable name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

stages! {
    /// The row.
    Claim = "claim",
    /// Ports, TTY, GPU.
    Lease = "lease",
    /// The image: present, or pulled.
    Image = "image",
    /// Directories and files.
    Prepare = "prepare",
    /// The container.
    Create = "create",
    /// Its first process.
    Start = "start",
    /// Waiting for the client's request.
    Client = "client",
    /// Handing the startup data over.
    Deliver = "deliver",
    /// Waiting for the application.
    Application = "application",
    /// Telling the control plane.
    Report = "report",
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long a stage took.
pub type Timing = (Stage, Duration);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events() -> impl Strategy<Value = Event> {
        prop::sample::select(vec![
            Event::Won,
            Event::Launched,
            Event::Delivered,
            Event::Ready,
            Event::End(EndReason::Stopped),
            Event::End(EndReason::RowDeleted),
            Event::Removed,
        ])
    }

    #[test]
    fn a_life_runs_through() {
        let life = [Event::Won, Event::Launched, Event::Delivered, Event::Ready];
        let phase = life.into_iter().fold(Phase::Claiming, |phase, event| phase.after(event).unwrap());
        assert_eq!(phase, Phase::Running);
        let ended = phase.after(Event::End(EndReason::Stopped)).unwrap().after(Event::Removed).unwrap();
        assert_eq!(ended, Phase::Gone(EndReason::Stopped));
    }

    proptest! {
        /// Whatever comes in whatever order: what ends never comes back, the first reason stays, and a
        /// mandelbox that had anything is gone only after its container is.
        #[test]
        fn no_order_of_events_breaks_the_invariants(events in prop::collection::vec(events(), 0..30)) {
            let mut phase = Phase::Claiming;
            for event in events {
                let before = phase.clone();
                let Ok(after) = phase.after(event.clone()) else { phase = before; continue };
                if before.is_ending() {
                    prop_assert!(after.is_ending());
                }
                if let Phase::Gone(reason) = &after {
                    let by_removal = event == Event::Removed && before == Phase::Ending(reason.clone());
                    prop_assert!(by_removal);
                }
                phase = after;
            }
        }
    }
}
