//! How much one address, and all together, may ask for: open connections, new connections and requests.
//!
//! A flood of one client costs the others nothing: what is over a limit is closed before its handshake, and a request over
//! it is told 429 before its token is looked at. Clients behind one IPv6 prefix count as one address, because one machine
//! usually has all of it.
//!
//! What is kept is bounded: an address without connections is forgotten once its buckets are full again, so there are never
//! more than open connections and a few seconds' new ones.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What may come at once after a rest, in seconds of the rate.
const BURST_SECONDS: f64 = 4.0;
/// Addresses that are remembered before the idle ones are looked for.
const FEW: usize = 1024;
/// Between two records of refusals.
const QUIET: Duration = Duration::from_secs(60);

/// What may be asked for; `None` is without limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quota {
    /// Open connections of one address.
    pub connections: Option<NonZeroU32>,
    /// New connections of one address, per second.
    pub connection_rate: Option<NonZeroU32>,
    /// New connections of all addresses, per second.
    pub overall_rate: Option<NonZeroU32>,
    /// Requests of one address, per second.
    pub request_rate: Option<NonZeroU32>,
}

/// Keeps count.
#[derive(Debug)]
pub(super) struct Quotas {
    quota: Quota,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    addresses: HashMap<IpAddr, Address>,
    overall: Bucket,
    /// Idle addresses are looked for when there are more than these.
    enough: usize,
    refused: u64,
    told: Option<Instant>,
}

#[derive(Debug)]
struct Address {
    open: u32,
    connections: Bucket,
    requests: Bucket,
}

/// Full at first; each second adds `rate`, up to [`BURST_SECONDS`] of it.
#[derive(Debug)]
struct Bucket {
    used: f64,
    at: Instant,
}

/// A connection that was let in; dropping it gives its place back.
#[derive(Debug)]
pub(super) struct Visitor {
    quotas: Arc<Quotas>,
    address: IpAddr,
}

impl Quotas {
    pub(super) fn new(quota: Quota) -> Arc<Self> {
        let overall = Bucket::full(Instant::now());
        let state = State { addresses: HashMap::new(), overall, enough: FEW, refused: 0, told: None };
        Arc::new(Self { quota, state: Mutex::new(state) })
    }

    /// `None` when it is one too many.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Visitor> {
        let (address, now, quota) = (block(peer), Instant::now(), &self.quota);
        let mut state = self.state();
        state.forget_idle(quota, now);
        let State { addresses, overall, .. } = &mut *state;
        let of = addresses.entry(address).or_insert_with(|| Address::new(now));
        let has_place = quota.connections.is_none_or(|most| of.open < most.get());
        // The address's own first: what one is refused must not use up what belongs to all.
        if has_place
            && of.connections.take(quota.connection_rate, now)
            && overall.take(quota.overall_rate, now)
        {
            of.open += 1;
            return Some(Visitor { quotas: self.clone(), address });
        }
        state.refuse(peer, now);
        None
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visitor {
    /// Whether one more request may be looked at now.
    pub(super) fn may_ask(&self) -> bool {
        let now = Instant::now();
        let mut state = self.quotas.state();
        let of = state.addresses.get_mut(&self.address);
        of.is_none_or(|of| of.requests.take(self.quotas.quota.request_rate, now))
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if let Some(of) = self.quotas.state().addresses.get_mut(&self.address) {
            of.open -= 1;
        }
    }
}

impl State {
    fn forget_idle(&mut self, quota: &Quota, now: Instant) {
        if self.addresses.len() <= self.enough {
            return;
        }
        self.addresses.retain(|_, of| {
            of.open > 0
                || !of.connections.is_full(quota.connection_rate, now)
                || !of.requests.is_full(quota.request_rate, now)
        });
        self.enough = FEW.max(2 * self.addresses.len());
    }

