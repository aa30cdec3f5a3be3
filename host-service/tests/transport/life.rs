//! How the server begins and ends, and requests that allocate.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use host_core::{ErrorKind, PluginError, pubsub::Allocation};
use host_service::{
    lobby::Lobby,
    transport::{Allocate, Auth, BuildError, OnRequest, Options, Server},
};
use serde_json::json;
use tokio::sync::Notify;

use super::{
    client::request,
    world::{LIMITS, LONG, Setup, World, options, told, until, within},
};

#[tokio::test]
async fn a_busy_port_is_named_with_its_remedy() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (listen, scratch) = (taken.local_addr().unwrap(), tempfile::tempdir().unwrap());
    let build = async |listen| {
        let options = Options { listen, ..options(scratch.path(), Auth::Off, LIMITS) };
        Server::build(options, Lobby::new(Setup::default().lobby), None).await.map(drop).unwrap_err()
    };
    let error = build(listen).await;
    let expected = format!("port {} is taken by another program on 127.0.0.1; ", listen.port());
    assert!(error.to_string().starts_with(&expected) && error.to_string().contains("http.listen"), "{error}");
    let error = build("192.0.2.1:4678".parse().unwrap()).await;
    assert!(
        matches!(error, BuildError::Listen { .. }) && error.to_string().contains("192.0.2.1:4678"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_in_flight_at_the_end_has_its_answer() {
    let mut world = World::new().await;
    let (mut idle, mut busy) = (world.connect().await, world.connect().await);
    idle.ask("GET", "/", "", b"").await;
    busy.send(request("PUT", "/json_transport", "", br#"{"mandelbox_id":"m"}"#)).await;
    world.waiting(1).await;
    world.stop.cancel();
    assert_eq!(within(idle.rest()).await, "", "nothing holds an idle connection");
    let address = world.address;
    within(async { while tokio::net::TcpStream::connect(address).await.is_ok() {} }).await;
    let (_seat, _) = world.mandelbox("m", "ann").await;
    assert_eq!(within(busy.hear()).await.body, told());
    world.ended().await;
}

#[tokio::test]
async fn what_takes_too_long_at_the_end_is_cut_off() {
    let mut setup = Setup { drain: Duration::from_millis(50), ..Setup::default() };
    setup.lobby.wait = LONG;
    let mut world = World::with(setup).await;
    let mut client = world.connect().await;
    client.send(request("PUT", "/json_transport", "", br#"{"mandelbox_id":"m"}"#)).await;
    world.waiting(1).await;
    world.stop.cancel();
    world.ended().await;
    assert_eq!(within(client.rest()).await, "");
}

/// Allocates as told, and remembers what.
struct Allocator {
    seen: Mutex<Vec<Allocation>>,
    go: Notify,
    result: fn() -> Result<(), PluginError>,
}

impl Allocator {
    fn new(result: fn() -> Result<(), PluginError>) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), go: Notify::new(), result })
    }

    fn seen(&self) -> Vec<Allocation> {
        self.seen.lock().unwrap().clone()
    }

    /// A world in which requests allocate, each when told to `go`.
    async fn world(self: &Arc<Self>) -> World {
        let this = self.clone();
        let allocate: Allocate = Arc::new(move |allocation| {
            let this = this.clone();
            async move {
                this.go.notified().await;
                this.seen.lock().unwrap().push(allocation);
                (this.result)()
            }
            .boxed()
        });
        let (user, app) = ("localdev_user_id".parse().unwrap(), "browsers/chrome".parse().unwrap());
        let on_request = Some(OnRequest { allocate, user, app });
        World::with(Setup { on_request, ..Setup::default() }).await
    }
}

fn conflict() -> Result<(), PluginError> {
    Err(PluginError::new(ErrorKind::Conflict, "it exists"))
}

fn unavailable() -> Result<(), PluginError> {
    Err(PluginError::new(ErrorKind::Unavailable, "the database does not answer"))
}

#[tokio::test]
async fn a_request_allocates_its_mandelbox_once() {
    let allocator = Allocator::new(|| Ok(()));
    let world = allocator.world().await;
    allocator.go.notify_one();
    let body = json!({"mandelbox_id": "m"});
    let mandelbox = async {
        until(|| allocator.seen().len() == 1).await;
        assert_eq!(world.lobby.waiting(), 1, "the request is there before the row is");
        world.mandelbox("m", "localdev_user_id").await
    };
    let (said, (seat, _)) = tokio::join!(world.put(&body), mandelbox);
    assert_eq!((said.status, said.body), (200, told()));
    assert_eq!(world.put(&body).await.body, told());
    let seen = allocator.seen();
    assert_eq!(seen.len(), 1, "asking again is not asking for another");
    assert_eq!((seen[0].id.as_str(), seen[0].user.as_str()), ("m", "localdev_user_id"));
    assert_eq!(seen[0].app.as_ref().unwrap().as_str(), "browsers/chrome");

    drop(seat);
    allocator.go.notify_one();
    let body = json!({"mandelbox_id": "m", "app_name": "another"});
    let again = async {
        until(|| allocator.seen().len() == 2).await;
        world.mandelbox("m", "localdev_user_id").await
    };
    let (said, _seat) = tokio::join!(world.put(&body), again);
    assert_eq!(said.status, 200, "once it is gone, the same id is a new mandelbox");
    let seen = allocator.seen();
    assert_eq!(seen[1].app.as_ref().unwrap().as_str(), "another");
    assert_ne!(seen[0].session, seen[1].session);
}

#[tokio::test]
async fn one_that_is_allocated_already_is_just_joined() {
    let allocator = Allocator::new(conflict);
    let world = allocator.world().await;
    allocator.go.notify_one();
    let mandelbox = async {
        until(|| allocator.seen().len() == 1).await;
        world.mandelbox("m", "somebody").await
    };
    let body = json!({"mandelbox_id": "m"});
    let (said, _seat) = tokio::join!(world.put(&body), mandelbox);
    assert_eq!(said.status, 200);
    let _seat = world.lobby.open(&"n".parse().unwrap(), &"somebody".parse().unwrap());
    let mut client = world.connect().await;
    client.send(request("PUT", "/json_transport", "", br#"{"mandelbox_id":"n"}"#)).await;
    assert_eq!(allocator.seen().len(), 1, "nothing is allocated for one that is there");
}

#[tokio::test]
async fn a_failed_allocation_is_told_at_once_and_may_be_tried_again() {
    let allocator = Allocator::new(unavailable);
    let world = allocator.world().await;
    for _ in 0..2 {
        allocator.go.notify_one();
        let said = world.put(&json!({"mandelbox_id": "m"})).await;
        assert_eq!(said.refused(), (503, "unavailable"));
        assert!(said.body["error"].as_str().unwrap().contains("the database does not answer"), "{said:?}");
    }
    assert_eq!(allocator.seen().len(), 2);
}

#[tokio::test]
async fn a_client_that_goes_does_not_take_its_allocation_back() {
    let allocator = Allocator::new(|| Ok(()));
    let mut world = allocator.world().await;
    let mut client = world.connect().await;
    client.send(request("PUT", "/json_transport", "", br#"{"mandelbox_id":"m"}"#)).await;
    world.waiting(1).await;
    drop(client);
    // Its connection is gone when the server would end but for the allocation.
    world.stop.cancel();
    allocator.go.notify_one();
    world.ended().await;
    assert_eq!(allocator.seen().len(), 1);
}
