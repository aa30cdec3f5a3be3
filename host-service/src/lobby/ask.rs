//! A client's request while it is in the lobby.

use host_core::UserId;
use subtle::ConstantTimeEq;
use tokio::{sync::watch, time::Instant};

use super::{ClientRequest, Failure, Outcome, StartupData};

/// SHA-256 of a request and its credentials.
pub(super) type Digest = [u8; 32];

/// How far a request has come.
#[derive(Debug)]
pub(super) enum Progress {
    /// There is no mandelbox yet.
    Expected,
    /// Its data is delivered and the mandelbox works on it.
    Seated,
    /// Done.
    Answered(Outcome),
}

/// One distinct request, and through `progress` everybody who sent it.
pub(super) struct Ask {
    pub subject: Option<UserId>,
    pub digest: Digest,
    pub data: StartupData,
    pub deadline: Instant,
    pub progress: watch::Sender<Progress>,
}

impl Ask {
    /// For a request that waits until `deadline`.
    pub(super) fn new(request: ClientRequest, deadline: Instant) -> (Self, watch::Receiver<Progress>) {
        let ClientRequest { subject, digest, data, .. } = request;
        let (progress, receiver) = watch::channel(Progress::Expected);
        (Self { subject, digest, data, deadline, progress }, receiver)
    }

    pub(super) fn fail(self, failure: Failure) {
        self.progress.send_replace(Progress::Answered(Err(failure)));
    }

    /// Whether any client that sent it is still there.
    pub(super) fn is_awaited(&self) -> bool {
        self.progress.receiver_count() > 0
    }
}

/// Whether `subject` may have the mandelbox of `user`; nobody is checked where tokens are not.
pub(super) fn may(subject: Option<&UserId>, user: &UserId) -> bool {
    subject.is_none_or(|subject| subject == user)
}

/// Requests that may share one outcome: a client that asks again, not one that asks without end.
const SHARERS: usize = 32;

/// A place among those who wait for the same.
pub(super) fn share(progress: &watch::Sender<Progress>) -> Result<watch::Receiver<Progress>, Failure> {
    if progress.receiver_count() < SHARERS { Ok(progress.subscribe()) } else { Err(Failure::TooMany) }
}

/// In constant time: a digest stands for credentials.
pub(super) fn same(a: &Digest, b: &Digest) -> bool {
    a.ct_eq(b).into()
}
