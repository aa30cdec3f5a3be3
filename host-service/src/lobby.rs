//! Where clients' requests meet mandelboxes, whichever comes first.
//!
//! ```text
//!   client's handler                      Lobby                             owner task of a mandelbox
//!  ──────────────────    ───────────────────────────────────────────    ───────────────────────────────
//!   join(request) ─────▶  Expected: requests for an id without a
//!        │                mandelbox, each until its deadline ──▶ 408
//!        │                    │
//!        │                    ▼ ◀──────────────────────────────────────── open(id, user) ─▶ Seat
//!        │                Vacant: the mandelbox waits for its user
//!        │                    │ first request of that user; others: 403
//!        │                    ▼
//!        │                Taken: further requests 409, identical ones ───▶ startup_data()
//!        │                share what comes
//!        │                    │
//!        ▼                    ▼ ◀──────────────────────────────────────── answer(outcome)
//!   Pending ◀──────────── Answered, Failed: identical requests get the
//!                         same for `answer_again`
//!                             │
//!                             ▼ ◀──────────────────────────────────────── drop(Seat)
//!                         Ended: late requests get the failure, or 409,
//!                         for `answer_again`; then nothing is left
//! ```
//!
//! Who owns what: the register of all meetings is behind one mutex, held for a few lookups and never across an
//! await. A [`Seat`] belongs to the mandelbox's owner task and lives as long as the mandelbox; its drop ends the
//! meeting whatever happened before, so nobody waits for a task that is gone. A [`Pending`] belongs to the
//! client's handler and owns nothing: dropping it cancels nothing. There are no tasks here, and no timers but the
//! one in a `Pending`; what has expired is swept when the register is next used.
//!
//! Invariants: startup data is delivered at most once per seat, and only from the user whose mandelbox it is; an
//! answer only ever reaches requests identical to the one whose data was delivered; every `Pending` ends.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use host_core::{AppName, MandelboxId, UserId, runtime::ContainerPort, secret::AesKey};
use secrecy::SecretString;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};

use ask::Progress;
use register::Register;

mod ask;
mod failure;
mod register;
mod seated;
#[cfg(test)]
mod tests;

pub use failure::Failure;

/// How much may wait, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LobbyLimits {
    /// Distinct requests that wait for their mandelbox to be allocated, all together.
    pub max_waiting: usize,
    /// How long each of them waits.
    pub wait: Duration,
    /// How long after an answer the identical request gets it again, and how long an end is remembered.
    pub answer_again: Duration,
}

/// A client's request for its mandelbox, its token already verified.
#[derive(Debug)]
pub struct ClientRequest {
    /// Which mandelbox.
    pub id: MandelboxId,
    /// Who asks; `None` where tokens are not checked, which matches every user.
    pub subject: Option<UserId>,
    /// SHA-256 of everything that makes two requests identical, the credentials included.
    pub digest: [u8; 32],
    /// What the mandelbox is to be given.
    pub data: StartupData,
}

/// What a client gives its mandelbox. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct StartupData {
    /// The text of `config.json`: one valid JSON object.
    pub json: SecretString,
    /// What encrypts the user's configuration.
    pub config_encryption_token: Option<SecretString>,
    /// That token was made just now: there is no configuration under it yet.
    pub is_new_config_encryption_token: bool,
    /// The browser's cookies, as the client wrote them.
    pub cookies: Option<SecretString>,
    /// The browser's bookmarks, as the client wrote them.
    pub bookmarks: Option<SecretString>,
    /// The application asked for, where the request may choose.
    pub app: Option<AppName>,
}

/// What a client gets for its mandelbox.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The host port of each of the mandelbox's ports.
    pub ports: Vec<(ContainerPort, u16)>,
    /// What encrypts the connection to it.
    pub aes_key: AesKey,
}

/// How a spin-up ended, shared by all who asked the same.
pub type Outcome = Result<Arc<Answer>, Failure>;

/// The meeting place; see the module's description.
pub struct Lobby(Mutex<Register>);

