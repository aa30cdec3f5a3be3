//! Which layer wins, and that each value knows its own.

use std::time::Duration;

use host_config::{Origin, Profile};

use crate::Place;

/// `gpu.slots_per_gpu` set in ever more layers; each later one wins and is named.
#[test]
fn each_layer_wins_over_the_earlier_ones() {
    let key = "gpu.slots_per_gpu";
    let place = Place::new();
    assert_eq!(place.shown(key), "3 (default)");
    let place = place.system("10-a.toml", "[gpu]\nslots_per_gpu = 4\n");
    assert_eq!(place.shown(key), "4 (system/10-a.toml:2)");
    let place = place.system("20-b.toml", "\n\ngpu.slots_per_gpu = 5\n");
    assert_eq!(place.shown(key), "5 (system/20-b.toml:3)");
    let place = place.file("z.toml", "[gpu]\n\n\nslots_per_gpu = 6\n");
    assert_eq!(place.shown(key), "6 (z.toml:4)");
    let place = place.file("a.toml", "gpu = { slots_per_gpu = 7 }\n");
    assert_eq!(place.shown(key), "7 (a.toml:1)");
    let place = place.env("HOST_SERVICE__GPU__SLOTS_PER_GPU", "8");
    assert_eq!(place.shown(key), "8 ($HOST_SERVICE__GPU__SLOTS_PER_GPU)");
    let place = place.set("gpu.slots_per_gpu=9");
    assert_eq!(place.shown(key), "9 (--set gpu.slots_per_gpu=9)");
    let place = place.set("gpu.slots_per_gpu=10");
    assert_eq!(place.shown(key), "10 (--set gpu.slots_per_gpu=10)");
    assert_eq!(place.loaded().settings.gpu.slots_per_gpu, 10);
}

#[test]
fn the_profile_wins_over_the_defaults_and_loses_to_files() {
    let place = Place::new();
    assert_eq!(place.shown("drain.deadline"), "\"0s\" (profile localdev)");
    let place = place.system("x.toml", "[drain]\ndeadline = \"1h\"");
    assert_eq!(place.shown("drain.deadline"), "\"1h\" (system/x.toml:2)");
    assert_eq!(place.loaded().settings.drain.deadline, Duration::from_secs(3600));
}

#[test]
fn tables_are_merged_and_lists_replaced() {
    let place = Place::new()
        .file("a.toml", "[http]\nmax_waiting = 7\n[mandelbox]\nports = [\"80/tcp\"]")
        .file("b.toml", "[http]\nmax_connections = 9");
    let settings = place.loaded().settings;
    assert_eq!((settings.http.max_waiting, settings.http.max_connections), (7, 9));
    assert_eq!(settings.mandelbox.ports.len(), 1);
}

#[test]
fn only_toml_files_of_the_system_directory_count() {
    let place = Place::new().system("x.toml.disabled", "nonsense").system("README", "nonsense");
    assert_eq!(place.shown("gpu.slots_per_gpu"), "3 (default)");
}

#[test]
fn a_table_as_a_variable_comes_before_its_keys() {
    let place = Place::new()
        .env("HOST_SERVICE__HTTP__MAX_WAITING", "5")
        .env("HOST_SERVICE__HTTP", "{ max_waiting = 1, max_connections = 2 }");
    assert_eq!(place.shown("http.max_waiting"), "5 ($HOST_SERVICE__HTTP__MAX_WAITING)");
    assert_eq!(place.shown("http.max_connections"), "2 ($HOST_SERVICE__HTTP)");
}

#[test]
fn variables_of_others_are_ignored() {
    let place =
        Place::new().env("HOST_SERVICE_GPU", "x").env("host_service__gpu__poll", "x").env("PATH", "x");
    place.loaded();
}

#[test]
fn a_single_value_is_what_is_wanted() {
    let place = Place::new()
        .set("instance.name=123")
        .set("instance.id=true")
        .set("instance.region=1.50")
        .set("http.listen=[::1]:0")
        .set("mandelbox.command=[\"a\", \"b c\"]")
        .set("mandelbox.environment.LEVEL=7")
        .env("HOST_SERVICE__MANDELBOX__ENVIRONMENT__Mixed_Case", "2024-01-01")
        .set("mandelbox.limits = { pids = 9 }");
    let settings = place.loaded().settings;
    assert_eq!(settings.instance.name.unwrap().as_str(), "123");
    assert_eq!(settings.instance.id.as_deref(), Some("true"));
    assert_eq!(settings.instance.region.as_deref(), Some("1.50"), "as written");
    assert_eq!(settings.http.listen.to_string(), "[::1]:0");
    assert_eq!(settings.mandelbox.command, ["a", "b c"]);
    assert_eq!(settings.mandelbox.environment["LEVEL"].expose(), "7");
    assert_eq!(settings.mandelbox.environment["Mixed_Case"].expose(), "2024-01-01");
    assert_eq!(settings.mandelbox.limits.pids, Some(9));
    assert_eq!(settings.mandelbox.limits.cpu_shares, Some(2), "beside it the default stays");
    assert_eq!(place.shown("instance.name"), "\"123\" (--set instance.name=123)");
}

#[test]
fn empty_texts_and_zeros_unset() {
    let place = Place::new()
        .file("a.toml", "[admin]\ngroup = \"ops\"\n[mandelbox]\ncapacity = 3\nlimits.memory_bytes = 7000000")
        .set("admin.group=")
        .set("mandelbox.capacity=0")
        .set("mandelbox.limits.memory_bytes=0")
        .set("mandelbox.env.tty=");
    let settings = place.loaded().settings;
    assert_eq!(settings.admin.group, None);
    assert_eq!(settings.mandelbox.capacity, None);
    assert_eq!(settings.mandelbox.limits.memory_bytes, None);
    assert_eq!(settings.mandelbox.env.tty, None);
}

#[test]
fn the_argument_names_the_profile_before_the_variable() {
    let mut place = Place::new();
    place.sources.app_env = Some(" LocalDev ".to_owned());
    assert_eq!(place.loaded().profile, Profile::Localdev);
    place.sources.app_env = Some(String::new());
    assert_eq!(place.loaded().profile, Profile::Localdev);
    place.sources.app_env = Some("production".to_owned());
    assert!(place.error_starts_with("profile prod "));
    let place = place.profile("localdev");
    assert_eq!(place.loaded().profile, Profile::Localdev);
}

#[test]
fn everything_in_force_is_listed_in_order() {
    let loaded =
        Place::new().set("runtime.docker.endpoint=unix:///x").set("telemetry.\"odd name\".level=3").loaded();
    let keys: Vec<String> = loaded.effective().into_iter().map(|effective| effective.key).collect();
    let mut sorted = keys.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(keys, sorted);
    for key in [
        "runtime.plugin",
        "runtime.docker.endpoint",
        "telemetry.\"odd name\".level",
        "mandelbox.timeouts.claim",
        "mandelbox.environment.NVIDIA_DRIVER_CAPABILITIES",
        "instance.name",
    ] {
        assert!(keys.iter().any(|known| known == key), "{key} is not listed");
    }
    assert!(loaded.effective().iter().any(|effective| effective.origin == Origin::Default));
}

impl Place {
    fn error_starts_with(&self, start: &str) -> bool {
        self.errors()[0].starts_with(start)
    }
}
