//! Nothing that is shown holds a secret.

use crate::Place;

const SECRET: &str = "hunter2";

fn place() -> Place {
    Place::new()
        .file(
            "a.toml",
            "[pubsub.postgres]\nurl = \"postgres://user:hunter2@host/db\"\n[telemetry.sentry]\ndsn = \"https://hunter2@s/1\"\n\
             [mandelbox.environment]\nAPI_TOKEN = \"hunter2\"\nDB = \"postgres://u:hunter2@h\"\nPLAIN = \"shown\"\n",
        )
        .env("HOST_SERVICE__PUBSUB__HASURA__ADMIN_SECRET", SECRET)
        .set("telemetry.logzio={token = \"hunter2\", level = 3}")
        .set("pubsub.memory.password=hunter2")
}

#[test]
fn what_is_in_force_is_shown_without_secrets_and_given_with_them() {
    let loaded = place().loaded();
    let effective = loaded.effective();
    assert!(!format!("{effective:?}").contains(SECRET));
    let shown = |key: &str| effective.iter().find(|one| one.key == key).unwrap().value.clone();
    assert_eq!(shown("pubsub.postgres.url"), "\"postgres://user:********@host/db\"");
    assert_eq!(shown("pubsub.hasura.admin_secret"), "\"********\"");
    assert_eq!(shown("telemetry.logzio.token"), "\"********\"");
    assert_eq!(shown("telemetry.logzio.level"), "3");
    assert_eq!(shown("mandelbox.environment.API_TOKEN"), "\"********\"");
    assert_eq!(shown("mandelbox.environment.PLAIN"), "\"shown\"");
    assert_eq!(loaded.section("pubsub", "memory")["password"], SECRET);
    assert_eq!(loaded.settings.mandelbox.environment["API_TOKEN"].expose(), SECRET);
}

#[test]
fn paths_and_names_of_secrets_are_shown() {
    let place = Place::new().set("http.key=/k").set("http.certificate=/c");
    assert!(place.shown("http.key").starts_with("\"/k\""));
    assert!(place.shown("mandelbox.env.aes_key").starts_with("\"FRACTAL_AES_KEY\""));
}

#[test]
fn debug_shows_no_secret() {
    let place = place();
    let loaded = place.loaded();
    assert!(!format!("{loaded:?}{:?}{:?}", loaded.settings, place.sources).contains(SECRET));
}

#[test]
fn errors_show_no_secret() {
    let place = place()
        .set("pubsub.password=hunter2")
        .set("auth.tokens={a = \"hunter2\"}")
        .set("http.max_waiting=a://u:hunter2@h")
        .set("pubsub.memory.tokens=hunter2")
        .file("c.toml", "[mandelbox.environment]\nTOKEN = 20240101\n")
        .set("runtime.sim.secret hunter2")
        .file("b.toml", "[pubsub.postgres]\npassword = hunter2\n");
    let unread = place.load().unwrap_err();
    assert!(!format!("{unread}{unread:?}").replace("secret hunter2", "").contains(SECRET), "{unread}");
    let mut place = place;
    place.sources.files.pop();
    place.sources.set.pop();
    let errors = place.load().unwrap_err();
    assert_eq!(errors.iter().count(), 4, "{errors}");
    assert!(!format!("{errors}{errors:?}").contains(SECRET), "{errors}");
    assert!(!format!("{errors}{errors:?}").contains("20240101"), "{errors}");
}

#[test]
fn a_plugins_complaint_about_a_secret_does_not_quote_it() {
    let loaded = Place::new()
        .set("pubsub.postgres.password=20240101")
        .set("pubsub.postgres.url=a://u:hunter2@h")
        .loaded();
    let complaint = |path: &str, message: &str| {
        let error = host_core::registry::SectionError { path: path.to_owned(), message: message.to_owned() };
        loaded.section_error("pubsub", "postgres", &error).to_string()
    };
    assert!(!complaint("password", "invalid type: integer `20240101`, expected a string").contains("2024"));
    assert!(!complaint("url", "cannot use a://u:hunter2@h").contains(SECRET));
}
