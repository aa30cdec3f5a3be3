//! Plugins' own sections.

use host_core::registry::{Context, Plugin, SectionError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Place;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Section {
    endpoint: String,
    retries: u32,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read by serde")]
struct Node {
    port: u16,
}

/// What a real plugin's factory says about its section.
#[track_caller]
fn complaint(section: &Value) -> SectionError {
    let build = |_: Section, _: Context| async { unreachable!("nothing is built here") };
    let plugin: Plugin<()> = Plugin::new("docker", build);
    plugin.check(section).expect_err("the section was accepted")
}

#[track_caller]
fn told(place: &Place) -> String {
    let loaded = place.loaded();
    let error = complaint(&loaded.section("runtime", "docker"));
    loaded.section_error("runtime", "docker", &error).to_string()
}

#[test]
fn a_section_is_given_to_its_plugin_as_it_was_written() {
    let loaded = Place::new()
        .file("a.toml", "[runtime.docker]\nendpoint = \"unix:///x\"\nretries = 2\n[runtime.other]\n")
        .set("runtime.docker.retries=3")
        .set("runtime.docker.ratio=0.5")
        .set("runtime.docker.nodes=[{port = 1}, {port = 2}]")
        .loaded();
    assert_eq!(
        loaded.section("runtime", "docker"),
        json!({"endpoint": "unix:///x", "retries": 3, "ratio": 0.5, "nodes": [{"port": 1}, {"port": 2}]})
    );
    assert_eq!(loaded.section("runtime", "other"), json!({}));
    assert_eq!(loaded.section("runtime", "podman"), Value::Null);
    assert_eq!(loaded.section("gpu", "poll"), Value::Null, "a setting of the host's is no section");
    assert_eq!(loaded.sections("runtime"), ["docker", "other"]);
    assert!(loaded.sections("gpu").is_empty());
}

#[test]
fn a_plugin_that_does_not_know_a_key_is_answered_with_place_and_nearest_name() {
    let place = Place::new().file("a.toml", "[runtime.docker]\n\nendpont = \"x\"\n");
    assert_eq!(
        told(&place),
        "unknown key runtime.docker.endpont in a.toml:3; did you mean endpoint?"
            .replace("a.toml", &place.path("a.toml").display().to_string())
    );
    let place = Place::new().set("runtime.docker.nodes=[{prt = 1}]");
    assert_eq!(
        told(&place),
        "unknown key runtime.docker.nodes[0].prt in --set runtime.docker.nodes=[{prt = 1}]; did you mean port?"
    );
    let place = Place::new().env("HOST_SERVICE__RUNTIME__DOCKER__COLOUR", "red");
    assert_eq!(
        told(&place),
        "unknown key runtime.docker.colour in $HOST_SERVICE__RUNTIME__DOCKER__COLOUR; known there: endpoint, retries, nodes"
    );
}

#[test]
fn a_plugin_that_wants_another_type_is_answered_with_the_place() {
    let place = Place::new().set("runtime.docker.nodes=[{port = 1}, {port = -1}]");
    assert_eq!(
        told(&place),
        "runtime.docker.nodes[1].port in --set runtime.docker.nodes=[{port = 1}, {port = -1}]: \
         invalid value: integer `-1`, expected u16"
    );
    let place = Place::new().set("runtime.docker.endpoint=123");
    assert_eq!(
        told(&place),
        "runtime.docker.endpoint in --set runtime.docker.endpoint=123: invalid type: integer `123`, expected a \
         string; put it in quotes of TOML's to have a text: '\"123\"'"
    );
    let place = Place::new().set("runtime.docker.endpoint=\"123\"");
    assert_eq!(place.loaded().section("runtime", "docker"), json!({"endpoint": "123"}));
}

#[test]
fn what_a_plugin_misses_is_told_where_its_section_is_or_the_plugin_was_chosen() {
    let missing = SectionError { path: String::new(), message: "endpoint is missing".to_owned() };
    let told = |place: Place| place.loaded().section_error("runtime", "docker", &missing).to_string();
    assert_eq!(
        told(Place::new().set("runtime.docker={}")),
        "runtime.docker in --set runtime.docker={}: endpoint is missing"
    );
    assert_eq!(told(Place::new()), "runtime.docker of profile localdev: endpoint is missing");
}

#[test]
fn a_section_may_not_be_a_single_value() {
    assert_eq!(
        Place::new().set("runtime.docker=5").error(),
        "unknown key runtime.docker in --set runtime.docker=5; a plugin's own settings are in its section, [runtime.<plugin>]"
    );
}

#[test]
fn a_caller_can_give_its_own_complaints_their_place() {
    let loaded = Place::new().set("runtime.plugin=dokcer").loaded();
    let message = match host_config::nearest("dokcer", ["docker", "sim"]) {
        Some(near) => format!("no such plugin; did you mean {near}?"),
        None => panic!("docker is near"),
    };
    assert_eq!(
        loaded.error_at("runtime.plugin", message).to_string(),
        "runtime.plugin in --set runtime.plugin=dokcer: no such plugin; did you mean docker?"
    );
    assert_eq!(
        loaded.error_at("telemetry.filter", "bad").to_string(),
        "telemetry.filter of the defaults: bad"
    );
    assert_eq!(loaded.error_at("nowhere.at.all", "bad").to_string(), "nowhere.at.all: bad");
}
