//! What tests of the host can do to it.
#![cfg(test)]

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt};
use host_core::{
    ErrorKind, InstanceName, Retry,
    pubsub::{
        Allocation, Claim, Heartbeat, InstanceFacts, InstanceStatus, MandelboxStatus, PubSub, Registered,
        StaleAfter,
    },
};
use pubsub_memory::{Fault, MemoryPubSub, Operation};

fn facts() -> InstanceFacts {
    InstanceFacts {
        name: host(),
        cloud_id: "i-1".to_owned(),
        image_id: "ami-1".to_owned(),
        region: "us-east-1".to_owned(),
        instance_type: "g4dn.xlarge".to_owned(),
        ip: "192.0.2.1".to_owned(),
        commit: "0123456".to_owned(),
    }
}

fn host() -> InstanceName {
    "host-1".parse().unwrap()
}

fn allocation(id: &str) -> Allocation {
    Allocation {
        id: id.parse().unwrap(),
        user: "user-1".parse().unwrap(),
        session: "session-1".parse().unwrap(),
        app: None,
    }
}

async fn registered() -> MemoryPubSub {
    let pubsub = MemoryPubSub::new();
    let answer = pubsub.register(&facts(), &Heartbeat::default()).await.unwrap();
    assert_eq!(answer, Registered::Active);
    pubsub
}

#[tokio::test]
async fn registering_makes_the_row_where_there_is_none() {
    let pubsub = registered().await;
    let row = pubsub.instance(&host()).unwrap();
    assert_eq!((row.status, row.facts), (InstanceStatus::Active, Some(facts())));
}

#[tokio::test]
async fn a_rebuilt_host_on_the_same_machine_registers_with_its_new_facts() {
    let pubsub = registered().await;
    let rebuilt = InstanceFacts { commit: "fedcba9".to_owned(), ..facts() };
    let answer = pubsub.register(&rebuilt, &Heartbeat::default()).await.unwrap();
    assert_eq!(answer, Registered::Active);
    assert_eq!(pubsub.instance(&host()).unwrap().facts, Some(rebuilt));
}

#[tokio::test]
async fn a_refused_call_changes_nothing() {
    let pubsub = registered().await;
    pubsub.fault_next(Operation::Allocate, 2, Fault::Refuse(ErrorKind::Unavailable));
    for _ in 0..2 {
        let error = pubsub.allocate(&host(), &allocation("a")).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later));
        assert!(pubsub.desired(&host()).mandelboxes.is_empty());
    }
    pubsub.allocate(&host(), &allocation("a")).await.unwrap();
    assert_eq!(pubsub.calls(Operation::Allocate), 3);
}

#[tokio::test]
async fn a_call_that_loses_its_answer_has_taken_effect() {
    let pubsub = registered().await;
    let new = allocation("a");
    pubsub.allocate(&host(), &new).await.unwrap();
    let (_, row) = pubsub.mandelbox(&new.id).unwrap();
    pubsub.fault(Operation::Claim, Fault::LoseAnswer(ErrorKind::Timeout));
    let error = pubsub.claim(&host(), &row).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    pubsub.heal();
    assert_eq!(pubsub.claim(&host(), &row).await.unwrap(), Claim::Lost);
    let (_, row) = pubsub.mandelbox(&new.id).unwrap();
    assert_eq!(row.status, MandelboxStatus::Connecting);
}

#[tokio::test]
async fn a_hung_call_goes_on_when_the_fault_is_lifted() {
    let pubsub = registered().await;
    pubsub.fault(Operation::MarkDraining, Fault::Hang);
    let host = host();
    let mut call = pubsub.mark_draining(&host);
    assert!((&mut call).now_or_never().is_none());
    assert_eq!(pubsub.desired(&host).instance, Some(InstanceStatus::Active));
    assert_eq!(pubsub.calls(Operation::MarkDraining), 1, "a hung call has begun");
    pubsub.heartbeat(&host, &Heartbeat::default()).await.unwrap();
    pubsub.heal();
    call.await.unwrap();
    assert_eq!(pubsub.desired(&host).instance, Some(InstanceStatus::Draining));
}

