//! The built-in profiles.

use host_config::{AuthMode, Metadata, Profile, Pull};

use crate::Place;

/// What an operator has to fill in outside the local profiles.
fn filled_in(profile: Profile) -> Place {
    let place = Place::new().profile(profile.name());
    if profile.is_local() {
        return place;
    }
    place
        .set("pubsub.plugin=memory")
        .set("instance.name=host-1")
        .set("auth.issuer=https://issuer.example/")
        .set("auth.audience=host")
        .set("auth.jwks_file=/etc/host-service/jwks.json")
}

#[test]
fn every_profile_is_consistent_once_filled_in() {
    for &profile in Profile::ALL {
        let loaded = filled_in(profile).loaded();
        assert_eq!(loaded.profile, profile);
        let runtime = if profile.is_local() { "oci" } else { "docker" };
        assert_eq!(loaded.settings.runtime.plugin, runtime);
        let gpu = if profile.is_local() { "sim" } else { "nvml" };
        assert_eq!(loaded.settings.gpu.plugin, gpu);
        let telemetry: &[&str] =
            if profile.is_local() { &["console"] } else { &["console", "sentry", "logzio"] };
        assert_eq!(loaded.settings.telemetry.plugins, telemetry);
        let metadata = if profile.is_local() { Metadata::Static } else { Metadata::Ec2 };
        assert_eq!(loaded.settings.instance.metadata, metadata);
    }
}

#[test]
fn localdev_needs_nothing_and_is_reached_from_this_machine_only() {
    let settings = Place::new().loaded().settings;
    assert_eq!(settings.gpu.plugin, "sim");
    assert_eq!(settings.pubsub.plugin, "memory");
    assert_eq!(settings.auth.mode, AuthMode::Off);
    assert_eq!(settings.http.listen.to_string(), "127.0.0.1:4678");
    assert!(settings.mandelbox.publish_ip.is_loopback());
    assert!(settings.mandelbox.allocate_on_request && settings.mandelbox.match_local_images);
    assert_eq!((settings.mandelbox.pull, settings.mandelbox.client_timeout_seconds), (Pull::Never, -1));
    let chrome = settings.mandelbox.image.image(&settings.mandelbox.default_app).unwrap();
    assert_eq!(chrome.as_str(), "browsers/chrome:current-build");
}

#[test]
fn with_a_database_only_the_control_plane_allocates() {
    let settings = Place::new().profile("localdevwithdb").loaded().settings;
    assert_eq!(settings.pubsub.plugin, "postgres");
    assert!(!settings.mandelbox.allocate_on_request);
    assert_eq!(settings.auth.mode, AuthMode::Off);
    let instance = settings.instance;
    let facts = [instance.image_id, instance.region, instance.instance_type].map(Option::unwrap);
    assert_eq!(facts, ["test-ami", "us-east-1", "g4dn.xlarge"], "what the walk-through's row asks for");
}

#[test]
fn deployments_check_tokens_and_name_their_own_images() {
    for profile in [Profile::Dev, Profile::Staging, Profile::Prod] {
        let settings = filled_in(profile).loaded().settings;
        assert_eq!(settings.auth.mode, AuthMode::Jwt);
        assert_eq!(settings.http.listen.to_string(), "0.0.0.0:4678");
        assert_eq!(settings.mandelbox.pull, Pull::Missing);
        let image = settings.mandelbox.image.image(&settings.mandelbox.default_app).unwrap();
        assert_eq!(image.as_str(), format!("ghcr.io/fractal/{profile}/browsers/chrome:current-build"));
    }
}

#[test]
fn what_a_profile_leaves_open_is_told_in_one_line_each() {
    assert_eq!(
        Place::new().profile("prod").errors(),
        [
            "profile prod names no pubsub plugin; set pubsub.plugin (for example --set pubsub.plugin=memory)",
            "profile prod checks clients' tokens; set auth.issuer and auth.audience",
        ]
    );
    assert_eq!(
        Place::new().profile("localdevwithdb").set("pubsub.plugin=").error(),
        "profile localdevwithdb names no pubsub plugin; set pubsub.plugin (for example --set pubsub.plugin=memory)"
    );
}

#[test]
fn a_mistyped_key_is_not_told_as_missing_too() {
    let place = filled_in(Profile::Prod).set("pubsub.plugin=").set("pubsub.plugn=memory");
    assert!(place.error().starts_with("unknown key pubsub.plugn "));
}

/// The numbers of the original service that clients, images and the database rely on.
#[test]
fn the_defaults_keep_the_contract() {
    let loaded = filled_in(Profile::Prod).loaded();
    let shown = |key: &str| {
        let all = loaded.effective();
        all.into_iter().find(|one| one.key == key).unwrap().value
    };
    for (key, value) in [
        ("mandelbox.ports", "[\"32262/tcp\", \"32263/udp\", \"32273/tcp\"]"),
        ("mandelbox.tty_range", "\"10-63\""),
        ("mandelbox.limits.memory_bytes", "6552550944"),
        ("mandelbox.limits.shm_bytes", "2147483648"),
        ("mandelbox.limits.cpu_shares", "2"),
        ("mandelbox.client_timeout_seconds", "30"),
        ("mandelbox.timeouts.client", "\"60s\""),
        ("mandelbox.timeouts.application", "\"20s\""),
        ("gpu.slots_per_gpu", "3"),
        ("metrics.listen", "\"127.0.0.1:9478\""),
        ("admin.socket", "\"/run/host-service/admin.sock\""),
        ("paths.root", "\"/fractal\""),
        ("mandelbox.env.aes_key", "\"FRACTAL_AES_KEY\""),
        ("pubsub.stale_allocated", "\"10s\""),
        ("pubsub.stale_connecting", "\"90s\""),
    ] {
        assert_eq!(shown(key), value, "{key}");
    }
    let names: Vec<String> =
        loaded.settings.mandelbox.capabilities.iter().map(|c| c.as_str().to_owned()).collect();
    let original = "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP SETGID \
                    SETPCAP SETUID SYS_CHROOT SYS_NICE";
    assert_eq!(names.join(" "), original);
}

#[test]
fn an_incomplete_profile_can_be_looked_at() {
    let (effective, errors) = host_config::survey(&Place::new().profile("prod").sources).unwrap();
    assert_eq!(errors.len(), 2, "{errors:?}");
    let issuer = effective.iter().find(|one| one.key == "auth.issuer").unwrap();
    assert_eq!((issuer.value.as_str(), issuer.origin.to_string().as_str()), ("\"\"", "default"));
    let runtime = effective.iter().find(|one| one.key == "runtime.plugin").unwrap();
    assert_eq!(runtime.origin.to_string(), "profile prod");
}
