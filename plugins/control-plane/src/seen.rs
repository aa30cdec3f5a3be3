//! Which rows this host has seen, and since when; and which allocations it works on.
//!
//! A row is stale when it has been `ALLOCATED` or `CONNECTING` for too long. Its creation time alone does not tell: it
//! was written by another machine's clock, and people insert rows with any time in them. So while a host watches, a
//! row's age counts from when it was first seen, or from its creation, whichever is later; a row that has not been
//! seen yet is about to be.
//!
//! What a host reports of a mandelbox is about the allocation that it has claimed, whatever the id means meanwhile: it
//! may be given away anew while the mandelbox of before is still being taken down.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use host_core::{
    InstanceName, MandelboxId,
    pubsub::{MandelboxRow, StaleAfter},
};
use tokio::time::Instant;

use crate::rows::Raw;

/// An allocation whose row is gone for so long is not worked on any more.
const REMEMBERED: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Host {
    watches: usize,
    rows: HashMap<String, Row>,
    claimed: HashMap<String, Claimed>,
}

#[derive(Debug)]
struct Claimed {
    created_ms: i64,
    /// Its row was last there.
    seen: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    session: String,
    created_ms: i64,
    since: Instant,
}

/// The rows seen, by host: one in a service, many in tests.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<BTreeMap<InstanceName, Host>>>);

/// Rows that were seen long enough ago to be stale, by status.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ripe {
    /// Stale if `ALLOCATED`.
    pub allocated: Vec<String>,
    /// Stale if `CONNECTING`.
    pub connecting: Vec<String>,
}

/// While it lives, its host's rows are being seen.
#[derive(Debug)]
pub struct Watching {
    seen: Seen,
    instance: InstanceName,
}

impl Seen {
    /// No code that can panic runs under this lock.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceName, Host>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on until this is dropped.
    pub fn watching(&self, instance: &InstanceName) -> Watching {
        self.lock().entry(instance.clone()).or_default().watches += 1;
        Watching { seen: self.clone(), instance: instance.clone() }
    }

    /// This host works on this allocation.
    pub fn claimed(&self, instance: &InstanceName, row: &MandelboxRow) {
        let claimed = Claimed { created_ms: row.created_ms, seen: Instant::now() };
        let mut hosts = self.lock();
        hosts.entry(instance.clone()).or_default().claimed.insert(row.id.to_string(), claimed);
    }

    /// This host is done with what it has claimed under this id.
    pub fn ended(&self, instance: &InstanceName, mandelbox: &MandelboxId) {
        if let Some(host) = self.lock().get_mut(instance) {
            host.claimed.remove(mandelbox.as_str());
        }
    }

    /// When the row was created that this host means by this id: the one that it works on, or has last seen.
    pub fn created_ms(&self, instance: &InstanceName, mandelbox: &MandelboxId) -> Option<i64> {
        let (hosts, id) = (self.lock(), mandelbox.as_str());
        let host = hosts.get(instance)?;
        let claimed = host.claimed.get(id).map(|claimed| claimed.created_ms);
        claimed.or_else(|| host.rows.get(id).map(|row| row.created_ms))
    }

    /// `None` when nobody watches, so that only the creation time is left to judge by.
    pub fn ripe(&self, instance: &InstanceName, after: StaleAfter) -> Option<Ripe> {
        let hosts = self.lock();
        let host = hosts.get(instance).filter(|host| host.watches > 0)?;
        let for_longer = |limit: Duration| {
            let ripe = host.rows.iter().filter(|(_, row)| row.since.elapsed() > limit);
            ripe.map(|(id, _)| id.clone()).collect()
        };
        Some(Ripe { allocated: for_longer(after.allocated), connecting: for_longer(after.connecting) })
    }
}

impl Watching {
    /// These are all the rows that there are now.
    pub fn saw(&self, rows: &[Raw]) {
        let now = Instant::now();
        let mut hosts = self.seen.lock();
        let Some(host) = hosts.get_mut(&self.instance) else { return };
        let mut before = std::mem::take(&mut host.rows);
        host.rows = rows
            .iter()
            .map(|raw| {
                let same = |row: &Row| row.session == raw.session && row.created_ms == raw.created_ms;
                let new = || Row { session: raw.session.clone(), created_ms: raw.created_ms, since: now };
                let row = before.remove(&raw.id).filter(same).unwrap_or_else(new);
                (raw.id.clone(), row)
            })
            .collect();
        let is_there = |id: &String, claimed: &Claimed| {
            host.rows.get(id).is_some_and(|row| row.created_ms == claimed.created_ms)
        };
        host.claimed.retain(|id, claimed| {
            claimed.seen = if is_there(id, claimed) { now } else { claimed.seen };
            now.duration_since(claimed.seen) < REMEMBERED
        });
    }
}

impl Drop for Watching {
    /// What was seen is kept: the queue needs it while the database is away.
    fn drop(&mut self) {
        if let Some(host) = self.seen.lock().get_mut(&self.instance) {
            host.watches -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: StaleAfter =
        StaleAfter { allocated: Duration::from_secs(10), connecting: Duration::from_secs(90) };

    fn raw(id: &str, created_ms: i64) -> Raw {
        Raw {
            id: id.into(),
            user: "u".into(),
            session: "s".into(),
            app: None,
            status: "ALLOCATED".into(),
            created_ms,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_ripens_from_when_it_was_first_seen() {
        let (seen, host) = (Seen::default(), "host".parse().unwrap());
        assert_eq!(seen.ripe(&host, AFTER), None);
        let watching = seen.watching(&host);
        watching.saw(&[raw("old", 1), raw("anew", 1)]);
        assert_eq!(seen.ripe(&host, AFTER), Some(Ripe::default()));
        tokio::time::advance(Duration::from_secs(11)).await;
        watching.saw(&[raw("old", 1), raw("anew", 2)]);
        let ripe = Ripe { allocated: vec!["old".into()], connecting: vec![] };
        assert_eq!(seen.ripe(&host, AFTER), Some(ripe));
        drop(watching);
        assert_eq!(seen.ripe(&host, AFTER), None);
        assert_eq!(seen.created_ms(&host, &"anew".parse().unwrap()), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_means_what_was_claimed_under_it_until_that_has_ended() {
        let (seen, host) = (Seen::default(), "host".parse().unwrap());
        let watching = seen.watching(&host);
        let rows = [raw("a", 1), raw("b", 1), raw("c", 1)];
        watching.saw(&rows);
        for row in &rows {
            seen.claimed(&host, &row.understand().unwrap());
        }
        let anew = [raw("a", 2), raw("b", 2), raw("c", 1)];
        watching.saw(&anew);
        let means = |id: &str| seen.created_ms(&host, &id.parse().unwrap());
        assert_eq!([means("a"), means("b"), means("c")], [Some(1); 3]);
        seen.ended(&host, &"a".parse().unwrap());
        assert_eq!([means("a"), means("b"), means("c")], [Some(2), Some(1), Some(1)]);
        // Nothing is remembered for ever.
        tokio::time::advance(REMEMBERED).await;
        watching.saw(&anew);
        assert_eq!([means("b"), means("c")], [Some(2), Some(1)]);
        let host = &seen.lock()[&host];
        assert_eq!(host.claimed.keys().collect::<Vec<_>>(), ["c"]);
    }
}
