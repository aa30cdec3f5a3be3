//! A pool of numbers, each held by at most one mandelbox.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Clock, Exhausted};
use crate::id::MandelboxId;

/// Numbers to lease. Clones share the same numbers.
#[derive(Clone)]
pub struct Pool {
    what: &'static str,
    rest: Duration,
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Free numbers, longest unused first, each with the end of its rest. First in, first out: every number
    /// rests as long as the pool allows, and the ends are in order.
    free: VecDeque<(u16, Option<Instant>)>,
    held: BTreeMap<u16, MandelboxId>,
}

impl Pool {
    /// `what` names one of the numbers in errors.
    pub fn new(
        what: &'static str,
        numbers: impl IntoIterator<Item = u16>,
        rest: Duration,
        clock: Clock,
    ) -> Self {
        let free = numbers.into_iter().map(|number| (number, None)).collect();
        Self { what, rest, clock, state: Arc::new(Mutex::new(State { free, held: BTreeMap::new() })) }
    }

    /// A free number that has rested and that `usable` accepts.
    ///
    /// # Errors
    /// There is none.
    pub fn lease(&self, holder: &MandelboxId, usable: impl Fn(u16) -> bool) -> Result<Lease, Exhausted> {
        let mut state = self.state();
        let now = (self.clock)();
        let rested =
            state.free.iter().take_while(|(_, until)| until.is_none_or(|until| until <= now)).count();
        let place = state.free.iter().take(rested).position(|&(number, _)| usable(number));
        let Some((number, _)) = place.and_then(|place| state.free.remove(place)) else {
            return Err(self.exhausted(&state, rested));
        };
        state.held.insert(number, holder.clone());
        Ok(Lease { value: number, pool: self.clone() })
    }

    fn exhausted(&self, state: &State, rested: usize) -> Exhausted {
        Exhausted {
            resource: self.what,
            holders: state.held.iter().map(|(number, holder)| (number.to_string(), holder.clone())).collect(),
            resting: state.free.len() - rested,
            unusable: rested,
        }
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.state().held.len()
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        let state = self.state();
        state.held.len() + state.free.len()
    }

    /// A panic elsewhere cannot leave the state half-changed: no step between two changes can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, number: u16) {
        let mut state = self.state();
        if state.held.remove(&number).is_some() {
            state.free.push_back((number, Some((self.clock)() + self.rest)));
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}: {} of {} held)", self.what, self.held(), self.size())
    }
}

/// One number of a [`Pool`], given back when dropped.
#[derive(Debug)]
pub struct Lease {
    value: u16,
    pool: Pool,
}

impl Lease {
    /// The number.
    pub fn value(&self) -> u16 {
        self.value
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(self.value);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local!(static NOW: Cell<Instant> = Cell::new(Instant::now()));

    fn held_clock() -> Instant {
        NOW.get()
    }

    fn id() -> MandelboxId {
        "a".parse().unwrap()
    }

    #[test]
    fn a_number_rests_after_use() {
        let pool = Pool::new("port", [1, 2], Duration::from_secs(3), held_clock);
        drop((pool.lease(&id(), |_| true).unwrap(), pool.lease(&id(), |_| true).unwrap()));
        assert_eq!(pool.lease(&id(), |_| true).unwrap_err().resting, 2);
        NOW.set(NOW.get() + Duration::from_secs(3));
        assert!(pool.lease(&id(), |_| true).is_ok());
    }

    #[test]
    fn numbers_in_use_by_others_are_counted_as_such() {
        let pool = Pool::new("port", [1, 2], Duration::ZERO, Instant::now);
        assert_eq!(pool.lease(&id(), |_| false).unwrap_err().unusable, 2);
        assert_eq!(pool.lease(&id(), |number| number == 2).unwrap().value(), 2);
    }

    proptest! {
        /// Whatever is leased, dropped and waited for: no number is held twice, none is lost.
        #[test]
        fn every_number_is_free_or_held_once(steps in prop::collection::vec((0u8..4, 0usize..8, any::<bool>()), 1..80)) {
            let pool = Pool::new("port", 1..=6, Duration::from_secs(1), held_clock);
            let mut leases = Vec::new();
            for (step, which, usable) in steps {
                match step {
                    0 | 1 => leases.extend(pool.lease(&id(), |number| usable || number % 2 == 0)),
                    2 if which < leases.len() => drop(leases.swap_remove(which)),
                    _ => NOW.set(NOW.get() + Duration::from_millis(400)),
                }
                let mut values: Vec<_> = leases.iter().map(Lease::value).collect();
                values.sort_unstable();
                values.dedup();
                prop_assert_eq!(values.len(), leases.len());
                prop_assert_eq!(pool.held(), leases.len());
                prop_assert_eq!(pool.size(), 6);
            }
        }
    }
}
