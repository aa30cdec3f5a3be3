//! Why a client does not get its mandelbox.

use host_core::lifecycle::Stage;

/// Why a request has no answer. `Display` is for the client and holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing was allocated in time.
    #[error("no mandelbox of this id was allocated to this host in time")]
    NotAllocated,
    /// The mandelbox is another user's.
    #[error("this mandelbox belongs to another user")]
    Forbidden,
    /// Another request has delivered the startup data.
    #[error("the startup data of this mandelbox was already delivered by another request")]
    AlreadyDelivered,
    /// No room for one more request.
    #[error("too many requests are waiting; try again in a moment")]
    TooMany,
    /// The spin-up failed and was undone.
    #[error("the mandelbox could not be spun up: {stage}: {message}")]
    SpinUpFailed {
        /// Where.
        stage: Stage,
        /// How, for people; no secret.
        message: String,
    },
    /// The host takes no new mandelboxes.
    #[error("this host is draining and takes no new mandelboxes")]
    Draining,
    /// Something this host needs does not work at the moment; the text says what and holds no secret.
    #[error("this host cannot spin up mandelboxes at the moment: {0}")]
    Unavailable(String),
}

impl Failure {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotAllocated => 408,
            Self::Forbidden => 403,
            Self::AlreadyDelivered => 409,
            Self::TooMany => 429,
            Self::SpinUpFailed { .. } => 500,
            Self::Draining | Self::Unavailable(_) => 503,
        }
    }

    /// A stable name, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAllocated => "not_allocated",
            Self::Forbidden => "forbidden",
            Self::AlreadyDelivered => "already_delivered",
            Self::TooMany => "too_many",
            Self::SpinUpFailed { .. } => "spin_up_failed",
            Self::Draining => "draining",
            Self::Unavailable(_) => "unavailable",
        }
    }
}
