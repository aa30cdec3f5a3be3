//! The variables that the fleet has for Sentry and logz.io.

use crate::Place;

fn plugins(place: &Place) -> String {
    place.loaded().settings.telemetry.plugins.join(" ")
}

#[test]
fn use_prod_logging_decides_over_profiles_and_files_and_leaves_others_alone() {
    for yes in ["1", "true", "YES", " on "] {
        assert_eq!(plugins(&Place::new().env("USE_PROD_LOGGING", yes)), "console sentry logzio", "{yes:?}");
    }
    let file = "[telemetry]\nplugins = [\"mine\", \"sentry\"]\n";
    assert_eq!(
        plugins(&Place::new().system("a.toml", file).env("USE_PROD_LOGGING", "1")),
        "mine sentry logzio"
    );
    for no in ["0", "false", "no", "off"] {
        assert_eq!(
            plugins(&Place::new().system("a.toml", file).env("USE_PROD_LOGGING", no)),
            "mine",
            "{no:?}"
        );
    }
    assert_eq!(plugins(&Place::new().env("USE_PROD_LOGGING", "")), "console");
}

#[test]
fn what_names_the_plugins_itself_wins_over_use_prod_logging() {
    let place = Place::new().env("USE_PROD_LOGGING", "1");
    assert_eq!(plugins(&place.set("telemetry.plugins=[]")), "");
    let place =
        Place::new().env("USE_PROD_LOGGING", "1").env("HOST_SERVICE__TELEMETRY__PLUGINS", "[\"logzio\"]");
    assert_eq!(plugins(&place), "logzio");
    assert!(
        Place::new().env("USE_PROD_LOGGING", "1").shown("telemetry.plugins").ends_with("($USE_PROD_LOGGING)")
    );
}

#[test]
fn use_prod_logging_is_yes_or_no() {
    assert_eq!(
        Place::new().env("USE_PROD_LOGGING", "maybe").error(),
        "$USE_PROD_LOGGING: \"maybe\" is neither; write 1, true, yes or on, or 0, false, no or off"
    );
}

#[test]
fn the_token_and_the_dsn_come_from_their_variables_and_are_not_shown() {
    let place = Place::new()
        .env("LOGZIO_SHIPPING_TOKEN", "1234567890")
        .env("SENTRY_DSN", "https://key@sentry.example/1")
        .system("a.toml", "[telemetry.logzio]\ntoken = \"of the file\"\n");
    let loaded = place.loaded();
    assert_eq!(loaded.section("telemetry", "logzio")["token"], "1234567890");
    assert_eq!(loaded.section("telemetry", "sentry")["dsn"], "https://key@sentry.example/1");
    assert_eq!(place.shown("telemetry.logzio.token"), "\"********\" ($LOGZIO_SHIPPING_TOKEN)");
    let place = place.set("telemetry.logzio.token=mine");
    assert_eq!(place.loaded().section("telemetry", "logzio")["token"], "mine");
}