#[tokio::test]
async fn a_hung_call_meets_the_fault_that_follows() {
    let pubsub = registered().await;
    pubsub.fault(Operation::Unregister, Fault::Hang);
    let host = host();
    let mut call = pubsub.unregister(&host);
    assert!((&mut call).now_or_never().is_none());
    pubsub.fault_next(Operation::Unregister, 1, Fault::Refuse(ErrorKind::Denied));
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Denied);
    assert!(pubsub.instance(&host).is_some());
}

#[tokio::test]
async fn a_dropped_hung_call_has_no_effect() {
    let pubsub = registered().await;
    pubsub.fault(Operation::Unregister, Fault::Hang);
    assert!(pubsub.unregister(&host()).now_or_never().is_none());
    pubsub.heal();
    assert!(pubsub.instance(&host()).is_some());
}

#[tokio::test]
async fn disconnecting_ends_every_watch_with_its_reason() {
    let pubsub = registered().await;
    let mut watch = pubsub.watch(&host()).await.unwrap();
    assert!(watch.next().await.unwrap().is_ok());
    pubsub.disconnect();
    let error = watch.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn watches_end_with_the_control_plane() {
    let pubsub = registered().await;
    let mut watch = pubsub.watch(&host()).await.unwrap();
    drop(pubsub);
    assert!(watch.next().await.unwrap().is_ok());
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn what_changes_no_desired_state_wakes_no_watcher() {
    let pubsub = registered().await;
    let mut watch = pubsub.watch(&host()).await.unwrap();
    watch.next().await;
    pubsub.heartbeat(&host(), &Heartbeat::default()).await.unwrap();
    pubsub.remove(&host(), &"a".parse().unwrap()).await.unwrap();
    assert!(watch.next().now_or_never().is_none());
}

#[tokio::test]
async fn until_waits_through_changes_and_disconnections() {
    let pubsub = Arc::new(registered().await);
    let name = host();
    let mut waiting = std::pin::pin!(pubsub.until(&name, |state| state.mandelboxes.len() == 2));
    assert!((&mut waiting).now_or_never().is_none());
    pubsub.allocate(&host(), &allocation("a")).await.unwrap();
    assert!((&mut waiting).now_or_never().is_none());
    pubsub.disconnect();
    assert!((&mut waiting).now_or_never().is_none());
    pubsub.allocate(&host(), &allocation("b")).await.unwrap();
    assert_eq!(waiting.now_or_never().unwrap().mandelboxes.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn paused_time_decides_what_is_stale() {
    let pubsub = registered().await;
    let after = StaleAfter { allocated: Duration::from_secs(10), connecting: Duration::from_secs(90) };
    pubsub.allocate(&host(), &allocation("a")).await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(pubsub.remove_stale(&host(), after, &[]).await.unwrap().is_empty());
    tokio::time::advance(Duration::from_millis(1)).await;
    let removed = pubsub.remove_stale(&host(), after, &[]).await.unwrap();
    assert_eq!(removed, ["a".parse().unwrap()]);
}

#[tokio::test]
async fn times_that_make_no_sense_do_no_harm() {
    let pubsub = registered().await;
    let after = StaleAfter { allocated: Duration::MAX, connecting: Duration::from_secs(90) };
    for (id, created_ms) in [("past", i64::MIN), ("future", i64::MAX)] {
        pubsub.allocate(&host(), &allocation(id)).await.unwrap();
        let (_, mut row) = pubsub.mandelbox(&id.parse().unwrap()).unwrap();
        row.created_ms = created_ms;
        row.status = MandelboxStatus::Connecting;
        pubsub.put_mandelbox(&host(), row).unwrap();
    }
    let removed = pubsub.remove_stale(&host(), after, &[]).await.unwrap();
    assert_eq!(removed, ["past".parse().unwrap()]);
}

#[tokio::test]
async fn a_mandelbox_belongs_to_one_host() {
    let pubsub = registered().await;
    pubsub.allocate(&host(), &allocation("a")).await.unwrap();
    let (_, row) = pubsub.mandelbox(&"a".parse().unwrap()).unwrap();
    let other: InstanceName = "host-2".parse().unwrap();
    assert_eq!(pubsub.put_mandelbox(&other, row.clone()).unwrap_err().kind(), ErrorKind::NotFound);
    let facts = InstanceFacts { name: other.clone(), ..facts() };
    pubsub.insert_instance(facts, InstanceStatus::Active);
    assert_eq!(pubsub.put_mandelbox(&other, row).unwrap_err().kind(), ErrorKind::Conflict);
}
