//! What clients must not be able to do.

use std::num::NonZeroU32;

use host_core::UserId;
use host_service::transport::{Limits, Quota};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    runtime::Runtime,
    task::JoinSet,
};

use super::{
    client::{hear, request},
    world::{LIMITS, Setup, World, told, within},
};

const LIMIT: usize = LIMITS.body_limit_bytes;

/// Of exactly that length.
fn body(length: usize) -> Vec<u8> {
    let rest = length - r#"{"mandelbox_id":"m","cookies":""}"#.len();
    format!(r#"{{"mandelbox_id":"m","cookies":"{}"}}"#, "c".repeat(rest)).into_bytes()
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = b"PUT /json_transport HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in body.chunks(60_000) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

#[tokio::test]
async fn a_body_may_have_one_mebibyte_and_not_one_byte_more() {
    let world = World::new().await;
    for (length, status) in [(LIMIT, 408), (LIMIT + 1, 413), (7 * LIMIT, 413)] {
        for bytes in [request("PUT", "/json_transport", "", &body(length)), chunked(&body(length))] {
            let mut client = world.connect().await;
            client.send(bytes).await; // all of it: a client that sends does not read
            let said = within(client.hear()).await;
            assert_eq!(said.status, status, "{length}: {said:?}");
            let code = if status == 413 { "too_large" } else { "not_allocated" };
            assert_eq!(said.code(), code);
        }
    }
}

#[tokio::test]
async fn what_is_announced_as_too_large_need_not_be_sent() {
    let world = World::new().await;
    for announced in ["1048577", "9000000000000000000"] {
        let mut client = world.connect().await;
        let head = "PUT /json_transport HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: ";
        client.send(format!("{head}{announced}\r\n\r\n")).await;
        assert_eq!(within(client.hear()).await.refused(), (413, "too_large"));
        assert_eq!(within(client.rest()).await, "", "and the connection ends");
    }
}

#[tokio::test]
async fn who_speaks_http_is_told_to_speak_https() {
    let world = World::new().await;
    for first in [request("PUT", "/json_transport", "", b"{}"), b"GET / HTTP/1.0\r\n\r\n".to_vec()] {
        let mut stream = world.dial().await;
        stream.write_all(&first).await.unwrap();
        let said = within(hear(&mut stream)).await;
        assert_eq!(said.refused(), (400, "plain_http"));
        assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap_or(0), 0, "then it is closed");
    }
}

#[tokio::test]
async fn garbage_instead_of_tls_disturbs_nobody() {
    let world = World::new().await;
    let mut client = world.connect().await;
    let tls_1_0 =
        b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\0\0\x02\0\x2f\x01\0";
    for garbage in [&[0_u8; 4096][..], &[22, 3, 1, 255, 255, 0], &[22; 20_000], b"\xff\xfe", b"ssh", tls_1_0]
    {
        let mut stream = world.dial().await;
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        // At most an alert, then the end or a reset.
        let _ = within(stream.read_to_end(&mut rest)).await;
        assert!(rest.len() < 20, "{rest:?}");
    }
    assert_eq!(client.ask("GET", "/", "", b"").await.status, 404);
    assert_eq!(world.connect().await.ask("GET", "/", "", b"").await.status, 404);
}

#[tokio::test]
async fn broken_http_ends_its_connection_and_no_other() {
    let world = World::new().await;
    for broken in [
        "PUT /json_transport HTTP/9.9\r\n\r\n".to_owned(),
        "PUT /json_transport HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(),
        "PUT /json_transport HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
        "PUT /json_transport HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
        format!("PUT /json_transport HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000)),
        "\0\0\0\0\r\n\r\n".to_owned(),
    ] {
        let mut client = world.connect().await;
        let _ = client.0.write_all(broken.as_bytes()).await;
        let _ = client.0.flush().await;
        let text = within(client.rest()).await;
        assert!(text.starts_with("HTTP/1.1 4"), "{text:?} to {:?}", &broken[..60]);
    }
    assert_eq!(world.connect().await.ask("GET", "/", "", b"").await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_at_once_each_have_their_own_answer() {
    let world = std::sync::Arc::new(World::new().await);
    let user: UserId = "ann".parse().unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..1000_u16 {
        let (world, user) = (world.clone(), user.clone());
        tasks.spawn(async move {
            let id = format!("m{n}");
            let body = json!({"mandelbox_id": id, "json_data": {"n": n}});
            match n % 4 {
                // Nobody allocates these; those do not hold up the others.
                0 => assert_eq!(world.put(&body).await.refused(), (408, "not_allocated")),
                1 => assert_eq!(world.put(&json!({"mandelbox_id": n})).await.refused(), (400, "malformed")),
                _ => {
                    let (said, (seat, _)) =
                        tokio::join!(world.put(&body), world.mandelbox(&id, user.as_str()));
                    assert_eq!((said.status, said.body), (200, told()));
                    drop(seat);
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(world.lobby.waiting(), 0);
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_at_once_and_places_come_back() {
    let setup = Setup { limits: Limits { max_connections: 2, ..LIMITS }, ..Setup::default() };
    let world = World::with(setup).await;
    let (mut first, second) = (world.connect().await, world.connect().await);
    let mut third = world.dial().await;
    let read = within(third.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(first.ask("GET", "/", "", b"").await.status, 404, "those that are there notice nothing");
    drop(second);
    within(async {
        loop {
            let stream = world.dial().await;
            if let Ok(mut client) = world.handshake(stream).await {
                assert_eq!(client.ask("GET", "/", "", b"").await.status, 404);
                break;
            }
        }
    })
    .await;
}

/// Bodies that are nearly right, so that every check is reached.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,30}".prop_map(Value::from),
        Just(json!("{}")),
        Just(json!("m")),
        Just(json!({"a": [1, {"b": null}]})),
        Just(json!([[], {}])),
    ];
    let names = prop::sample::select(vec![
        "mandelbox_id",
        "jwt_access_token",
        "json_data",
        "app_name",
        "config_encryption_token",
        "is_new_config_encryption_token",
        "cookies",
        "bookmarks",
        "else",
    ]);
    let object = prop::collection::vec((names, value), 0..10).prop_map(|fields| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{:?}:{value}", name)).collect();
        format!("{{{}}}", fields.join(",")).into_bytes()
    });
    (object, prop::option::of((any::<prop::sample::Index>(), any::<u8>()))).prop_map(|(mut bytes, change)| {
        if let Some((place, byte)) = change {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes
    })
}

#[test]
fn any_bytes_have_a_well_formed_answer() {
    let runtime = Runtime::new().unwrap();
    let mut setup = Setup::default();
    setup.lobby.wait = std::time::Duration::ZERO;
    let world = runtime.block_on(World::with(setup));
    let client = std::cell::RefCell::new(runtime.block_on(world.connect()));
    let any_bytes = prop::collection::vec(any::<u8>(), 0..300);
    proptest!(ProptestConfig::with_cases(2000), |(bytes in prop_oneof![any_bytes, nearly()])| {
        let mut client = client.borrow_mut();
        let said = runtime.block_on(within(client.ask("PUT", "/json_transport", "", &bytes)));
        let known = matches!(said.refused(), (400, "malformed") | (408, "not_allocated"));
        prop_assert!(known, "{said:?}");
    });
}

/// Not every machine lets one process have that many open files; then it is as many as there may be.
fn many_files() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let most = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |most| usize::try_from(most).unwrap());
    10_000.min(most.saturating_sub(1000))
}

#[tokio::test]
async fn ten_thousand_idle_connections_of_one_address_harm_nobody_else() {
    let quota = Quota { connections: NonZeroU32::new(64), ..LIMITS.quota };
    let limits = Limits { max_connections: 100, quota, ..LIMITS };
    let world = World::with(Setup { limits, ..Setup::default() }).await;
    let count = many_files();
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(world.dial().await);
    }
    // Another address of this machine.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = within(socket.connect(world.address)).await.unwrap();
    let mut other = world.handshake(stream).await.unwrap();
    assert_eq!(other.ask("GET", "/", "", b"").await.status, 404, "with {count} idle connections of another");
    let last = within(idle.last_mut().unwrap().read(&mut [0; 1])).await;
    assert!(matches!(last, Ok(0) | Err(_)), "{last:?}");
    drop(idle);
    within(async {
        loop {
            let stream = world.dial().await;
            if world.handshake(stream).await.is_ok() {
                break; // its places came back
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_address_that_asks_too_often_is_told_429() {
    let quota = Quota { request_rate: NonZeroU32::new(1), ..LIMITS.quota };
    let world = World::with(Setup { limits: Limits { quota, ..LIMITS }, ..Setup::default() }).await;
    let mut client = world.connect().await;
    let mut told = Vec::new();
    for _ in 0..50 {
        told.push(client.ask("GET", "/", "", b"").await);
    }
    assert_eq!(told[0].status, 404);
    let refused = told.iter().find(|said| said.status == 429).expect("a limit");
    assert_eq!(refused.refused(), (429, "too_many"));
    assert!(refused.head.contains("retry-after"), "{refused:?}");
}

#[tokio::test]
async fn handshakes_that_never_end_take_no_more_than_their_time() {
    let limits =
        Limits { max_connections: 20, handshake_timeout: std::time::Duration::from_millis(300), ..LIMITS };
    let world = World::with(Setup { limits, ..Setup::default() }).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let mut stream = world.dial().await;
        stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        stalled.push(stream);
    }
    within(async {
        loop {
            let stream = world.dial().await;
            if world.handshake(stream).await.is_ok() {
                break;
            }
        }
    })
    .await;
}
