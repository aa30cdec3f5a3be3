//! The command line as its users meet it: the real binary, its exit codes, its two outputs.
#![cfg(test)]

mod plugins;
mod support;

use std::fs;

use support::{Scratch, Service};

#[test]
fn wrong_usage_is_64_and_help_is_not() {
    let scratch = Scratch::new();
    for wrong in [
        &[][..],
        &["frobnicate"],
        &["status", "--frobnicate"],
        &["mandelbox", "inspect"],
        &["mandelbox", "inspect", "../etc"],
        &["mandelbox", "spin-up", "--json-data", "[]"],
        &["mandelbox", "stop", "a", "--timeout", "soon"],
        &["drain", "--deadline", "-1"],
    ] {
        let ran = scratch.run(wrong);
        assert_eq!(ran.code, 64, "{wrong:?}: {ran:?}");
        assert_eq!(ran.out, "", "{wrong:?} writes on standard output");
    }
    for right in [&["--help"][..], &["mandelbox", "spin-up", "--help"], &["-V"], &["help", "run"]] {
        let ran = scratch.run(right);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{right:?}");
    }
}

#[test]
fn help_teaches_by_examples_at_every_command() {
    let scratch = Scratch::new();
    for command in ["run", "status", "drain", "doctor", "mandelbox spin-up", "config show", "image load"] {
        let mut words: Vec<_> = command.split(' ').collect();
        words.push("--help");
        let help = scratch.run(&words).out;
        assert!(help.contains(&format!("Examples:\n  host-service {command}")), "{command}: {help}");
        assert!(help.contains("--set <KEY=VALUE>"), "{command} takes no settings");
        assert!(!help.contains('\u{1b}'), "{command}: colours without a terminal");
    }
}

#[test]
fn settings_are_taken_before_and_after_the_command() {
    let scratch = Scratch::new();
    let set = |text: &'static str| ["--set", text];
    let before = [&set("gpu.plugin=none")[..], &["config", "show"], &set("http.max_waiting=7")].concat();
    let shown = scratch.run(&before).out;
    assert!(shown.contains("gpu.plugin = \"none\"\n") && shown.contains("http.max_waiting = 7\n"), "{shown}");
    let twice = [&set("gpu.plugin=none")[..], &["config", "show"], &set("gpu.plugin=sim")].concat();
    assert!(scratch.run(&twice).out.contains("gpu.plugin = \"sim\"\n"), "the later one wins");
}

#[test]
fn the_configuration_is_shown_with_origins_and_without_secrets() {
    let scratch = Scratch::new();
    let file = scratch.path().join("host.toml");
    fs::write(&file, "[mandelbox.environment]\nAPI_TOKEN = \"hunter2\"\n").unwrap();
    let file = file.to_str().unwrap();
    let set = "metrics.listen=127.0.0.1:0";
    let ran = scratch.run(&["config", "show", "--origin", "--config", file, "--set", set]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.out.contains("hunter2"), "{}", ran.out);
    let origin = |key: &str| {
        let line = ran.out.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        line.rsplit_once("  # ").unwrap().1.to_owned()
    };
    assert_eq!(origin("mandelbox.environment.API_TOKEN"), format!("{file}:2"));
    assert_eq!(origin("metrics.listen"), format!("--set {set}"));
    assert_eq!(origin("auth.mode"), "profile localdev");
    assert_eq!(origin("gpu.poll"), "default");
    let shown = scratch.run(&["config", "show"]).out;
    assert!(shown.parse::<toml::Table>().is_ok(), "what is shown is no TOML: {shown}");
}

#[test]
fn a_bad_configuration_is_78_with_place_and_suggestion() {
    let scratch = Scratch::new();
    let file = scratch.path().join("host.toml");
    fs::write(&file, "[http]\nlisten = \"0.0.0.0:4678\"\nmax_waitng = 1\n").unwrap();
    let file = file.to_str().unwrap();
    let told = |arguments: &[&str]| {
        let ran = scratch.run(&[&["config", "check"], arguments].concat());
        assert_eq!((ran.code, ran.out.as_str()), (78, ""), "{ran:?}");
        ran.err
    };
    let err = told(&["--config", file]);
    assert!(err.contains(&format!("{file}:3")) && err.contains("http.max_waiting"), "{err}");
    let err = told(&["--set", "runtime.plugin=dokcer"]);
    assert!(err.contains("--set runtime.plugin=dokcer") && err.contains("did you mean docker?"), "{err}");
    let err = told(&["--set", "gpu.sim.devies=1"]);
    assert!(err.contains("unknown key gpu.sim.devies") && err.contains("--set gpu.sim.devies=1"), "{err}");
    let err = told(&["--set", "runtime.dokcer.endpoint=x", "--set", "telemetry.plugins=['consol']"]);
    assert!(err.contains("runtime.dokcer") && err.contains("did you mean console?"), "{err}");
    assert_eq!(err.lines().filter(|line| line.starts_with("error: ")).count(), 2, "{err}");
    let err = told(&["--profile", "production-like"]);
    assert!(err.contains("--profile production-like"), "{err}");
    let ran = scratch.run(&["status", "--config", "/no/such/file"]);
    assert_eq!(ran.code, 78, "client commands read the same configuration: {ran:?}");
}

