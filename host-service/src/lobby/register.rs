//! All meetings, as plain data: every operation is synchronous and is told what time it is.

use std::{collections::BTreeMap, mem, sync::Arc};

use host_core::{MandelboxId, UserId, lifecycle::Stage};
use subtle::ConstantTimeEq;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{Answer, ClientRequest, Failure, LobbyLimits, Outcome, StartupData};

/// Distinct requests of one user for one id that may wait: a client and its impatient second try.
const PER_USER_AND_ID: usize = 4;

/// Distinct requests of one user that may wait, so that one user cannot take everybody's place.
const PER_USER: usize = 8;

/// Ends remembered. Each is an id, a user and a message; beyond this the oldest goes early.
const ENDS: usize = 1024;

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
struct Ask {
    subject: Option<UserId>,
    digest: [u8; 32],
    data: StartupData,
    deadline: Instant,
    progress: watch::Sender<Progress>,
}

/// A mandelbox's seat.
struct Seated {
    number: u64,
    user: UserId,
    wake: Arc<Notify>,
    step: Step,
}

/// How far a mandelbox has come with its client.
enum Step {
    /// No client yet.
    Vacant,
    /// The startup data is here, or with the owner once `data` is taken.
    Taken {
        digest: [u8; 32],
        data: Option<StartupData>,
        progress: watch::Sender<Progress>,
    },
    /// Answered; `again` is forgotten after a while, because it holds the key.
    Answered { again: Option<Again> },
    /// Failed, and not gone yet.
    Failed(Failure),
}

/// What the identical request gets.
struct Again {
    digest: [u8; 32],
    answer: Arc<Answer>,
    until: Instant,
}

/// Everything about one id.
enum Meeting {
    /// Requests without a mandelbox, in the order they came.
    Expected(Vec<Ask>),
    /// A mandelbox.
    Seated(Seated),
    /// What late requests are told; `user` is `None` when it was never known whose it is.
    Ended {
        failure: Failure,
        user: Option<UserId>,
        until: Instant,
    },
}

/// The meetings by id.
pub(super) struct Register {
    limits: LobbyLimits,
    meetings: BTreeMap<MandelboxId, Meeting>,
    closed: Option<Failure>,
    last_number: u64,
    /// Nothing expires before this.
    next_expiry: Option<Instant>,
}

impl Register {
    pub(super) fn new(limits: LobbyLimits) -> Self {
        Self {
            limits,
            meetings: BTreeMap::new(),
            closed: None,
            last_number: 0,
            next_expiry: None,
        }
    }