    /// One record a minute, however many are refused.
    fn refuse(&mut self, peer: IpAddr, now: Instant) {
        self.refused += 1;
        if self.told.is_none_or(|told| now.duration_since(told) >= QUIET) {
            tracing::warn!(%peer, refused = self.refused, "closing new connections over the limits of http.*");
            (self.told, self.refused) = (Some(now), 0);
        }
    }
}

impl Address {
    fn new(now: Instant) -> Self {
        Self { open: 0, connections: Bucket::full(now), requests: Bucket::full(now) }
    }
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { used: 0.0, at: now }
    }

    fn refill(&mut self, rate: f64, now: Instant) {
        self.used = (self.used - now.duration_since(self.at).as_secs_f64() * rate).max(0.0);
        self.at = now;
    }

    fn take(&mut self, rate: Option<NonZeroU32>, now: Instant) -> bool {
        let Some(rate) = rate else { return true };
        let rate = f64::from(rate.get());
        self.refill(rate, now);
        let left = self.used + 1.0 <= rate * BURST_SECONDS;
        if left {
            self.used += 1.0;
        }
        left
    }

    fn is_full(&mut self, rate: Option<NonZeroU32>, now: Instant) -> bool {
        rate.is_none_or(|rate| {
            self.refill(f64::from(rate.get()), now);
            self.used == 0.0
        })
    }
}

/// What counts as one client.
fn block(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::advance;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_has_its_places_and_others_have_theirs() {
        let quotas = Quotas::new(Quota { connections: NonZeroU32::new(2), ..Quota::default() });
        let (first, _second) =
            (quotas.admit(ip("192.0.2.1")).unwrap(), quotas.admit(ip("192.0.2.1")).unwrap());
        assert!(quotas.admit(ip("192.0.2.1")).is_none());
        assert!(quotas.admit(ip("::ffff:192.0.2.1")).is_none(), "the same one, written otherwise");
        assert!(quotas.admit(ip("192.0.2.2")).is_some());
        drop(first);
        assert!(quotas.admit(ip("192.0.2.1")).is_some());
        let _prefix = [quotas.admit(ip("2001:db8::1")).unwrap(), quotas.admit(ip("2001:db8::2")).unwrap()];
        assert!(quotas.admit(ip("2001:db8::3")).is_none(), "one prefix is one client");
        assert!(quotas.admit(ip("2001:db8:0:1::3")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_over_time_and_what_is_refused_uses_nothing_up() {
        let rates = Quota {
            connection_rate: NonZeroU32::new(2),
            overall_rate: NonZeroU32::new(3),
            ..Quota::default()
        };
        let quotas = Quotas::new(rates);
        let admitted = |peer: &str| (0..100).filter(|_| quotas.admit(ip(peer)).is_some()).count();
        assert_eq!(admitted("192.0.2.1"), 8, "four seconds' worth at once");
        assert_eq!(admitted("192.0.2.2"), 4, "what is left of all");
        advance(Duration::from_secs(1)).await;
        assert_eq!((admitted("192.0.2.1"), admitted("192.0.2.3")), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_have_a_rate_too() {
        let quotas = Quotas::new(Quota { request_rate: NonZeroU32::new(5), ..Quota::default() });
        let (one, again) = (quotas.admit(ip("192.0.2.1")).unwrap(), quotas.admit(ip("192.0.2.1")).unwrap());
        assert_eq!((0..50).filter(|_| one.may_ask()).count(), 20);
        assert!(!again.may_ask(), "another connection is no way around it");
        advance(Duration::from_secs(1)).await;
        assert_eq!((0..50).filter(|_| again.may_ask()).count(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_forgotten() {
        let quotas = Quotas::new(Quota { connection_rate: NonZeroU32::new(1), ..Quota::default() });
        for number in 0..100_000_u32 {
            drop(quotas.admit(Ipv4Addr::from(number).into()));
            advance(Duration::from_millis(1)).await;
        }
        let kept = quotas.state().addresses.len();
        assert!(kept <= 4 * FEW, "{kept}");
    }
}
