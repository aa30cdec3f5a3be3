//! The admin API on a real socket, over a host whose engine and control plane are in memory. There is no
//! orchestrator here: the tests play it.

use std::{sync::Arc, time::Duration};

use host_config::Profile;
use host_core::{
    lifecycle::{EndReason, Event},
    planner::DrainCause,
    pubsub::MandelboxStatus,
    runtime::{Mount, Propagation, Runtime},
    secret::AesKey,
};
use secrecy::ExposeSecret;

use super::{
    body,
    views::{AllocateRequest, DrainRequest, LogsQuery, SpinUpRequest, StopRequest, UsageView},
};
use crate::{
    client::ClientError,
    host::DrainOrder,
    lobby::{Answer, Failure},
};

mod world;

use world::{LONG, World, app, container, id, refused};

#[tokio::test]
async fn the_status_is_the_hosts() {
    let world = World::new(Profile::Localdev).await;
    world.add("a");
    world.condition.send_modify(|condition| condition.runtime_error = Some("no engine".into()));
    let status = world.client.status().await.unwrap();
    assert_eq!((status.profile.as_str(), status.capacity), ("localdev", 2));
    assert_eq!((status.instance.name.as_str(), status.plugins.runtime.as_str()), ("host", "sim"));
    assert_eq!(status.leases.ttys, UsageView { held: 0, size: 2 });
    assert_eq!(status.leases.gpu_slots, None);
    assert_eq!(status.mandelboxes, [("claiming".to_owned(), 1)].into());
    assert_eq!(status.condition.runtime_error.as_deref(), Some("no engine"));
    world.end().await;
}

#[tokio::test]
async fn mandelboxes_are_listed_and_looked_into() {
    let world = World::new(Profile::Prod).await;
    let mandelbox = world.add("a");
    mandelbox.advance(Event::Won);
    mandelbox.update(|state| {
        state.ports = vec![("32262/tcp".parse().unwrap(), 20_000)];
        state.tty = Some(10);
    });
    mandelbox.advance(Event::End(EndReason::RowDeleted));
    let view = world.client.mandelbox(&id("a")).await.unwrap();
    assert_eq!((view.phase.as_str(), view.tty, view.user.as_str()), ("ending", Some(10), "somebody"));
    assert_eq!((view.ports[0].container.as_str(), view.ports[0].host), ("32262/tcp", 20_000));
    assert_eq!(view.end.as_ref().unwrap().reason, "row_deleted");
    assert_eq!(world.client.mandelboxes().await.unwrap().mandelboxes, [view]);
    assert_eq!(refused(world.client.mandelbox(&id("b")).await), "not_found");
    assert_eq!(refused(world.client.logs(&id("b"), LogsQuery::default()).await), "not_found");
    assert_eq!(refused(world.client.stop(&id("b"), &StopRequest::default()).await), "not_found");
    world.end().await;
}

#[tokio::test]
async fn a_stop_answers_when_the_mandelbox_is_gone() {
    let world = World::new(Profile::Prod).await;
    let mandelbox = world.add("a");
    mandelbox.advance(Event::Won);
    let owner = async {
        let order = mandelbox.end_ordered().await;
        assert_eq!((order.reason.clone(), order.grace), (EndReason::Stopped, Some(Duration::from_secs(3))));
        mandelbox.advance(Event::End(order.reason));
        mandelbox.advance(Event::Removed);
    };
    let (id, request) = (id("a"), StopRequest { grace_ms: Some(3000) });
    let ((), stopped) = tokio::join!(owner, world.client.stop(&id, &request));
    assert_eq!(stopped.unwrap().end.reason, "stopped");
    world.end().await;
}

#[tokio::test]
async fn an_allocation_reaches_the_control_plane_once() {
    let world = World::new(Profile::Localdev).await;
    let request = AllocateRequest { id: Some(id("mine")), ..AllocateRequest::default() };
    let view = world.client.allocate(&request).await.unwrap();
    let row = world.allocated().await;
    assert_eq!((row.id, row.user, row.app), (view.id, view.user, Some(app())));
    assert_eq!(row.status, MandelboxStatus::Allocated);
    assert_eq!(refused(world.client.allocate(&request).await), "conflict");
    world.end().await;
}