impl Lobby {
    /// Empty and open.
    pub fn new(limits: LobbyLimits) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Register::new(limits))))
    }

    /// Brings a request. What it holds is taken even when the [`Pending`] is dropped at once.
    ///
    /// # Errors
    /// What is known at once: another user's mandelbox, startup data already delivered, too many requests, a
    /// spin-up that failed just now, a lobby that is closed.
    pub fn join(self: &Arc<Self>, request: ClientRequest) -> Result<Pending, Failure> {
        let now = Instant::now();
        let (progress, deadline) = {
            let mut register = self.register();
            (register.join(request, now)?, register.deadline(now))
        };
        let awaits_allocation = matches!(*progress.borrow(), Progress::Expected);
        let outcome = Box::pin(wait(self.clone(), progress, deadline));
        Ok(Pending { awaits_allocation, outcome })
    }

    /// A seat for the mandelbox of `user`, whose owner has won the claim. What was remembered of an earlier
    /// mandelbox of this id is forgotten.
    pub fn open(self: &Arc<Self>, id: &MandelboxId, user: &UserId) -> Seat {
        let wake = Arc::new(Notify::new());
        let number = self.register().open(id, user, wake.clone(), Instant::now());
        Seat { lobby: self.clone(), id: id.clone(), number, wake }
    }

    /// There will be no mandelbox of this id: whoever waits for it gets `failure`, and so does whoever asks for it
    /// soon after. Where there is one after all, its owner answers.
    pub fn refuse(&self, id: &MandelboxId, failure: Failure) {
        self.register().refuse(id, failure, Instant::now());
    }

    /// Forgets how an earlier mandelbox of this id ended, if it is gone: the next request waits for a new one. For
    /// requests that allocate their mandelbox themselves.
    pub fn forget(&self, id: &MandelboxId) {
        self.register().forget(id);
    }

    /// No new mandelboxes: all who wait for an allocation get `failure`, and so do all later requests but those for
    /// mandelboxes that are claimed already.
    pub fn close(&self, failure: Failure) {
        self.register().close(failure);
    }

    /// How many distinct requests wait for their mandelbox to be allocated.
    pub fn waiting(&self) -> usize {
        self.register().waiting(Instant::now())
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Lobby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lobby").finish_non_exhaustive()
    }
}

/// A client's place in the lobby: resolves to the outcome. Dropping it cancels nothing.
pub struct Pending {
    awaits_allocation: bool,
    outcome: BoxFuture<'static, Outcome>,
}

impl Pending {
    /// There was no mandelbox of this id yet when the request came.
    pub fn awaits_allocation(&self) -> bool {
        self.awaits_allocation
    }
}

impl Future for Pending {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        self.outcome.as_mut().poll(context)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("awaits_allocation", &self.awaits_allocation).finish_non_exhaustive()
    }
}

/// Until `deadline` for the allocation, then as long as the seat lives.
async fn wait(lobby: Arc<Lobby>, mut progress: watch::Receiver<Progress>, deadline: Instant) -> Outcome {
    let met = progress.wait_for(|progress| !matches!(progress, Progress::Expected));
    if timeout_at(deadline, met).await.is_err() {
        // Whether it was in time is decided under the lock: what is swept can no longer be delivered.
        lobby.register().sweep(Instant::now());
        if matches!(*progress.borrow(), Progress::Expected) {
            // An identical request came later and waits on.
            return Err(Failure::NotAllocated);
        }
    }
    match progress.wait_for(|progress| matches!(progress, Progress::Answered(_))).await.as_deref() {
        Ok(Progress::Answered(outcome)) => outcome.clone(),
        // The register answers before it lets go; this is for a register that a panic has left half changed.
        _ => Err(Failure::Unavailable("the request was lost".into())),
    }
}

/// A mandelbox's side of the meeting. It lives as long as the mandelbox.
pub struct Seat {
    lobby: Arc<Lobby>,
    id: MandelboxId,
    number: u64,
    wake: Arc<Notify>,
}

impl Seat {
    /// The client's startup data, once; pends until a matching request has come. Safe to cancel: what is not
    /// returned is kept.
    pub async fn startup_data(&mut self) -> StartupData {
        loop {
            let taken = self.lobby.register().take(&self.id, self.number);
            if let Some(data) = taken {
                return data;
            }
            self.wake.notified().await;
        }
    }

    /// Answers everybody who waits for this mandelbox. Only the first answer counts.
    pub fn answer(&mut self, outcome: Outcome) {
        self.lobby.register().answer(&self.id, self.number, outcome, Instant::now());
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lobby.register().leave(&self.id, self.number, Instant::now());
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("id", &self.id).field("number", &self.number).finish_non_exhaustive()
    }
}
