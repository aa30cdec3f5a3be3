//! Who may have what.

use std::fs;

use host_service::transport::{BuildError, KeySource, KeysError, Server};
use serde_json::{Value, json};

use super::{
    issuer::{ISSUER, Issuer, RFC_TOKEN, claims, claims_but, hs256, now, signed},
    world::{LIMITS, Setup, World, options, told, trust, trusted},
};

/// A world that checks tokens, and who issues them.
async fn world() -> (World, Issuer) {
    let (issuer, scratch) = (Issuer::new(), tempfile::tempdir().unwrap());
    let auth = trusted(&issuer, scratch.path());
    (World::with(Setup { auth, ..Setup::default() }).await, issuer)
}

pub(super) fn with_token(id: &str, token: &str) -> Value {
    json!({"mandelbox_id": id, "jwt_access_token": token})
}

#[tokio::test]
async fn a_good_token_gets_its_users_mandelbox() {
    let (world, issuer) = world().await;
    let single = claims_but(json!({"aud": super::issuer::AUDIENCE, "nbf": now()}));
    let without_kid = issuer.rsa_signed(&json!({"alg": "RS256"}), &claims("ann"));
    for (id, token) in [
        ("a", issuer.token("ann")),
        ("b", issuer.es256(&claims("ann"))),
        ("c", issuer.rs256(&single)),
        ("d", without_kid),
        ("e", issuer.rs256(&claims_but(json!({"exp": now() - 5})))), // clocks differ
    ] {
        let body = with_token(id, &token);
        let (said, _seat) = tokio::join!(world.put(&body), world.mandelbox(id, "ann"));
        assert_eq!((said.status, said.body), (200, told()), "{id}");
    }
    let headers = format!("Authorization: bearer {}\r\n", issuer.token("ann"));
    let mut client = world.connect().await;
    let ask = client.ask("PUT", "/json_transport", &headers, br#"{"mandelbox_id":"h"}"#);
    let (said, _seat) = tokio::join!(ask, world.mandelbox("h", "ann"));
    assert_eq!((said.status, said.body), (200, told()), "in the header");
}

/// Rightly signed tokens that say something else than they must.
fn bad_claims(issuer: &Issuer) -> Vec<(&'static str, String)> {
    let rows = [
        ("token_expired", json!({"exp": now() - 60})),
        ("token_expired", json!({"exp": 0})),
        ("token_invalid", json!({"exp": null})),
        ("token_invalid", json!({"exp": "tomorrow"})),
        ("token_invalid", json!({"exp": -1})),
        ("token_invalid", json!({"nbf": now() + 60})),
        ("token_invalid", json!({"nbf": "tomorrow"})),
        ("token_invalid", json!({"iss": "https://issuer.example"})),
        ("token_invalid", json!({"iss": [ISSUER, "https://other.example/"]})),
        ("token_invalid", json!({"iss": null})),
        ("token_invalid", json!({"aud": "https://other.example"})),
        ("token_invalid", json!({"aud": []})),
        ("token_invalid", json!({"aud": null})),
        ("token_invalid", json!({"sub": null})),
        ("token_invalid", json!({"sub": ""})),
        ("token_invalid", json!({"sub": 7})),
        ("token_invalid", json!({"sub": "a\u{0}b"})),
        ("token_invalid", json!({"padding": "x".repeat(20_000)})),
    ];
    rows.map(|(code, changes)| (code, issuer.rs256(&claims_but(changes)))).to_vec()
}

/// Tokens that say what they must, and are not signed as they must be.
fn bad_signatures(issuer: &Issuer) -> Vec<String> {
    let (good, keys) = (issuer.token("ann"), issuer.keys());
    let modulus = keys["keys"][3]["n"].as_str().unwrap();
    let (head, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let header = |header: Value| issuer.rsa_signed(&header, &claims("ann"));
    let unsigned = |alg: &str| signed(&json!({"alg": alg}), &claims("ann"), |_| Vec::new());
    vec![
        unsigned("none"),
        unsigned("None"),
        unsigned("RS256"),
        hs256(b"secret", &claims("ann")),
        hs256(modulus.as_bytes(), &claims("ann")),
        header(json!({"alg": "RS512", "kid": "rsa"})),
        header(json!({"alg": "ES256", "kid": "elliptic"})),
        header(json!({"alg": "RS256", "kid": "unknown"})),
        header(json!({"alg": "RS256", "kid": "encryption"})),
        header(json!({"alg": "RS256", "kid": "elliptic"})),
        header(json!({"alg": "RS256", "kid": "rsa", "crit": ["exp"]})),
        header(json!({"kid": "rsa"})),
        RFC_TOKEN.to_owned(),
        format!("{head}.{payload}."),
        format!("{head}.{payload}"),
        format!("{head}.{payload}.{signature}.x"),
        format!("{head}.{payload}x.{signature}"),
        format!("{head}.{payload}.{}", signature.to_lowercase()),
        "..".into(),
        "a".repeat(500_000),
        format!("{}.{payload}.{signature}", "A".repeat(20_000)),
    ]
}

#[tokio::test]
async fn every_bad_token_is_told_401() {
    let (world, issuer) = world().await;
    let invalid = bad_signatures(&issuer).into_iter().map(|token| ("token_invalid", token));
    let rows = bad_claims(&issuer).into_iter().chain(invalid).chain([("token_missing", String::new())]);
    let mut client = world.connect().await;
    for (code, token) in rows {
        let said = client.put(&with_token("m", &token)).await;
        assert_eq!(said.refused(), (401, code), "{}", &token[..token.len().min(200)]);
        assert!(said.head.contains("www-authenticate: bearer\r\n"), "{said:?}");
        assert!(token.is_empty() || !said.body.to_string().contains(&token), "{said:?}");
    }
    assert_eq!(client.put(&json!({"mandelbox_id": "m"})).await.refused(), (401, "token_missing"));
    assert_eq!(
        client.put(&json!({"mandelbox_id": "../m"})).await.refused(),
        (401, "token_missing"),
        "first of all"
    );
    assert_eq!(world.lobby.waiting(), 0);
}

#[tokio::test]
async fn rfc_7515s_own_token_is_signed_rightly_and_made_for_somebody_else() {
    let (world, _) = world().await;
    let said = world.put(&with_token("m", RFC_TOKEN)).await;
    assert!(said.body["error"].as_str().unwrap().contains("lacks a claim"), "not its signature: {said:?}");
}

#[tokio::test]
async fn a_bad_token_in_the_header_is_refused_before_the_body_comes() {
    let (world, issuer) = world().await;
    let expired = issuer.rs256(&claims_but(json!({"exp": 1})));
    let mut client = world.connect().await;
    let head = format!(
        "PUT /json_transport HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {expired}\r\nContent-Length: 9\r\n\
         Expect: 100-continue\r\n\r\n"
    );
    client.send(head).await;
    assert_eq!(client.hear().await.refused(), (401, "token_expired"));
    let headers = format!("Authorization: Bearer {expired}\r\n");
    let body = with_token("m", &issuer.token("ann")).to_string();
    let said = world.connect().await.ask("PUT", "/json_transport", &headers, body.as_bytes()).await;
    assert_eq!(said.refused(), (401, "token_expired"), "what comes first counts");
}

#[tokio::test]
async fn another_users_token_gets_nothing_and_harms_nobody() {
    let (world, issuer) = world().await;
    let (ann, mallory) = (with_token("m", &issuer.token("ann")), with_token("m", &issuer.token("mallory")));
    let mandelbox = async {
        world.waiting(2).await;
        world.mandelbox("m", "ann").await
    };
    let (stranger, said, _seat) = tokio::join!(world.put(&mallory), world.put(&ann), mandelbox);
    assert_eq!(stranger.refused(), (403, "forbidden"));
    assert_eq!((said.status, said.body), (200, told()));
    assert_eq!(world.put(&mallory).await.refused(), (403, "forbidden"), "the answer is not for her either");
    assert_eq!(world.put(&ann).await.body, told());
    let renewed = issuer.rs256(&claims_but(json!({"exp": now() + 61})));
    let said = world.put(&with_token("m", &renewed)).await;
    assert_eq!(said.refused(), (409, "already_delivered"), "the same credentials are asked for");
}

#[tokio::test]
async fn without_keys_there_is_no_server() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("jwks.json");
    let build = async || {
        let auth = trust(KeySource::File(file.clone()));
        let lobby = host_service::lobby::Lobby::new(Setup::default().lobby);
        match Server::build(options(scratch.path(), auth, LIMITS), lobby, None).await {
            Err(BuildError::Keys(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(build().await, KeysError::Unreadable { .. }));
    for text in ["", "[]", "{}", r#"{"keys":{}}"#] {
        fs::write(&file, text).unwrap();
        assert!(matches!(build().await, KeysError::NotAKeySet { .. }), "{text}");
    }
    let short = "A".repeat(170);
    for key in [
        json!({"kty": "oct", "kid": "k", "k": "c2VjcmV0"}),
        json!({"kty": "RSA", "n": short, "e": "AQAB"}),
        json!({"kty": "RSA", "use": "enc", "n": "A".repeat(342), "e": "AQAB"}),
        json!({"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}),
        json!("nonsense"),
    ] {
        fs::write(&file, json!({"keys": [key]}).to_string()).unwrap();
        let error = build().await;
        assert!(matches!(error, KeysError::NoneUsable { found: 1, .. }), "{error}");
        assert!(error.to_string().contains("jwks.json"), "{error}");
    }
}
