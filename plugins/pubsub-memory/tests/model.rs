//! Any sequence of operations does what the simplest model of two tables does, and every watcher sees the outcome.
#![cfg(test)]

use std::time::Duration;

use futures::{FutureExt, StreamExt, stream::BoxStream};
use host_core::{
    ErrorKind, InstanceName, MandelboxId,
    pubsub::{
        Allocation, Claim, DesiredState, Heartbeat, InstanceFacts, InstanceStatus, MandelboxRow,
        MandelboxStatus, PubSub, Registered, Result, StaleAfter,
    },
};
use proptest::{collection::vec, prelude::*, sample::select};
use pubsub_memory::MemoryPubSub;

const HOSTS: usize = 3;
const MANDELBOXES: usize = 5;
/// Users and sessions that a mandelbox is given to.
const OWNERS: [(&str, &str); 3] = [("user-1", "session-1"), ("user-1", "session-2"), ("user-2", "session-1")];
const STALE_AFTER_S: (u64, u64) = (10, 90);

#[derive(Debug, Clone)]
enum Step {
    Register(usize),
    Claim(usize, usize, usize),
    SetStatus(usize, usize, MandelboxStatus),
    Heartbeat(usize),
    MarkDraining(usize),
    Remove(usize, usize),
    Unregister(usize),
    RemoveStale(usize, Vec<usize>),
    Allocate(usize, usize, usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (host, mandelbox, owner) = (0..HOSTS, 0..MANDELBOXES, 0..OWNERS.len());
    let status = select(MandelboxStatus::ALL);
    prop_oneof![
        2 => host.clone().prop_map(Step::Register),
        6 => (host.clone(), mandelbox.clone(), owner.clone()).prop_map(|(h, m, o)| Step::Claim(h, m, o)),
        4 => (host.clone(), mandelbox.clone(), status).prop_map(|(h, m, s)| Step::SetStatus(h, m, s)),
        1 => host.clone().prop_map(Step::Heartbeat),
        1 => host.clone().prop_map(Step::MarkDraining),
        2 => (host.clone(), mandelbox.clone()).prop_map(|(h, m)| Step::Remove(h, m)),
        1 => host.clone().prop_map(Step::Unregister),
        2 => (host.clone(), vec(mandelbox.clone(), 0..3)).prop_map(|(h, w)| Step::RemoveStale(h, w)),
        6 => (host, mandelbox, owner).prop_map(|(h, m, o)| Step::Allocate(h, m, o)),
        2 => (1u64..60).prop_map(Step::Wait),
    ]
}

/// A row of the model: mandelbox, host, whose of [`OWNERS`], status, age in seconds.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    mandelbox: usize,
    host: usize,
    owner: usize,
    status: MandelboxStatus,
    age_s: u64,
}

#[derive(Debug, Default)]
struct Model {
    hosts: [Option<InstanceStatus>; HOSTS],
    rows: Vec<Row>,
}

/// What a step answers, as far as the model can say.
#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    Registered(Registered),
    Won(bool),
    Removed(Vec<usize>),
    Failed(ErrorKind),
}

impl Model {
    fn row(&mut self, host: usize, mandelbox: usize) -> Option<&mut Row> {
        let own = |row: &&mut Row| row.host == host && row.mandelbox == mandelbox;
        self.rows.iter_mut().find(own)
    }