    /// When a request that comes now has waited long enough for its allocation.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        now + self.limits.wait
    }

    pub(super) fn join(
        &mut self,
        request: ClientRequest,
        now: Instant,
    ) -> Result<watch::Receiver<Progress>, Failure> {
        self.sweep(now);
        let deadline = self.deadline(now);
        match self.meetings.get_mut(&request.id) {
            Some(Meeting::Seated(seated)) => return seated.join(request, self.closed.as_ref()),
            Some(Meeting::Ended { failure, user, .. }) => {
                let stranger = user.as_ref().is_some_and(|user| !may(&request.subject, user));
                return Err(if stranger {
                    Failure::Forbidden
                } else {
                    failure.clone()
                });
            }
            Some(Meeting::Expected(asks)) => {
                if let Some(ask) = asks.iter_mut().find(|ask| same(&ask.digest, &request.digest)) {
                    ask.deadline = deadline;
                    return Ok(ask.progress.subscribe());
                }
            }
            None => {}
        }
        if let Some(failure) = &self.closed {
            return Err(failure.clone());
        }
        self.check_room(&request)?;
        let (progress, receiver) = watch::channel(Progress::Expected);
        let ClientRequest {
            id,
            subject,
            digest,
            data,
        } = request;
        let ask = Ask {
            subject,
            digest,
            data,
            deadline,
            progress,
        };
        // Anything else than requests has answered above.
        if let Meeting::Expected(asks) = self.meetings.entry(id).or_insert(Meeting::Expected(Vec::new())) {
            asks.push(ask);
        }
        self.expires_at(deadline);
        Ok(receiver)
    }

    /// A request that would wait is counted against its user and against all. It is counted by user within an id
    /// too, never by id alone: strangers must not be able to take the place of the one whose mandelbox it is.
    fn check_room(&self, request: &ClientRequest) -> Result<(), Failure> {
        let (mut all, mut of_user, mut of_user_and_id) = (0, 0, 0);
        for (id, meeting) in &self.meetings {
            let Meeting::Expected(asks) = meeting else {
                continue;
            };
            let same_user = asks.iter().filter(|ask| ask.subject == request.subject).count();
            all += asks.len();
            of_user += same_user;
            of_user_and_id += if *id == request.id { same_user } else { 0 };
        }
        let known = request.subject.is_some();
        let full = all >= self.limits.max_waiting
            || of_user_and_id >= PER_USER_AND_ID
            || (known && of_user >= PER_USER);
        if full { Err(Failure::TooMany) } else { Ok(()) }
    }

    pub(super) fn open(&mut self, id: &MandelboxId, user: &UserId, wake: Arc<Notify>, now: Instant) -> u64 {
        self.sweep(now);
        self.last_number += 1;
        let number = self.last_number;
        let asks = match self.meetings.remove(id) {
            Some(Meeting::Expected(asks)) => asks,
            Some(Meeting::Seated(mut before)) => {
                before.answer(Err(ended_early(&before.step)), now);
                Vec::new()
            }
            Some(Meeting::Ended { .. }) | None => Vec::new(),
        };
        let step = seat(asks, user);
        if matches!(step, Step::Taken { .. }) {
            wake.notify_one();
        }
        let seated = Seated {
            number,
            user: user.clone(),
            wake,
            step,
        };
        self.meetings.insert(id.clone(), Meeting::Seated(seated));
        number
    }

    pub(super) fn take(&mut self, id: &MandelboxId, number: u64) -> Option<StartupData> {
        match &mut self.seated(id, number)?.step {
            Step::Taken { data, .. } => data.take(),
            _ => None,
        }
    }

    pub(super) fn answer(&mut self, id: &MandelboxId, number: u64, outcome: Outcome, now: Instant) {
        self.sweep(now);
        let until = now + self.limits.answer_again;
        if let Some(seated) = self.seated(id, number) {
            seated.answer(outcome, until);
            self.expires_at(until);
        }
    }

    pub(super) fn leave(&mut self, id: &MandelboxId, number: u64, now: Instant) {
        self.sweep(now);
        if self.seated(id, number).is_none() {
            return; // a later seat has taken over
        }
        let Some(Meeting::Seated(mut seated)) = self.meetings.remove(id) else {
            return;
        };
        seated.answer(Err(ended_early(&seated.step)), now);
        let failure = match seated.step {
            Step::Failed(failure) => failure,
            _ => Failure::AlreadyDelivered,
        };
        self.end(id, failure, Some(seated.user), now);
    }

    pub(super) fn refuse(&mut self, id: &MandelboxId, failure: Failure, now: Instant) {
        self.sweep(now);
        match self.meetings.get_mut(id) {
            Some(Meeting::Seated(seated)) => return seated.answer(Err(failure), now),
            Some(Meeting::Ended { .. }) => return, // the first reason is the true one
            Some(Meeting::Expected(asks)) => asks.drain(..).for_each(|ask| ask.answer(failure.clone())),
            None => {}
        }
        self.end(id, failure, None, now);
    }

    pub(super) fn forget(&mut self, id: &MandelboxId) {
        if matches!(self.meetings.get(id), Some(Meeting::Ended { .. })) {
            self.meetings.remove(id);
        }
    }

    pub(super) fn close(&mut self, failure: Failure) {
        for meeting in self.meetings.values_mut() {
            if let Meeting::Expected(asks) = meeting {
                asks.drain(..).for_each(|ask| ask.answer(failure.clone()));
            }
        }
        self.meetings
            .retain(|_, meeting| !matches!(meeting, Meeting::Expected(_)));
        self.closed = Some(failure);
    }

    pub(super) fn waiting(&mut self, now: Instant) -> usize {
        self.sweep(now);
        let waiting = |meeting: &Meeting| match meeting {
            Meeting::Expected(asks) => asks.len(),
            Meeting::Seated(_) | Meeting::Ended { .. } => 0,
        };
        self.meetings.values().map(waiting).sum()
    }

    /// Ends whatever has expired.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.next_expiry.is_some_and(|next| next <= now) {
            self.meetings.retain(|_, meeting| meeting.sweep(now));
            self.next_expiry = self.meetings.values().filter_map(Meeting::expiry).min();
        }
    }

    /// How many ids anything is known of.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.meetings.len()
    }

    fn seated(&mut self, id: &MandelboxId, number: u64) -> Option<&mut Seated> {
        match self.meetings.get_mut(id) {
            Some(Meeting::Seated(seated)) if seated.number == number => Some(seated),
            _ => None,
        }
    }

    fn expires_at(&mut self, time: Instant) {
        self.next_expiry = Some(self.next_expiry.map_or(time, |next| next.min(time)));
    }

    fn end(&mut self, id: &MandelboxId, failure: Failure, user: Option<UserId>, now: Instant) {
        let until = now + self.limits.answer_again;
        self.meetings
            .insert(id.clone(), Meeting::Ended { failure, user, until });
        self.expires_at(until);
        let ends = || {
            self.meetings.iter().filter_map(|(id, meeting)| match meeting {
                Meeting::Ended { until, .. } => Some((*until, id)),
                _ => None,
            })
        };
        if ends().count() > ENDS
            && let Some(oldest) = ends().min().map(|(_, id)| id.clone())
        {
            self.meetings.remove(&oldest);
        }
    }
}

