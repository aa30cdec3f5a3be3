//! Loading holds for any text: it answers, and what it answers is usable.

use proptest::prelude::*;

use crate::Place;

/// A line of something like a configuration: known and unknown names, right and wrong values.
fn line() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "runtime",
        "gpu",
        "http",
        "mandelbox",
        "limits",
        "mounts",
        "plugin",
        "listen",
        "memory_bytes",
        "docker",
        "x",
        "mandelbox.mounts",
        "mandelbox.environment",
        "telemetry.plugins",
        "\"odd key\"",
        "0",
    ]);
    let value = prop::sample::select(vec![
        "1",
        "-1",
        "1.5",
        "nan",
        "true",
        "\"10s\"",
        "\"sim\"",
        "[]",
        "[1, \"a\"]",
        "[{source = 1}]",
        "{}",
        "{ a = { b = 1 } }",
        "2024-01-01",
        "99999999999999999999",
        "'''\n'''",
        "\"\\u0000\"",
    ]);
    prop_oneof![
        name.clone().prop_map(|name| format!("[{name}]")),
        name.clone().prop_map(|name| format!("[[{name}]]")),
        (name.clone(), value.clone()).prop_map(|(name, value)| format!("{name} = {value}")),
        (name.clone(), name, value).prop_map(|(table, name, value)| format!("{table}.{name} = {value}")),
        "[ -~]{0,20}",
    ]
}

fn document() -> impl Strategy<Value = String> {
    prop_oneof![prop::collection::vec(line(), 0..8).prop_map(|lines| lines.join("\n")), any::<String>(),]
}

/// An answer is a configuration that can be shown, or errors that say something.
fn answers(place: &Place) {
    match place.load() {
        Ok(loaded) => {
            assert!(!loaded.effective().is_empty());
            for kind in ["runtime", "gpu", "pubsub", "telemetry"] {
                for name in loaded.sections(kind) {
                    assert!(loaded.section(kind, &name).is_object(), "{kind}.{name}");
                }
            }
        }
        Err(errors) => assert!(errors.iter().all(|error| !error.to_string().is_empty())),
    }
}

proptest! {
    #[test]
    fn any_file_is_answered(text in document()) {
        answers(&Place::new().file("x.toml", &text));
    }

    #[test]
    fn any_two_files_are_answered(one in document(), other in document()) {
        answers(&Place::new().file("x.toml", &one).file("y.toml", &other));
    }

    #[test]
    fn any_argument_and_variable_is_answered(name in "[A-Za-z_.\"]{0,20}", value in any::<String>()) {
        answers(&Place::new().set(&format!("{name}={value}")).set(&value));
        answers(&Place::new().env(&format!("HOST_SERVICE__{name}"), &value));
    }

    #[test]
    fn a_text_set_is_the_text_in_force(text in "[ -~äß€]{1,40}") {
        let given = serde_json::Value::from(text.clone()).to_string();
        let loaded = Place::new().set(&format!("instance.region={given}")).loaded();
        prop_assert_eq!(loaded.settings.instance.region, Some(text));
    }

    /// Without quotes, too, unless it is written as another text in quotes.
    #[test]
    fn a_bare_text_set_is_the_text_in_force(text in "[A-Za-z0-9:/.+_-]{1,40}") {
        let loaded = Place::new().set(&format!("instance.region={text}")).loaded();
        prop_assert_eq!(loaded.settings.instance.region, Some(text));
    }

    #[test]
    fn a_number_set_is_the_number_in_force(number in 1_u32..) {
        let loaded = Place::new().env("HOST_SERVICE__HTTP__MAX_WAITING", &number.to_string()).loaded();
        prop_assert_eq!(loaded.settings.http.max_waiting, number);
    }
}

/// What `config show` prints can be given back by `--set`, and says the same.
#[test]
fn what_is_shown_can_be_set() {
    let before = Place::new().set("runtime.docker.nodes=[{a = 'x\"y\\z', b = [1.5, true]}]").loaded();
    let shown = before.effective();
    let place =
        shown.iter().fold(Place::new(), |place, one| place.set(&format!("{}={}", one.key, one.value)));
    let after = place.loaded().effective();
    let plain = |all: &[host_config::Effective]| -> Vec<(String, String)> {
        all.iter().map(|one| (one.key.clone(), one.value.clone())).collect()
    };
    assert_eq!(plain(&after), plain(&shown));
    assert!(after.iter().all(|one| one.origin.is_user()));
}

/// Deep nesting must not exhaust the stack, however it is written.
#[test]
fn depth_is_refused() {
    let dotted = "a.".repeat(100_000) + "a";
    let lists = "[".repeat(100_000);
    for place in [
        Place::new().set(&format!("{dotted}=1")),
        Place::new().env(&format!("HOST_SERVICE__{}", dotted.replace('.', "__")), "1"),
        Place::new().file("x.toml", &format!("{dotted} = 1")),
        Place::new().file("x.toml", &format!("a = {lists}")),
        Place::new().file("x.toml", &format!("[{dotted}]\nb = 1")),
        Place::new().set(&format!("runtime.x.y={lists}")),
    ] {
        answers(&place);
    }
}
