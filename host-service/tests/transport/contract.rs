//! The contract, row by row.

use host_core::{MandelboxId, lifecycle::Stage};
use host_service::lobby::Failure;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::world::{Setup, World, told, until, within};

fn id(text: &str) -> MandelboxId {
    text.parse().unwrap()
}

#[tokio::test]
async fn the_request_may_come_before_the_mandelbox_and_after_it() {
    let world = World::new().await;
    let body = json!({"mandelbox_id": "m", "json_data": r#"{"dpi": 96}"#});
    let before = async {
        world.waiting(1).await;
        world.mandelbox("m", "ann").await
    };
    let (said, (_seat, data)) = tokio::join!(world.put(&body), before);
    assert_eq!((said.status, said.body), (200, told()));
    assert_eq!(data.json.expose_secret(), r#"{"dpi": 96}"#);
    assert!(
        said.head.contains("content-type: application/json") && said.head.contains("cache-control: no-store")
    );

    let body = json!({"mandelbox_id": "n"});
    let (said, (_seat, data)) = tokio::join!(world.put(&body), world.mandelbox("n", "ann"));
    assert_eq!((said.status, said.body), (200, told()));
    assert_eq!(data.json.expose_secret(), "{}", "startup data is not needed");
}

#[tokio::test]
async fn every_field_reaches_the_mandelbox_as_it_was_sent() {
    let world = World::new().await;
    let body = r#" {"mandelbox_id":"m","json_data":{"z": 1.50, "a":"ä"},"app_name":"browsers/chrome",
        "config_encryption_token":"0123456789","is_new_config_encryption_token":true,
        "cookies":"c\"ookies","bookmarks":"b\u00f6","jwt_access_token":null,"a field of the future":{"x":[1]}}"#;
    let client = async { world.connect().await.ask("PUT", "/json_transport", "", body.as_bytes()).await };
    let (said, (_seat, data)) = tokio::join!(client, world.mandelbox("m", "ann"));
    assert_eq!(said.status, 200, "{said:?}");
    let shown =
        |secret: &Option<secrecy::SecretString>| secret.as_ref().map(|s| s.expose_secret().to_owned());
    assert_eq!(data.json.expose_secret(), r#"{"z": 1.50, "a":"ä"}"#);
    assert_eq!(shown(&data.config_encryption_token).as_deref(), Some("0123456789"));
    assert!(data.is_new_config_encryption_token);
    assert_eq!(shown(&data.cookies).as_deref(), Some("c\"ookies"));
    assert_eq!(shown(&data.bookmarks).as_deref(), Some("bö"));
    assert_eq!(data.app.unwrap().as_str(), "browsers/chrome");
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let world = World::new().await;
    let mut client = world.connect().await;
    for path in ["/", "/json_transport/", "/json_transport/x", "/JSON_TRANSPORT", "/healthz", "/..%2fetc"] {
        for (method, body) in [("PUT", "{}"), ("GET", "")] {
            let said = client.ask(method, path, "", body.as_bytes()).await;
            assert_eq!(said.refused(), (404, "unknown_path"), "{method} {path}");
        }
    }
    for method in ["GET", "POST", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let said = client.ask(method, "/json_transport", "", b"{}").await;
        assert_eq!(said.refused(), (405, "wrong_method"), "{method}");
        assert!(said.head.contains("allow: put\r\n"), "{said:?}");
    }
}

/// Bodies, and what their refusal says.
const MALFORMED: [(&str, &str); 25] = [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("\u{feff}{}", "not JSON"),
    ("{}{}", "not JSON"),
    (r#"{"mandelbox_id":"m"}x"#, "not JSON: line 1, column 21"),
    ("null", "one JSON object"),
    (r#""secret""#, "one JSON object"),
    (r#"["m",null,null,null,null,null,null,null]"#, "one JSON object"),
    (r#"{"mandelbox_id":"m","mandelbox_id":"n"}"#, "no field comes twice"),
    ("{}", "mandelbox_id is missing"),
    (r#"{"mandelbox_id":null}"#, "mandelbox_id is missing"),
    (r#"{"mandelbox_id":7}"#, "mandelbox_id must be a string"),
    (r#"{"mandelbox_id":""}"#, "mandelbox_id must be 1 to 64"),
    (r#"{"mandelbox_id":"../secret"}"#, "mandelbox_id must be 1 to 64"),
    (r#"{"mandelbox_id":"m","jwt_access_token":{}}"#, "jwt_access_token must be a string"),
    (r#"{"mandelbox_id":"m","json_data":"secret"}"#, "json_data must be a JSON object"),
    (r#"{"mandelbox_id":"m","json_data":"[]"}"#, "json_data must be a JSON object"),
    (r#"{"mandelbox_id":"m","json_data":["secret"]}"#, "json_data must be a JSON object"),
    (r#"{"mandelbox_id":"m","json_data":false}"#, "json_data must be a JSON object"),
    (
        r#"{"mandelbox_id":"m","config_encryption_token":"secret"}"#,
        "config_encryption_token must be a string of at",
    ),
    (
        r#"{"mandelbox_id":"m","config_encryption_token":1234567890}"#,
        "config_encryption_token must be a string",
    ),
    (r#"{"mandelbox_id":"m","is_new_config_encryption_token":"secret"}"#, "token must be true or false"),
    (r#"{"mandelbox_id":"m","cookies":["secret"]}"#, "cookies must be a string"),
    (r#"{"mandelbox_id":"m","bookmarks":{"secret":1}}"#, "bookmarks must be a string"),
    (r#"{"mandelbox_id":"m","app_name":"../secret"}"#, "app_name must be an application's name"),
];

#[tokio::test]
async fn what_is_malformed_is_named() {
    let world = World::new().await;
    let mut client = world.connect().await;
    let (open, close) = ("[".repeat(500), "]".repeat(500));
    let deep = format!(r#"{{"mandelbox_id":"m","json_data":{{"x":{open}{close}}}}}"#);
    let too_deep = (&*deep, "json_data must be a JSON object");
    for (body, text) in MALFORMED.into_iter().chain([too_deep]) {
        let said = client.ask("PUT", "/json_transport", "", body.as_bytes()).await;
        assert_eq!(said.refused(), (400, "malformed"), "{body}");
        let error = said.body["error"].as_str().unwrap();
        assert!(error.contains(text) && !error.contains("secret"), "{body}: {error}");
    }
    let said = client.ask("PUT", "/json_transport", "", b"{\"mandelbox_id\":\"\xff\"}").await;
    assert_eq!(said.refused(), (400, "malformed"));
    assert_eq!(world.lobby.waiting(), 0);
}

#[tokio::test]
async fn each_failure_of_the_lobby_has_its_status() {
    let mut setup = Setup::default();
    setup.lobby.max_waiting = 1;
    let world = World::with(setup).await;
    let body = |id: &str| json!({"mandelbox_id": id});
    assert_eq!(world.put(&body("nobody")).await.refused(), (408, "not_allocated"));

    let taken = body("taken");
    let (said, (seat, _)) = tokio::join!(world.put(&taken), world.mandelbox("taken", "ann"));
    assert_eq!(said.status, 200);
    let other = json!({"mandelbox_id": "taken", "json_data": {"other": 1}});
    assert_eq!(world.put(&other).await.refused(), (409, "already_delivered"));
    drop(seat);

    let message = "the image chrome is not on this host".to_owned();
    world.lobby.refuse(&id("failed"), Failure::SpinUpFailed { stage: Stage::Image, message });
    let said = world.put(&body("failed")).await;
    assert_eq!(said.refused(), (500, "spin_up_failed"));
    assert!(said.body["error"].as_str().unwrap().contains("image: the image chrome"), "{said:?}");

    world.lobby.refuse(&id("down"), Failure::Unavailable("the engine does not answer".into()));
    let said = world.put(&body("down")).await;
    assert_eq!(said.refused(), (503, "unavailable"));
    assert!(said.head.contains("retry-after: 1\r\n"), "{said:?}");

    let mut first = world.connect().await;
    first.send(super::client::request("PUT", "/json_transport", "", br#"{"mandelbox_id":"one"}"#)).await;
    world.waiting(1).await;
    let said = world.put(&body("two")).await;
    assert_eq!(said.refused(), (429, "too_many"));
    assert!(said.head.contains("retry-after: 1\r\n"), "{said:?}");

    world.lobby.close(Failure::Draining);
    assert_eq!(within(first.hear()).await.refused(), (503, "draining"));
    assert_eq!(world.put(&body("three")).await.refused(), (503, "draining"));
}

#[tokio::test]
async fn the_identical_request_gets_the_identical_answer() {
    let world = World::new().await;
    let body = json!({"mandelbox_id": "m", "json_data": {"x": 1}, "cookies": "c"});
    let both = async { tokio::join!(world.put(&body), world.put(&body)) };
    let ((first, second), (_seat, _)) = tokio::join!(both, world.mandelbox("m", "ann"));
    assert_eq!((first.status, &first.body, second.status, &second.body), (200, &told(), 200, &told()));
    assert_eq!(world.put(&body).await.body, told(), "and again");
    for (field, value) in [
        ("json_data", json!({"x": 2})),
        ("json_data", json!("{\"x\":1, \"y\":1}")),
        ("cookies", json!("d")),
        ("cookies", Value::Null),
        ("bookmarks", json!("")),
        ("config_encryption_token", json!("0123456789")),
        ("is_new_config_encryption_token", json!(true)),
        ("app_name", json!("another")),
        ("jwt_access_token", json!("other credentials")),
    ] {
        let mut other = body.clone();
        other[field] = value;
        assert_eq!(world.put(&other).await.refused(), (409, "already_delivered"), "{other}");
    }
}

#[tokio::test]
async fn a_client_that_goes_cancels_nothing_and_may_ask_again() {
    let world = World::new().await;
    let body = json!({"mandelbox_id": "m", "json_data": {"x": 1}});
    let mut client = world.connect().await;
    client.send(super::client::request("PUT", "/json_transport", "", body.to_string().as_bytes())).await;
    world.waiting(1).await;
    drop(client);
    let (_seat, data) = world.mandelbox("m", "ann").await;
    assert_eq!(data.json.expose_secret(), r#"{"x":1}"#);
    assert_eq!(world.put(&body).await.body, told());

    let mut seat = world.lobby.open(&id("n"), &"ann".parse().unwrap());
    let body = json!({"mandelbox_id": "n"});
    let mut client = world.connect().await;
    client.send(super::client::request("PUT", "/json_transport", "", body.to_string().as_bytes())).await;
    within(seat.startup_data()).await;
    drop(client);
    seat.answer(super::world::answer());
    assert_eq!(world.put(&body).await.body, told(), "during the spin-up, too");
    until(|| world.lobby.waiting() == 0).await;
}
