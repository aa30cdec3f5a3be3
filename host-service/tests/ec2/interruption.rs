//! What EC2 is about to do to a host.

use std::time::{Duration, SystemTime};

use host_core::planner::DrainCause;
use host_service::{host::DrainOrder, interruption};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
    time::timeout,
};

use super::{
    identity::loaded,
    imds::{Imds, Mode},
};

const LONG: Duration = Duration::from_secs(30);

/// A watch that runs until this is dropped, and what it orders.
struct Watch {
    orders: UnboundedReceiver<DrainOrder>,
    _task: JoinSet<()>,
}

impl Watch {
    fn of(imds: &Imds, set: &[&str]) -> Self {
        let usual =
            ["interruption.poll=20ms", "drain.deadline=6h", "drain.grace=10s", "interruption.reserve=15s"];
        let set: Vec<_> = usual.iter().chain(set).copied().collect();
        let settings = loaded(&imds.endpoint, &set).settings;
        let (order, orders) = unbounded_channel();
        let watch = async move { interruption::watch(&settings, move |of| order.send(of).unwrap()).await };
        Self { orders, _task: JoinSet::from_iter([watch]) }
    }

    async fn order(&mut self) -> DrainOrder {
        let order = timeout(LONG, self.orders.recv()).await.expect("an order").unwrap();
        assert_eq!((order.cause, order.force), (DrainCause::Interruption, false));
        order
    }
}

fn action(after: Duration) -> String {
    let time = humantime::format_rfc3339_seconds(SystemTime::now() + after);
    format!(r#"{{"action":"terminate","time":"{time}"}}"#)
}

#[tokio::test]
async fn a_spot_instances_time_is_used_up_to_what_taking_down_needs() {
    let imds = Imds::start().await;
    let mut watch = Watch::of(&imds, &[]);
    imds.set("spot/instance-action", &action(Duration::from_secs(120)));
    let deadline = watch.order().await.deadline.unwrap();
    assert!((Duration::from_secs(60)..=Duration::from_secs(95)).contains(&deadline), "{deadline:?}");
    imds.set("spot/instance-action", &action(Duration::from_secs(20)));
    assert_eq!(watch.order().await.deadline, Some(Duration::ZERO), "sooner than before: a new notice");
    imds.set("spot/instance-action", r#"{"action":"stop","time":"soon"}"#);
    assert!(watch.order().await.deadline.unwrap() <= Duration::from_secs(95), "the usual notice");
    // The same notice again is no new order.
    let uses = imds.tokens();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(watch.orders.try_recv().is_err());
    assert_eq!(imds.tokens(), uses, "one session");
}

#[tokio::test]
async fn a_notice_never_gives_more_time_than_there_is_without_it() {
    let imds = Imds::start().await;
    imds.set("spot/instance-action", &action(Duration::from_secs(120)));
    let mut watch = Watch::of(&imds, &["drain.deadline=7s"]);
    assert_eq!(watch.order().await.deadline, Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_group_that_lets_the_instance_go_gives_its_hooks_time() {
    let imds = Imds::start().await;
    imds.set("autoscaling/target-lifecycle-state", "InService");
    let mut watch = Watch::of(&imds, &["interruption.autoscaling_time=5m"]);
    let mut deaf = Watch::of(&imds, &["interruption.autoscaling=false"]);
    imds.set("autoscaling/target-lifecycle-state", "Terminated");
    assert_eq!(watch.order().await.deadline, Some(Duration::from_secs(300 - 25)));
    imds.set("spot/instance-action", &action(Duration::from_secs(1)));
    assert_eq!(deaf.order().await.deadline, Some(Duration::ZERO), "the first that it hears of");
}

#[tokio::test]
async fn a_recommendation_is_followed_where_that_is_wanted() {
    let imds = Imds::start().await;
    imds.set("events/recommendations/rebalance", r#"{"noticeTime":"2026-01-01T00:00:00Z"}"#);
    let (mut watch, mut deaf) = (Watch::of(&imds, &["interruption.rebalance=true"]), Watch::of(&imds, &[]));
    assert_eq!(watch.order().await.deadline, None, "the usual time");
    imds.set("spot/instance-action", &action(Duration::from_secs(1)));
    assert_eq!(deaf.order().await.deadline, Some(Duration::ZERO));
}

#[tokio::test]
async fn a_metadata_service_that_fails_ends_nothing_and_is_asked_on() {
    let imds = Imds::start().await;
    let mut watch = Watch::of(&imds, &[]);
    for mode in [Mode::Status(500), Mode::Status(403), Mode::Page, Mode::Silence, Mode::NoTokens] {
        imds.script().mode = mode;
        tokio::time::sleep(Duration::from_millis(100)).await; // some looks in vain
        assert!(watch.orders.try_recv().is_err(), "{mode:?}");
    }
    imds.script().mode = Mode::Good;
    imds.set("spot/instance-action", &action(Duration::from_secs(120)));
    watch.order().await;
}

#[tokio::test]
async fn where_there_is_nothing_to_watch_the_watch_ends() {
    let imds = Imds::start().await;
    for set in ["interruption.poll=0s", "instance.metadata=static"] {
        let settings = loaded(&imds.endpoint, &[set]).settings;
        timeout(LONG, interruption::watch(&settings, |_| panic!("{set}"))).await.expect("its end");
    }
}