#[test]
fn a_good_configuration_is_fine_and_starts_nothing() {
    let scratch = Scratch::new();
    let ran = scratch.run(&["config", "check"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.starts_with("fine: profile localdev, runtime oci"), "{}", ran.out);
    let variable = scratch.run_with(&["config", "check"], &[("APP_ENV", "nonsense")]);
    assert_eq!(variable.code, 78);
    assert!(variable.err.contains("$APP_ENV"), "{}", variable.err);
}

#[test]
fn no_service_is_69_with_the_remedy() {
    let scratch = Scratch::new();
    let commands = ["status", "drain", "mandelbox list", "mandelbox inspect a", "mandelbox logs a"];
    for command in commands {
        let words: Vec<_> = command.split(' ').collect();
        let ran = scratch.run(&words);
        assert_eq!(ran.code, 69, "{command}: {ran:?}");
        assert!(ran.err.contains("host-service run"), "{}", ran.err);
    }
    drop(std::os::unix::net::UnixListener::bind(scratch.socket()).unwrap());
    assert_eq!(scratch.run(&["status"]).code, 69, "a dead socket is no service");
}

#[test]
fn version_and_completions_need_nothing() {
    let scratch = Scratch::new();
    let version = scratch.run(&["version"]).out;
    let lines: Vec<_> = version.lines().collect();
    assert!(lines[0].starts_with("host-service 0.") && lines[1].starts_with("commit "), "{version}");
    assert!(lines[2].starts_with("plugin ABI "), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = scratch.run(&["completions", shell]).out;
        assert!(script.contains("purge-leftovers"), "{shell}");
    }
    assert_eq!(scratch.run(&["completions", "tcsh"]).code, 64);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let scratch = Scratch::new();
    let ran = scratch.unread(&["config", "show"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn images_are_listed_without_a_service() {
    let scratch = Scratch::new();
    let ran = scratch.run(&["image", "list", "--set", "runtime.plugin=sim"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("NAME"), "{}", ran.out);
    let gone = format!("runtime.docker.endpoint=unix://{}/none", scratch.path().display());
    let ran = scratch.run(&["image", "list", "--set", "runtime.plugin=docker", "--set", &gone]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.starts_with("error: "), "{}", ran.err);
}

#[test]
fn the_doctor_tells_every_check_with_its_remedy() {
    let scratch = Scratch::new();
    let gone = format!("runtime.docker.endpoint=unix://{}/none", scratch.path().display());
    let ran = scratch.run(&["doctor", "--json", "--set", "runtime.plugin=docker", "--set", &gone]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let engine = checks.iter().find(|check| check["name"] == "runtime docker").unwrap();
    assert_eq!((&engine["verdict"], &report["verdict"]), (&"fail".into(), &"fail".into()));
    for check in checks {
        assert_eq!(check["verdict"] == "ok", check["remedy"].is_null(), "{check}");
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "the doctor leaves something");
}

/// The whole loop over a simulated engine.
#[test]
fn a_mandelbox_lives_and_the_service_drains() {
    let service = Service::start();
    let view =
        service.json(&["mandelbox", "spin-up", "--id", "mine", "--json-data", r#"{"dpi":96}"#, "--json"]);
    assert_eq!((&view["id"], &view["app"]), (&"mine".into(), &"browsers/chrome".into()));
    assert!(view["url"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{view}");
    let key = view["aes_key"].as_str().unwrap();
    assert_eq!(key.len(), 32);
    let list = service.told(&["mandelbox", "list"]);
    assert!(list.lines().nth(1).unwrap().starts_with("mine  browsers/chrome  running"), "{list}");
    let status = service.json(&["status", "--json"]);
    assert_eq!(status["mandelboxes"], serde_json::json!({"running": 1}));
    let inspected = service.told(&["mandelbox", "inspect", "mine"]);
    assert!(!inspected.contains(key) && !status.to_string().contains(key), "the key is shown again");
    assert!(service.told(&["mandelbox", "logs", "mine", "-n", "1"]).ends_with("takes its client\n"));
    let again = service.run(&["mandelbox", "spin-up", "--id", "mine"]);
    assert_eq!(again.code, 1, "{again:?}");
    let unknown = service.run(&["mandelbox", "stop", "nobody"]);
    assert_eq!((unknown.code, unknown.err.as_str()), (1, "error: this host has no mandelbox nobody\n"));
    assert_eq!(service.told(&["mandelbox", "stop", "mine", "--timeout", "1s"]), "mandelbox mine is gone\n");
    assert_eq!(service.told(&["mandelbox", "list", "--json"]), "{\n  \"mandelboxes\": []\n}\n");
    assert_eq!(service.told(&["drain", "--wait"]), "drained; the service has ended\n");
    service.has_ended();
}

#[test]
fn a_second_service_at_the_same_socket_is_refused() {
    let service = Service::start();
    let other = Scratch::new();
    let socket = format!("admin.socket={}", service.scratch.socket().display());
    let ran = other.run(&["run", "--set", "runtime.plugin=sim", "--set", &socket]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("another host-service is running"), "{}", ran.err);
    assert_eq!(service.run(&["status"]).code, 0, "the first one runs on");
}
