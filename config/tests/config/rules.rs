//! Bounds, and settings that are at odds with each other.

use crate::Place;

/// Arguments, and the key that must be blamed.
const BROKEN: &[(&[&str], &str)] = &[
    (&["http.certificate=/c"], "http.certificate"),
    (&["http.key=/k"], "http.key"),
    (&["http.max_connections=0"], "http.max_connections"),
    (&["http.max_waiting=0"], "http.max_waiting"),
    (&["http.body_limit_bytes=0"], "http.body_limit_bytes"),
    (&["http.body_timeout=0s"], "http.body_timeout"),
    (&["metrics.listen=0.0.0.0:4678"], "metrics.listen"),
    (&["http.listen=127.0.0.1:9478"], "http.listen"),
    (&["gpu.slots_per_gpu=0"], "gpu.slots_per_gpu"),
    (&["gpu.slots_per_gpu=65"], "gpu.slots_per_gpu"),
    (&["gpu.poll=0s"], "gpu.poll"),
    (&["pubsub.heartbeat=2m"], "pubsub.heartbeat"),
    (&["pubsub.stale_connecting=80s"], "pubsub.stale_connecting"),
    (&["mandelbox.timeouts.client=2m"], "mandelbox.timeouts.client"),
    (&["mandelbox.timeouts.create=0s"], "mandelbox.timeouts.create"),
    (&["telemetry.plugins=[\"a\", \"a\"]"], "telemetry.plugins"),
    (&["telemetry.plugins=[\"\"]"], "telemetry.plugins"),
    (&["telemetry.filter="], "telemetry.filter"),
    (&["paths.root=/"], "paths.root"),
    (&["paths.root=relative"], "paths.root"),
    (&["paths.root=/a/../b"], "paths.root"),
    (&["paths.root=/run/host-service/x"], "paths.root"),
    (&["paths.state=/fractal"], "paths.state"),
    (&["paths.logs=/fractal/x", "paths.state=/run/x"], "paths.logs"),
    (&["admin.socket=admin.sock"], "admin.socket"),
    (&["mandelbox.port_range=80-2000"], "mandelbox.port_range"),
    (&["mandelbox.port_range=2000-2001"], "mandelbox.port_range"),
    (&["mandelbox.tty_range=0-10"], "mandelbox.tty_range"),
    (&["mandelbox.tty_range=10-64"], "mandelbox.tty_range"),
    (&["mandelbox.ports=[\"1/tcp\", \"1/tcp\"]"], "mandelbox.ports"),
    (&["mandelbox.capacity=55"], "mandelbox.capacity"),
    (&["mandelbox.capacity=54", "mandelbox.port_range=2000-2100"], "mandelbox.port_range"),
    (&["mandelbox.client_timeout_seconds=0"], "mandelbox.client_timeout_seconds"),
    (&["mandelbox.client_timeout_seconds=-2"], "mandelbox.client_timeout_seconds"),
    (&["mandelbox.env.tty=1X"], "mandelbox.env.tty"),
    (&["mandelbox.env.tty=FRACTAL_AES_KEY"], "mandelbox.env.tty"),
    (&["mandelbox.environment.FRACTAL_TTY=1"], "mandelbox.environment.FRACTAL_TTY"),
    (&["mandelbox.environment.\"a b\"=1"], "mandelbox.environment.\"a b\""),
    (&["mandelbox.mounts=[{source = \"a\", target = \"/a\"}]"], "mandelbox.mounts[0].source"),
    (&["mandelbox.mounts=[{source = \"/a\", target = \"/\"}]"], "mandelbox.mounts[0].target"),
    (&["mandelbox.mounts=[{source = \"/a\", target = \"/tmp/sockets\"}]"], "mandelbox.mounts[0].target"),
    (&["mandelbox.mounts=[{source = \"/a\", target = \"/run\"}]"], "mandelbox.mounts[0].target"),
    (&["mandelbox.tmpfs=[{target = \"/a\", size_bytes = 0}]"], "mandelbox.tmpfs[0].size_bytes"),
    (&["mandelbox.devices=[{host = \"fuse\"}]"], "mandelbox.devices[0].host"),
    (&["mandelbox.devices=[{host = \"/a\", container = \"a\"}]"], "mandelbox.devices[0].container"),
    (&["mandelbox.devices=[{host = \"/a\", permissions = \"rr\"}]"], "mandelbox.devices[0].permissions"),
    (&["mandelbox.devices=[{host = \"/a\", permissions = \"\"}]"], "mandelbox.devices[0].permissions"),
    (&["mandelbox.limits.memory_bytes=1000"], "mandelbox.limits.memory_bytes"),
    (&["mandelbox.limits.cpu_shares=1"], "mandelbox.limits.cpu_shares"),
    (&["mandelbox.limits.shm_bytes=0"], "mandelbox.limits.shm_bytes"),
    (&["mandelbox.stop_grace=30s"], "mandelbox.stop_grace"),
    (&["drain.grace=1m"], "drain.grace"),
];

