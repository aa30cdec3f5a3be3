//! Nothing secret is logged, at any level, by anybody in this process.

use std::{
    fmt::{Debug, Write},
    sync::{Arc, Mutex},
};

use host_core::lifecycle::Stage;
use host_service::lobby::Failure;
use serde_json::json;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt, registry};

use super::{
    issuer::{Issuer, claims_but},
    world::{Setup, World, told, trusted},
};

/// Everything that is logged, as text.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        writeln!(self.0.lock().unwrap(), "{}={value:?}", field.name()).unwrap();
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut self.clone());
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        attributes.record(&mut self.clone());
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        values.record(&mut self.clone());
    }
}

#[tokio::test]
async fn no_secret_is_logged_or_repeated() {
    let log = Log::default();
    // For all threads: whether a place in the code is enabled is remembered for the whole process.
    tracing::subscriber::set_global_default(registry().with(log.clone())).unwrap();
    let (issuer, scratch) = (Issuer::new(), tempfile::tempdir().unwrap());
    let auth = trusted(&issuer, scratch.path());
    let world = World::with(Setup { auth, ..Setup::default() }).await;
    let secrets = ["SECRET-DATA", "SECRET-CONFIG-TOKEN", "SECRET-COOKIE", "SECRET-BOOKMARK"];
    let body = |id: &str, token: &str| {
        json!({
            "mandelbox_id": id, "jwt_access_token": token, "json_data": {"x": secrets[0]},
            "config_encryption_token": secrets[1], "cookies": secrets[2], "bookmarks": secrets[3],
        })
    };
    let token = issuer.token("ann");
    let good = body("m", &token);
    let (said, _seat) = tokio::join!(world.put(&good), world.mandelbox("m", "ann"));
    assert_eq!(said.body, told());

    let expired = issuer.rs256(&claims_but(json!({"exp": 1})));
    world
        .lobby
        .refuse(&"f".parse().unwrap(), Failure::SpinUpFailed { stage: Stage::Create, message: "no".into() });
    let mut wrong = body("m", &token);
    wrong["is_new_config_encryption_token"] = json!("SECRET-DATA");
    let refused = [body("nobody", &token), body("m", &expired), body("f", &token), wrong];
    let mut said = String::new();
    for body in &refused {
        said += &world.put(body).await.body.to_string();
    }
    let cut =
        format!("{{\"mandelbox_id\":\"m\",\"cookies\":\"SECRET-COOKIE\",\"jwt_access_token\":\"{token}\"");
    said += &world.connect().await.ask("PUT", "/json_transport", "", cut.as_bytes()).await.body.to_string();

    let log = log.0.lock().unwrap();
    assert!(
        log.contains("json_transport answered") && log.contains("json_transport refused"),
        "the log is seen"
    );
    for secret in secrets.into_iter().chain([&*token, &*expired, &*"ab".repeat(16)]) {
        assert!(!log.contains(secret), "{secret} was logged");
        assert!(!said.contains(secret), "{secret} was repeated");
    }
}
