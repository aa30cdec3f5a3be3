//! A mandelbox in the lobby, from the won claim to its end.

use std::sync::Arc;

use host_core::{UserId, lifecycle::Stage};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    Answer, ClientRequest, Failure, Outcome, StartupData,
    ask::{Ask, Digest, Progress, may, same, share},
};

/// A mandelbox's side of its meeting.
pub(super) struct Seated {
    pub number: u64,
    user: UserId,
    wake: Arc<Notify>,
    step: Step,
}

/// How far it has come with its client.
enum Step {
    /// No client yet.
    Vacant,
    /// The startup data is here, or with the owner once `data` is taken.
    Taken { digest: Digest, data: Option<StartupData>, progress: watch::Sender<Progress> },
    /// Answered; `again` is forgotten after a while, because it holds the key.
    Answered { again: Option<Again> },
    /// Failed, and not gone yet.
    Failed(Failure),
}

/// What the identical request gets.
struct Again {
    digest: Digest,
    answer: Arc<Answer>,
    until: Instant,
}

impl Seated {
    /// Seats one of the requests that came before it; the others are told why not.
    pub(super) fn new(number: u64, user: UserId, wake: Arc<Notify>, asks: Vec<Ask>) -> Self {
        let step = choose(asks, &user).map_or(Step::Vacant, |ask| {
            ask.progress.send_replace(Progress::Seated);
            wake.notify_one();
            Step::taken(ask.digest, ask.data, ask.progress)
        });
        Self { number, user, wake, step }
    }

    /// A request that comes now.
    pub(super) fn join(&mut self, request: ClientRequest) -> Result<watch::Receiver<Progress>, Failure> {
        if !may(request.subject.as_ref(), &self.user) {
            return Err(Failure::Forbidden);
        }
        match &self.step {
            Step::Failed(failure) => Err(failure.clone()),
            Step::Vacant => {
                let (progress, receiver) = watch::channel(Progress::Seated);
                self.step = Step::taken(request.digest, request.data, progress);
                self.wake.notify_one();
                Ok(receiver)
            }
            Step::Taken { digest, progress, .. } if same(digest, &request.digest) => share(progress),
            Step::Answered { again: Some(again) } if same(&again.digest, &request.digest) => {
                Ok(watch::channel(Progress::Answered(Ok(again.answer.clone()))).1)
            }
            Step::Taken { .. } | Step::Answered { .. } => Err(Failure::AlreadyDelivered),
        }
    }

    pub(super) fn take(&mut self) -> Option<StartupData> {
        match &mut self.step {
            Step::Taken { data, .. } => data.take(),
            _ => None,
        }
    }

    /// Only the first outcome counts; an answer is given again to the identical request until then.
    pub(super) fn answer(&mut self, outcome: Outcome, until: Instant) {
        let digest = match &self.step {
            Step::Vacant => None,
            Step::Taken { digest, progress, .. } => {
                progress.send_replace(Progress::Answered(outcome.clone()));
                Some(*digest)
            }
            Step::Answered { .. } | Step::Failed(_) => return,
        };
        self.step = match outcome {
            Err(failure) => Step::Failed(failure),
            Ok(answer) => Step::Answered { again: digest.map(|digest| Again { digest, answer, until }) },
        };
    }

    /// The mandelbox is gone: whose it was, and what late requests are told.
    pub(super) fn end(mut self, now: Instant) -> (UserId, Failure) {
        let stage = match self.step {
            Step::Vacant => Stage::Client,
            _ => Stage::Application,
        };
        let message = "the mandelbox ended before it was ready".into();
        self.answer(Err(Failure::SpinUpFailed { stage, message }), now);
        match self.step {
            Step::Failed(failure) => (self.user, failure),
            _ => (self.user, Failure::AlreadyDelivered),
        }
    }

    /// Forgets the answer once its time is over.
    pub(super) fn sweep(&mut self, now: Instant) {
        if let Step::Answered { again } = &mut self.step {
            again.take_if(|again| again.until <= now);
        }
    }

    /// When the answer is forgotten.
    pub(super) fn expiry(&self) -> Option<Instant> {
        match &self.step {
            Step::Answered { again } => again.as_ref().map(|again| again.until),
            _ => None,
        }
    }
}

impl Step {
    fn taken(digest: Digest, data: StartupData, progress: watch::Sender<Progress>) -> Self {
        let data = Some(data);
        Self::Taken { digest, data, progress }
    }
}

/// The first request of `user` whose client still waits, else the first of `user`.
fn choose(mut asks: Vec<Ask>, user: &UserId) -> Option<Ask> {
    let of_user = |ask: &Ask| may(ask.subject.as_ref(), user);
    let place = asks.iter().position(|ask| of_user(ask) && ask.is_awaited());
    let chosen = place.or_else(|| asks.iter().position(of_user)).map(|place| asks.remove(place));
    for ask in asks {
        let failure = if of_user(&ask) { Failure::AlreadyDelivered } else { Failure::Forbidden };
        ask.fail(failure);
    }
    chosen
}