#[tokio::test]
async fn a_spin_up_delivers_the_data_and_answers_with_the_key() {
    let world = World::new(Profile::Localdev).await;
    let json_data = serde_json::json!({"dpi": 192});
    let request = SpinUpRequest { json_data: json_data.as_object().cloned(), ..SpinUpRequest::default() };
    let owner = async {
        let row = world.allocated().await;
        let mut seat = world.host.lobby().open(&row.id, &row.user);
        assert_eq!(seat.startup_data().await.json.expose_secret(), r#"{"dpi":192}"#);
        let ports = vec![("32263/udp".parse().unwrap(), 20_001), ("32262/tcp".parse().unwrap(), 20_000)];
        seat.answer(Ok(Arc::new(Answer { ports, aes_key: AesKey::from_bytes([0xab; 16]) })));
        (row.id, seat)
    };
    let ((id, _seat), view) = tokio::join!(owner, world.client.spin_up(&request));
    let view = view.unwrap();
    assert_eq!((view.id, view.aes_key.0.as_str()), (id.clone(), "ab".repeat(16).as_str()));
    assert_eq!(view.url.as_deref(), Some("http://127.0.0.1:20000/"));
    assert!(!format!("{:?}", view.aes_key).contains("abab"));
    let again = SpinUpRequest { id: Some(id), ..SpinUpRequest::default() };
    assert_eq!(refused(world.client.spin_up(&again).await), "already_delivered");
    world.end().await;
}

#[tokio::test]
async fn a_spin_up_that_fails_says_where() {
    let world = World::new(Profile::Localdev).await;
    let owner = async {
        let row = world.allocated().await;
        let stage = host_core::lifecycle::Stage::Create;
        let message = "no such image".into();
        world.host.lobby().refuse(&row.id, Failure::SpinUpFailed { stage, message });
    };
    let request = SpinUpRequest::default();
    let ((), result) = tokio::join!(owner, world.client.spin_up(&request));
    let Err(ClientError::Refused(view)) = result else { panic!("{result:?}") };
    assert_eq!(view.code, "spin_up_failed");
    assert!(view.error.contains("create: no such image"), "{}", view.error);
    world.end().await;
}

#[tokio::test]
async fn only_local_hosts_that_do_not_drain_allocate() {
    let world = World::new(Profile::Prod).await;
    assert_eq!(refused(world.client.allocate(&AllocateRequest::default()).await), "not_local");
    assert_eq!(refused(world.client.spin_up(&SpinUpRequest::default()).await), "not_local");
    world.end().await;
    let world = World::new(Profile::Localdevwithdb).await;
    world.condition.send_modify(|condition| condition.draining = Some(DrainCause::Signal));
    assert_eq!(refused(world.client.spin_up(&SpinUpRequest::default()).await), "draining");
    world.end().await;
}

#[tokio::test]
async fn a_drain_is_ordered_as_asked() {
    let mut world = World::new(Profile::Prod).await;
    world.add("a");
    let request = DrainRequest { force: true, deadline_ms: Some(1500) };
    assert_eq!(world.client.drain(&request).await.unwrap().mandelboxes, 1);
    let deadline = Some(Duration::from_millis(1500));
    let order = DrainOrder { cause: DrainCause::Operator, deadline, force: true };
    assert_eq!(world.drains.recv().await, Some(order));
    world.end().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_the_same_form() {
    let world = World::new(Profile::Localdev).await;
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let large = format!("{{\"user\":\"{}\"}}", "x".repeat(body::LIMIT_BYTES));
    for (request, status, code) in [
        (get("/"), 404, "unknown_path"),
        (get("/v1/drain"), 405, "wrong_method"),
        (get("/v1/mandelboxes/a%2Fb"), 400, "malformed"),
        (get("/v1/mandelboxes/%FF"), 400, "malformed"),
        (get("/v1/mandelboxes/a/logs?tail=some"), 400, "malformed"),
        (post("/v1/mandelboxes", "{"), 400, "malformed"),
        (post("/v1/mandelboxes", "{} {}"), 400, "malformed"),
        (post("/v1/mandelboxes", r#"{"app":"../x"}"#), 400, "malformed"),
        (post("/v1/mandelboxes/spin-up", r#"{"json_data":[]}"#), 400, "malformed"),
        (post("/v1/drain", r#"{"forced":true}"#), 400, "malformed"),
        (post("/v1/mandelboxes", &large), 413, "too_large"),
    ] {
        let (line, view) = world.raw(&request).await;
        let shown = &request[..request.len().min(60)];
        assert!(line.contains(&status.to_string()), "{shown:?}: {line}: {view:?}");
        assert_eq!(view.code, code, "{shown:?}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_followed_log_does_not_keep_the_service_alive() {
    let mut world = World::new(Profile::Localdev).await;
    let mandelbox = world.add("a");
    let mappings = Mount {
        source: world.scratch.path().to_owned(),
        target: crate::files::MAPPINGS_INSIDE.into(),
        read_only: false,
        propagation: Propagation::default(),
    };
    world.runtime.create(&container(&mandelbox, mappings)).await.unwrap();
    let follow = LogsQuery { follow: true, tail: None };
    let mut logs = world.client.logs(mandelbox.id(), follow).await.unwrap();
    world.runtime.start(&mandelbox.container.clone().into()).await.unwrap();
    let line = tokio::time::timeout(LONG, logs.next()).await.unwrap();
    assert_eq!(line.unwrap().unwrap(), "waits for .ready\n");
    world.stop.cancel();
    tokio::time::timeout(LONG, world.server.join_next()).await.unwrap();
    while let Ok(Some(_)) = logs.next().await {}
}
