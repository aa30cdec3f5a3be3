//! Every way of being wrong: the place, and the remedy.

use crate::Place;

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_name() {
    let file = |text: &str| Place::new().file("x.toml", text).error();
    assert_eq!(
        file("\n[runtime]\nplugn = \"sim\""),
        "unknown key runtime.plugn in x.toml:3; did you mean runtime.plugin?"
    );
    assert_eq!(file("[runtme]\nplugin = \"sim\""), "unknown key runtme in x.toml:1; did you mean runtime?");
    assert_eq!(
        file("mandelbox.memory_bytes = 1"),
        "unknown key mandelbox.memory_bytes in x.toml:1; did you mean mandelbox.limits.memory_bytes?"
    );
    assert_eq!(
        file("[[mandelbox.mounts]]\nsource = \"/a\"\ntarget = \"/b\"\n[[mandelbox.mounts]]\nsorce = \"/a\""),
        "unknown key mandelbox.mounts[1].sorce in x.toml:5; did you mean mandelbox.mounts[1].source?"
    );
    assert_eq!(file("metrics.interval = 1"), "unknown key metrics.interval in x.toml:1; known there: listen");
    assert_eq!(
        file("runtime.endpoint = \"x\""),
        "unknown key runtime.endpoint in x.toml:1; a plugin's own settings are in its section, [runtime.<plugin>]"
    );
    assert_eq!(
        Place::new().env("HOST_SERVICE__GPU__PLUGINS", "sim").error(),
        "unknown key gpu.plugins in $HOST_SERVICE__GPU__PLUGINS; did you mean gpu.plugin?"
    );
    assert_eq!(
        Place::new().set("htp.listen=x").error(),
        "unknown key htp in --set htp.listen=x; did you mean http?"
    );
}

#[test]
fn a_wrong_type_says_what_is_wanted_and_what_was_found() {
    let set = |text: &str| Place::new().set(text).error();
    for (text, message) in [
        ("http.max_waiting=many", "expected a whole number from 0 to 4294967295, found \"many\""),
        ("http.max_waiting=-1", "expected a whole number from 0 to 4294967295, found \"-1\""),
        ("http.max_waiting=1.5", "expected a whole number from 0 to 4294967295, found \"1.5\""),
        ("mandelbox.terminal=yes", "expected true or false, found \"yes\""),
        ("telemetry.plugins=console", "expected a list, such as [\"a\", \"b\"], found \"console\""),
        ("mandelbox.limits=5", "expected a table, found \"5\""),
        (
            "http.listen=localhost",
            "expected an address with a port, such as \"127.0.0.1:4678\" or \"[::]:4678\"",
        ),
        ("instance.ip=here", "expected an IP address, such as \"127.0.0.1\" or \"::\""),
        (
            "mandelbox.pull=allways",
            "expected \"missing\" or \"always\" or \"never\", found \"allways\"; did you mean \"always\"?",
        ),
        (
            "gpu.poll=5",
            "expected a duration with its unit, such as \"10s\", \"1m 30s\" or \"6h\", of at most a year, found \"5\"",
        ),
        ("mandelbox.image={ap}:x", "only {app} and {environment} are replaced, found \"{ap}:x\""),
        (
            "mandelbox.tty_range=63",
            "expected a range, lower number first, such as \"10000-29999\", found \"63\"",
        ),
    ] {
        let key = text.split('=').next().unwrap();
        assert_eq!(set(text), format!("{key} in --set {text}: {message}"));
    }
    assert_eq!(
        Place::new().file("x.toml", "[http]\n# note\nmax_waiting = \"9\"").error(),
        "http.max_waiting in x.toml:3: expected a whole number from 0 to 4294967295, found \"9\""
    );
    assert_eq!(
        Place::new().file("x.toml", "[instance]\nname = 9").error(),
        "instance.name in x.toml:2: expected a text in quotes, found 9"
    );
    assert_eq!(
        Place::new().file("x.toml", "http = 9").error(),
        "http in x.toml:1: expected a table, found 9"
    );
    assert_eq!(
        Place::new().file("x.toml", "[[mandelbox.tmpfs]]\ntarget = \"/a\"").error(),
        "mandelbox.tmpfs[0] in x.toml:1: size_bytes is missing; it has no default here"
    );
    assert_eq!(
        Place::new().file("x.toml", "mandelbox.capabilities = [\n\"CHOWN\",\n\"CAP_KILL\"]").error(),
        "mandelbox.capabilities[1] in x.toml:3: \"CAP_KILL\" is no Linux capability; write its name without CAP_, \
         for example SYS_NICE"
    );
}

