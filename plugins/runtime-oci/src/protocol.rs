//! What the runtime and a container's supervisor say to each other: JSON, one message a line, over the socket in the
//! container's directory.
//!
//! The runtime asks one thing at a time. The supervisor answers each with [`Said::Done`] or [`Said::Refused`], and tells
//! of every change of its own accord; whoever connects is first told how things are.

use std::path::PathBuf;

use host_core::{ErrorKind, runtime::Exit};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

/// The supervisor's first argument, which tells this program what it is.
pub(crate) const ARGUMENT: &str = "oci-supervisor";
/// Longer than any message; a launch carries a whole specification.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// What the runtime asks for.
#[derive(Serialize, Deserialize)]
pub(crate) enum Asked {
    /// Makes the container, without starting it. Once, and first.
    Launch(Box<Launch>),
    /// Starts the container's process.
    Start,
    /// Sends a signal to the container's process; `SIGKILL` to one that was not started.
    Signal(i32),
}

/// All that a supervisor needs to know. It holds secrets: the environment is in the specification.
#[derive(Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) id: String,
    /// Everything but the user, whose name only the image's files can tell.
    pub(crate) spec: Spec,
    /// As the image says it.
    pub(crate) user: String,
    /// The image store.
    pub(crate) images: PathBuf,
    /// Relative to the store, topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// What the container has on disk.
    pub(crate) disk: PathBuf,
    /// Where the container's control group is, in every hierarchy.
    pub(crate) cgroup: PathBuf,
    /// An OCI runtime that is to be used.
    pub(crate) binary: Option<PathBuf>,
    /// Mounts made inside must be seen on the host.
    pub(crate) shared_mounts: bool,
    pub(crate) log_bytes: u64,
}

/// What the supervisor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Said {
    /// How things are.
    Now(Status),
    /// What was asked is done.
    Done,
    /// What was asked cannot be.
    Refused { kind: Reason, message: String },
}

/// How things are with a container; kept on disk too, for those who come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) phase: Phase,
    /// How many processes inside the kernel has killed for memory.
    pub(crate) oom_kills: u64,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Phase {
    #[default]
    Launching,
    Created {
        pid: u32,
    },
    Running {
        pid: u32,
    },
    Exited(Exit),
}

/// An [`ErrorKind`] that can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reason {
    Conflict,
    Exhausted,
    Internal,
    Invalid,
}

impl From<Reason> for ErrorKind {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Conflict => Self::Conflict,
            Reason::Exhausted => Self::Exhausted,
            Reason::Internal => Self::Internal,
            Reason::Invalid => Self::Invalid,
        }
    }
}