    fn apply(&mut self, step: &Step) -> Answer {
        match step {
            Step::Register(host) => match self.hosts[*host] {
                Some(InstanceStatus::Draining) => {
                    return Answer::Registered(Registered::Unwanted(InstanceStatus::Draining));
                }
                _ => {
                    self.hosts[*host] = Some(InstanceStatus::Active);
                    return Answer::Registered(Registered::Active);
                }
            },
            Step::Claim(host, mandelbox, owner) => {
                let is_wanted =
                    |row: &&mut Row| row.status == MandelboxStatus::Allocated && row.owner == *owner;
                let Some(row) = self.row(*host, *mandelbox).filter(is_wanted) else {
                    return Answer::Won(false);
                };
                row.status = MandelboxStatus::Connecting;
                return Answer::Won(true);
            }
            Step::SetStatus(host, mandelbox, to) => {
                if let Some(row) = self.row(*host, *mandelbox)
                    && row.status < *to
                {
                    row.status = *to;
                }
            }
            Step::Heartbeat(_) => {}
            Step::MarkDraining(host) => {
                if self.hosts[*host].is_some() {
                    self.hosts[*host] = Some(InstanceStatus::Draining);
                }
            }
            Step::Remove(host, mandelbox) => {
                self.rows.retain(|row| (row.host, row.mandelbox) != (*host, *mandelbox));
            }
            Step::Unregister(host) => {
                self.hosts[*host] = None;
                self.rows.retain(|row| row.host != *host);
            }
            Step::RemoveStale(host, working_on) => {
                return Answer::Removed(self.remove_stale(*host, working_on));
            }
            Step::Allocate(host, mandelbox, owner) => return self.allocate(*host, *mandelbox, *owner),
            Step::Wait(seconds) => self.rows.iter_mut().for_each(|row| row.age_s += seconds),
        }
        Answer::Done
    }

    fn remove_stale(&mut self, host: usize, working_on: &[usize]) -> Vec<usize> {
        let is_stale = |row: &Row| {
            let too_old = match row.status {
                MandelboxStatus::Allocated => row.age_s > STALE_AFTER_S.0,
                MandelboxStatus::Connecting => row.age_s > STALE_AFTER_S.1,
                _ => false,
            };
            row.host == host && too_old && !working_on.contains(&row.mandelbox)
        };
        let mut removed: Vec<_> =
            self.rows.iter().filter(|row| is_stale(row)).map(|row| row.mandelbox).collect();
        self.rows.retain(|row| !is_stale(row));
        removed.sort_unstable();
        removed
    }

    fn allocate(&mut self, host: usize, mandelbox: usize, owner: usize) -> Answer {
        if self.rows.iter().any(|row| row.mandelbox == mandelbox) {
            return Answer::Failed(ErrorKind::Conflict);
        }
        if self.hosts[host].is_none() {
            return Answer::Failed(ErrorKind::NotFound);
        }
        self.rows.push(Row { mandelbox, host, owner, status: MandelboxStatus::Allocated, age_s: 0 });
        Answer::Done
    }

    /// What a watch of this host must show.
    fn desired(&self, host: usize) -> (Option<InstanceStatus>, Vec<(MandelboxId, MandelboxStatus)>) {
        let own = self.rows.iter().filter(|row| row.host == host);
        let mut rows: Vec<_> = own.map(|row| (id(row.mandelbox), row.status)).collect();
        rows.sort();
        (self.hosts[host], rows)
    }
}

fn name(host: usize) -> InstanceName {
    format!("host-{host}").parse().unwrap()
}

fn id(mandelbox: usize) -> MandelboxId {
    format!("mandelbox-{mandelbox}").parse().unwrap()
}

fn facts(host: usize) -> InstanceFacts {
    InstanceFacts {
        name: name(host),
        cloud_id: format!("i-{host}"),
        image_id: "ami-1".to_owned(),
        region: "us-east-1".to_owned(),
        instance_type: "g4dn.xlarge".to_owned(),
        ip: "192.0.2.1".to_owned(),
        commit: "0123456".to_owned(),
    }
}

/// The row as a host has seen it that takes it for this owner's.
fn wanted(pubsub: &MemoryPubSub, mandelbox: usize, owner: usize) -> MandelboxRow {
    let (user, session) = OWNERS[owner];
    let stored = pubsub.mandelbox(&id(mandelbox));
    MandelboxRow {
        id: id(mandelbox),
        user: user.parse().unwrap(),
        session: session.parse().unwrap(),
        app: None,
        status: MandelboxStatus::Allocated,
        created_ms: stored.map_or(0, |(_, row)| row.created_ms),
    }
}