#[test]
fn a_mistake_that_a_later_layer_would_hide_is_told_all_the_same() {
    let place = Place::new().file("x.toml", "[http]\nmax_waiting = \"9\"").set("http.max_waiting=9");
    assert!(place.error().starts_with("http.max_waiting in x.toml:2: "));
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_layers() {
    let place = Place::new()
        .file("x.toml", "[gpu]\npol = \"1s\"\npoll = 3\n[mandelbox]\nports = [\"0/tcp\"]\nmounts = 3")
        .file("y.toml", "[metrics]\nlisten = \"nowhere\"")
        .env("HOST_SERVICE__GPU__TIMEOUT", "soon")
        .set("drain.grace=1h")
        .set("oops.a=1");
    let keys: Vec<String> =
        place.load().unwrap_err().iter().map(|error| error.key().unwrap().to_owned()).collect();
    assert_eq!(
        keys,
        [
            "gpu.pol",
            "gpu.poll",
            "mandelbox.mounts",
            "mandelbox.ports[0]",
            "metrics.listen",
            "gpu.timeout",
            "oops",
            "drain.grace",
        ]
    );
}

#[test]
fn broken_toml_is_told_by_line_and_column() {
    let place = Place::new().file("x.toml", "[http]\nlisten = 127.0.0.1\n").file("y.toml", "a = 1\na = 2\n");
    let errors = place.errors();
    assert!(errors[0].starts_with("x.toml:2:"), "{errors:?}");
    assert!(errors[1].starts_with("y.toml:2:1: duplicate key"), "{errors:?}");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let mut place = Place::new();
    place.sources.files = vec![place.path("none.toml"), place.path("")];
    std::fs::write(place.path("latin1.toml"), b"a = \"\xe4\"").unwrap();
    place.sources.files.push(place.path("latin1.toml"));
    std::fs::write(place.path("large.toml"), vec![b'#'; (1 << 20) + 1]).unwrap();
    place.sources.files.push(place.path("large.toml"));
    assert_eq!(
        place.errors(),
        [
            "cannot read none.toml: there is no such file; give the path of one, or leave it out",
            "cannot read : it is a directory; give the path of a file",
            "cannot read latin1.toml: it is not UTF-8 text",
            "cannot read large.toml: it is larger than 1 MiB; is it the right file?",
        ]
    );
}

#[test]
fn a_system_directory_that_is_none_is_told() {
    let mut place = Place::new().file("x", "");
    place.sources.system_dir = place.sources.files.pop().unwrap();
    assert!(place.error().starts_with("cannot read x: "));
}

#[test]
fn arguments_and_variables_without_a_key_are_refused() {
    for (text, message) in [
        ("runtime.plugin", "--set runtime.plugin: no value; write --set key=value"),
        ("=x", "--set : no key; write for example --set runtime.plugin=sim"),
        ("a b=x", "--set a b: no key; write for example --set runtime.plugin=sim"),
    ] {
        assert_eq!(Place::new().set(text).error(), message);
    }
    for name in ["HOST_SERVICE__", "HOST_SERVICE__A____B", "HOST_SERVICE__A__"] {
        assert_eq!(
            Place::new().env(name, "x").error(),
            format!("${name}: no key; write for example HOST_SERVICE__RUNTIME__PLUGIN for runtime.plugin")
        );
    }
}

#[test]
fn an_unknown_profile_is_told_with_its_place_beside_broken_files() {
    let mut place = Place::new().profile("prd").file("x.toml", "[");
    let errors = place.errors();
    assert_eq!(errors[0], "--profile prd: unknown profile \"prd\"; did you mean prod?");
    assert!(errors[1].starts_with("x.toml:1:"), "{errors:?}");
    place.sources.profile = None;
    place.sources.files.clear();
    place.sources.app_env = Some("stage".to_owned());
    assert_eq!(
        place.error(),
        "$APP_ENV: unknown profile \"stage\"; there are localdev, localdevwithdb, dev, staging and prod"
    );
}

#[test]
fn errors_are_shown_one_per_line() {
    let errors = Place::new().set("a=1").set("b=1").load().unwrap_err();
    assert_eq!(errors.to_string().lines().count(), 2);
    assert_eq!(errors.into_iter().count(), 2);
}