impl Meeting {
    /// Drops what has expired; false when nothing is left.
    fn sweep(&mut self, now: Instant) -> bool {
        match self {
            Self::Expected(asks) => {
                let expired = asks.extract_if(.., |ask| ask.deadline <= now);
                expired.for_each(|ask| ask.answer(Failure::NotAllocated));
                !asks.is_empty()
            }
            Self::Seated(Seated {
                step: Step::Answered { again },
                ..
            }) => {
                again.take_if(|again| again.until <= now);
                true
            }
            Self::Seated(_) => true,
            Self::Ended { until, .. } => *until > now,
        }
    }

    /// When the first part of it expires.
    fn expiry(&self) -> Option<Instant> {
        match self {
            Self::Expected(asks) => asks.iter().map(|ask| ask.deadline).min(),
            Self::Seated(Seated {
                step: Step::Answered { again: Some(again) },
                ..
            }) => Some(again.until),
            Self::Seated(_) => None,
            Self::Ended { until, .. } => Some(*until),
        }
    }
}

impl Ask {
    fn answer(self, failure: Failure) {
        self.progress.send_replace(Progress::Answered(Err(failure)));
    }
}

impl Seated {
    fn join(
        &mut self,
        request: ClientRequest,
        closed: Option<&Failure>,
    ) -> Result<watch::Receiver<Progress>, Failure> {
        if !may(&request.subject, &self.user) {
            return Err(Failure::Forbidden);
        }
        match &self.step {
            Step::Vacant => {
                if let Some(failure) = closed {
                    return Err(failure.clone());
                }
                let (progress, receiver) = watch::channel(Progress::Seated);
                self.step = Step::Taken {
                    digest: request.digest,
                    data: Some(request.data),
                    progress,
                };
                self.wake.notify_one();
                Ok(receiver)
            }
            Step::Taken { digest, progress, .. } if same(digest, &request.digest) => Ok(progress.subscribe()),
            Step::Answered { again: Some(again) } if same(&again.digest, &request.digest) => {
                Ok(watch::channel(Progress::Answered(Ok(again.answer.clone()))).1)
            }
            Step::Failed(failure) => Err(failure.clone()),
            Step::Taken { .. } | Step::Answered { .. } => Err(Failure::AlreadyDelivered),
        }
    }

    /// The first answer stays.
    fn answer(&mut self, outcome: Outcome, until: Instant) {
        self.step = match mem::replace(&mut self.step, Step::Vacant) {
            Step::Vacant => match outcome {
                Err(failure) => Step::Failed(failure),
                Ok(_) => Step::Answered { again: None },
            },
            Step::Taken { digest, progress, .. } => {
                progress.send_replace(Progress::Answered(outcome.clone()));
                match outcome {
                    Err(failure) => Step::Failed(failure),
                    Ok(answer) => Step::Answered {
                        again: Some(Again {
                            digest,
                            answer,
                            until,
                        }),
                    },
                }
            }
            step @ (Step::Answered { .. } | Step::Failed(_)) => step,
        };
    }
}

/// Chooses among the requests that came before their mandelbox: the first of its user's whose client still waits,
/// else the first of its user's. The others are told why not.
fn seat(mut asks: Vec<Ask>, user: &UserId) -> Step {
    let of_user = |ask: &Ask| may(&ask.subject, user);
    let chosen = asks
        .iter()
        .position(|ask| of_user(ask) && ask.progress.receiver_count() > 0)
        .or_else(|| asks.iter().position(of_user))
        .map(|place| asks.remove(place));
    for ask in asks {
        let failure = if of_user(&ask) {
            Failure::AlreadyDelivered
        } else {
            Failure::Forbidden
        };
        ask.answer(failure);
    }
    match chosen {
        None => Step::Vacant,
        Some(Ask {
            digest,
            data,
            progress,
            ..
        }) => {
            progress.send_replace(Progress::Seated);
            Step::Taken {
                digest,
                data: Some(data),
                progress,
            }
        }
    }
}

/// Whether `subject` may have the mandelbox of `user`.
fn may(subject: &Option<UserId>, user: &UserId) -> bool {
    subject.as_ref().is_none_or(|subject| subject == user)
}

/// In constant time: a digest stands for credentials.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// What is said when a mandelbox is gone without having answered.
fn ended_early(step: &Step) -> Failure {
    let stage = if matches!(step, Step::Vacant) {
        Stage::Client
    } else {
        Stage::Application
    };
    Failure::SpinUpFailed {
        stage,
        message: "the mandelbox ended before it was ready".into(),
    }
}
