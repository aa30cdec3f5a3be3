//! A telemetry record, which borrows what a reader must own.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use host_core::{
    pubsub::InstanceFacts,
    telemetry::{Level, Record},
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::wire::Wire;

/// To be written. The time is in nanoseconds since 1970, negative before.
#[derive(Serialize)]
pub(crate) struct Written<'a> {
    at_ns: i64,
    level: Level,
    target: &'a str,
    message: &'a str,
    fields: &'a Map<String, Value>,
    instance: Option<&'a InstanceFacts>,
    environment: &'a str,
}

#[derive(Deserialize)]
struct Read {
    at_ns: i64,
    level: Level,
    target: String,
    message: String,
    #[serde(default)]
    fields: Map<String, Value>,
    #[serde(default)]
    instance: Option<InstanceFacts>,
    #[serde(default)]
    environment: String,
}

/// As read.
pub(crate) struct Taken(Arc<Record>);

impl<'de> Deserialize<'de> for Taken {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let read = Read::deserialize(from)?;
        Ok(Self(Arc::new(Record {
            at: time(read.at_ns),
            level: read.level,
            target: interned(&read.target),
            message: read.message,
            fields: read.fields,
            instance: read.instance.map(Arc::new),
            environment: read.environment.into(),
        })))
    }
}

impl<'a> Wire<'a, &'a Arc<Record>> for Taken {
    type Out = Written<'a>;

    fn write(record: &'a Arc<Record>) -> Written<'a> {
        Written {
            at_ns: nanoseconds(record.at),
            level: record.level,
            target: record.target,
            message: &record.message,
            fields: &record.fields,
            instance: record.instance.as_deref(),
            environment: &record.environment,
        }
    }

    fn lend(&'a self) -> &'a Arc<Record> {
        &self.0
    }
}

fn nanoseconds(at: SystemTime) -> i64 {
    let clamped = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => clamped(since),
        Err(before) => -clamped(before.duration()),
    }
}

fn time(at_ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(at_ns.unsigned_abs());
    let at = if at_ns < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A module's name that lives for ever: there are as many as the host has modules, and no more are kept than that.
fn interned(target: &str) -> &'static str {
    const LIMIT: usize = 4096;
    static KNOWN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    match known.get(target) {
        Some(target) => target,
        None if known.len() >= LIMIT => "other",
        None => {
            let target: &'static str = target.to_owned().leak();
            known.insert(target);
            target
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_back_on_both_sides_of_1970() {
        for at_ns in [0, 1, -1, 1_700_000_000_123_456_789, -5_000_000_001] {
            assert_eq!(nanoseconds(time(at_ns)), at_ns);
        }
    }
}
