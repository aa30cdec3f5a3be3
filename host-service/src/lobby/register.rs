//! All meetings, as plain data: every operation is synchronous and is told what time it is.

use std::{collections::BTreeMap, sync::Arc};

use host_core::{MandelboxId, UserId};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    ClientRequest, Failure, LobbyLimits, Outcome, StartupData,
    ask::{Ask, Progress, may, same, share},
    seated::Seated,
};

/// Distinct requests of one user for one id that may wait: a client and its impatient second try.
const PER_USER_AND_ID: usize = 4;

/// Distinct requests of one user that may wait, so that one user cannot take everybody's place.
const PER_USER: usize = 8;

/// Ends remembered. Each is an id, a user and a message; beyond this the oldest goes early.
const ENDS: usize = 1024;

/// Everything about one id.
enum Meeting {
    /// Requests without a mandelbox, in the order they came.
    Expected(Vec<Ask>),
    /// A mandelbox.
    Seated(Seated),
    /// What late requests are told; `user` is `None` when it was never known whose it is.
    Ended { failure: Failure, user: Option<UserId>, until: Instant },
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
        Self { limits, meetings: BTreeMap::new(), closed: None, last_number: 0, next_expiry: None }
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
            Some(Meeting::Seated(seated)) => return seated.join(request),
            Some(Meeting::Ended { failure, user, .. }) => {
                let of_user = user.as_ref().is_none_or(|user| may(request.subject.as_ref(), user));
                return Err(if of_user { failure.clone() } else { Failure::Forbidden });
            }
            Some(Meeting::Expected(asks)) => {
                if let Some(ask) = asks.iter_mut().find(|ask| same(&ask.digest, &request.digest)) {
                    ask.deadline = deadline;
                    return share(&ask.progress);
                }
            }
            None => {}
        }
        if let Some(failure) = &self.closed {
            return Err(failure.clone());
        }
        self.check_room(&request)?;
        let meeting = self.meetings.entry(request.id.clone()).or_insert(Meeting::Expected(Vec::new()));
        let (ask, progress) = Ask::new(request, deadline);
        // Anything else than requests has answered above.
        if let Meeting::Expected(asks) = meeting {
            asks.push(ask);
        }
        self.expires_at(deadline);
        Ok(progress)
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
            Some(Meeting::Seated(before)) => {
                before.end(now);
                Vec::new()
            }
            Some(Meeting::Ended { .. }) | None => Vec::new(),
        };
        let seated = Seated::new(number, user.clone(), wake, asks);
        self.meetings.insert(id.clone(), Meeting::Seated(seated));
        number
    }

    pub(super) fn take(&mut self, id: &MandelboxId, number: u64) -> Option<StartupData> {
        self.seated(id, number)?.take()
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
        if let Some(Meeting::Seated(seated)) = self.meetings.remove(id) {
            let (user, failure) = seated.end(now);
            self.end(id, failure, Some(user), now);
        }
    }

    pub(super) fn refuse(&mut self, id: &MandelboxId, failure: Failure, now: Instant) {
        self.sweep(now);
        match self.meetings.get_mut(id) {
            Some(Meeting::Seated(_)) => return, // there is one after all: its owner answers
            Some(Meeting::Ended { .. }) => return, // the first reason is the true one
            Some(Meeting::Expected(asks)) => asks.drain(..).for_each(|ask| ask.fail(failure.clone())),
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
                asks.drain(..).for_each(|ask| ask.fail(failure.clone()));
            }
        }
        self.meetings.retain(|_, meeting| !matches!(meeting, Meeting::Expected(_)));
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
        self.meetings.insert(id.clone(), Meeting::Ended { failure, user, until });
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
                expired.for_each(|ask| ask.fail(Failure::NotAllocated));
                !asks.is_empty()
            }
            Self::Seated(seated) => {
                seated.sweep(now);
                true
            }
            Self::Ended { until, .. } => *until > now,
        }
    }

    /// When the first part of it expires.
    fn expiry(&self) -> Option<Instant> {
        match self {
            Self::Expected(asks) => asks.iter().map(|ask| ask.deadline).min(),
            Self::Seated(seated) => seated.expiry(),
            Self::Ended { until, .. } => Some(*until),
        }
    }
}