async fn apply(pubsub: &MemoryPubSub, step: &Step) -> Answer {
    let answer = match step {
        Step::Register(host) => {
            let answer = pubsub.register(&facts(*host), &Heartbeat::default()).await;
            answer.map(Answer::Registered)
        }
        Step::Claim(host, mandelbox, owner) => {
            let answer = pubsub.claim(&name(*host), &wanted(pubsub, *mandelbox, *owner)).await;
            answer.map(|claim| Answer::Won(claim != Claim::Lost))
        }
        Step::SetStatus(host, mandelbox, to) => {
            done(pubsub.set_status(&name(*host), &id(*mandelbox), *to).await)
        }
        Step::Heartbeat(host) => done(pubsub.heartbeat(&name(*host), &Heartbeat::default()).await),
        Step::MarkDraining(host) => done(pubsub.mark_draining(&name(*host)).await),
        Step::Remove(host, mandelbox) => done(pubsub.remove(&name(*host), &id(*mandelbox)).await),
        Step::Unregister(host) => done(pubsub.unregister(&name(*host)).await),
        Step::RemoveStale(host, working_on) => {
            let after = StaleAfter {
                allocated: Duration::from_secs(STALE_AFTER_S.0),
                connecting: Duration::from_secs(STALE_AFTER_S.1),
            };
            let working_on: Vec<_> = working_on.iter().copied().map(id).collect();
            let answer = pubsub.remove_stale(&name(*host), after, &working_on).await;
            answer.map(|removed| Answer::Removed(numbers(&removed)))
        }
        Step::Allocate(host, mandelbox, owner) => {
            let (user, session) = OWNERS[*owner];
            let allocation = Allocation {
                id: id(*mandelbox),
                user: user.parse().unwrap(),
                session: session.parse().unwrap(),
                app: None,
            };
            done(pubsub.allocate(&name(*host), &allocation).await)
        }
        Step::Wait(seconds) => {
            tokio::time::advance(Duration::from_secs(*seconds)).await;
            Ok(Answer::Done)
        }
    };
    answer.unwrap_or_else(|error| Answer::Failed(error.kind()))
}

fn done(answer: Result<()>) -> Result<Answer> {
    answer.map(|()| Answer::Done)
}

fn numbers(ids: &[MandelboxId]) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..MANDELBOXES).filter(|n| ids.contains(&id(*n))).collect();
    numbers.sort_unstable();
    numbers
}

/// The last state that the stream has to offer; `None` when it has no new one.
fn latest(watch: &mut BoxStream<'static, Result<DesiredState>>) -> Option<DesiredState> {
    let mut latest = None;
    while let Some(state) = watch.next().now_or_never() {
        latest = Some(state.unwrap().unwrap());
    }
    latest
}

proptest! {
    #[test]
    fn it_does_what_two_simple_tables_do(steps in vec((step(), any::<bool>()), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (pubsub, mut model) = (MemoryPubSub::new(), Model::default());
            let mut watches = Vec::new();
            for host in 0..HOSTS {
                watches.push((pubsub.watch(&name(host)).await.unwrap(), None));
            }
            for (step, look) in steps {
                prop_assert_eq!(apply(&pubsub, &step).await, model.apply(&step), "{:?}", step);
                if !look {
                    continue;
                }
                for (host, (watch, seen)) in watches.iter_mut().enumerate() {
                    *seen = latest(watch).or(seen.take());
                    let seen = seen.as_ref().unwrap();
                    let mut rows: Vec<_> = seen.mandelboxes.iter().map(|row| (row.id.clone(), row.status)).collect();
                    rows.sort();
                    prop_assert_eq!((seen.instance, rows), model.desired(host), "host {} after {:?}", host, step);
                }
            }
            Ok(())
        })?;
    }
}