#[test]
fn impossible_settings_are_refused_where_they_were_made() {
    for (arguments, key) in BROKEN {
        let place = arguments.iter().fold(Place::new(), |place, text| place.set(text));
        let errors = place.errors();
        assert_eq!(errors.len(), 1, "{arguments:?}: {errors:#?}");
        let start = format!("{key} in --set ");
        let told = errors[0].starts_with(&start);
        assert!(told, "{arguments:?}: {}", errors[0]);
    }
}

#[test]
fn the_bounds_themselves_are_allowed() {
    for arguments in [
        &["gpu.slots_per_gpu=64"][..],
        &["http.certificate=/c", "http.key=/k"],
        &["http.listen=127.0.0.1:0", "metrics.listen=127.0.0.1:0"],
        &["http.listen=127.0.0.1:9478", "metrics.listen=127.0.0.2:9478"],
        &["mandelbox.capacity=54"],
        &["mandelbox.port_range=1025-65535"],
        &["mandelbox.tty_range=1-63"],
        &["paths.root=/a", "paths.state=/ab", "paths.logs=/abc"],
        &["telemetry.plugins=[]"],
        &["mandelbox.ports=[]"],
        &[
            "drain.deadline=0s",
            "mandelbox.port_quarantine=0s",
            "mandelbox.stop_grace=0s",
            "mandelbox.answer_again=0s",
        ],
        &["mandelbox.environment.EMPTY="],
    ] {
        arguments.iter().fold(Place::new(), |place, text| place.set(text)).loaded();
    }
}

#[test]
fn local_conveniences_stay_local() {
    let place = Place::new()
        .profile("dev")
        .set("gpu.plugin=none")
        .set("pubsub.plugin=memory")
        .set("instance.name=a")
        .set("auth.mode=off")
        .set("mandelbox.allocate_on_request=true");
    let errors = place.errors();
    assert_eq!(errors.len(), 2, "{errors:#?}");
    assert!(errors[0].starts_with("auth.mode in --set auth.mode=off: tokens may go unchecked"));
    assert!(errors[1].starts_with("mandelbox.allocate_on_request in --set "));
}

#[test]
fn a_local_profile_that_checks_tokens_needs_what_any_other_needs() {
    assert_eq!(
        Place::new().set("auth.mode=jwt").set("auth.issuer=https://x/").error(),
        "profile localdev checks clients' tokens; set auth.audience"
    );
}

#[test]
fn keys_are_fetched_where_nobody_can_change_them() {
    let url = |issuer: &str, set: &[&str]| {
        let place = Place::new().set("auth.mode=jwt").set("auth.audience=host");
        set.iter().fold(place.set(&format!("auth.issuer={issuer}")), |place, set| place.set(set))
    };
    let keys = |issuer, set| url(issuer, set).loaded().settings.auth.keys_url();
    assert_eq!(keys("https://i.example/", &[]).unwrap(), "https://i.example/.well-known/jwks.json");
    assert_eq!(keys("https://i.example/a", &[]).unwrap(), "https://i.example/a/.well-known/jwks.json");
    assert_eq!(keys("i", &["auth.jwks_url=http://127.0.0.1:1/k"]).unwrap(), "http://127.0.0.1:1/k");
    assert_eq!(keys("i", &["auth.jwks_file=/k"]), None);
    assert!(url("i", &[]).error().starts_with("auth.issuer in --set auth.issuer=i: has no keys"));
    for bad in
        ["http://i.example/k", "http://localhost:1@i.example/", "https://", "http://127.0.0.1.example/", "k"]
    {
        let error = url("i", &[&format!("auth.jwks_url={bad}")]).error();
        assert!(error.starts_with("auth.jwks_url in ") && error.contains("https://"), "{error}");
    }
    let both = url("i", &["auth.jwks_url=https://i.example/k", "auth.jwks_file=/k"]).error();
    assert!(both.contains("not both"), "{both}");
}

#[test]
fn a_rule_says_nothing_about_values_that_are_wrong_already() {
    let error = Place::new().set("mandelbox.capacity=60").set("mandelbox.tty_range=all").error();
    assert!(error.starts_with("mandelbox.tty_range in "), "{error}");
}
