//! Confinement of mandelboxes, and the keys and tokens of clients.

use std::{fs, os::unix::fs::PermissionsExt};

use host_config::{AuthMode, AuthSettings, HttpSettings, Settings};

use super::{Check, machine::Machine};
use crate::transport::{KeySource, count_keys};

pub(super) async fn checks(machine: &Machine, settings: &Settings) -> Vec<Check> {
    vec![
        apparmor(machine, settings.mandelbox.apparmor.as_deref()),
        tokens(&settings.auth).await,
        certificate(machine, &settings.http),
    ]
}

fn apparmor(machine: &Machine, profile: Option<&str>) -> Check {
    let enabled =
        machine.read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    match (enabled, profile) {
        (false, None) => Check::warn(
            "AppArmor",
            "absent: capabilities, seccomp and name spaces confine mandelboxes",
            "boot with apparmor=1 security=apparmor, if the kernel has it",
        ),
        (false, Some(profile)) => Check::fail(
            "AppArmor",
            format!("absent, and mandelbox.apparmor names profile {profile}"),
            "boot with apparmor=1 security=apparmor, or set mandelbox.apparmor to \"\"",
        ),
        (true, None) => Check::ok("AppArmor", "enabled; the engine's default profile is used"),
        (true, Some(profile)) => loaded(machine, profile),
    }
}

fn loaded(machine: &Machine, profile: &str) -> Check {
    let list = machine.read("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    let mut names = list.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name);
    if names.any(|name| name == profile) {
        return Check::ok("AppArmor", format!("profile {profile} is loaded"));
    }
    Check::fail("AppArmor", format!("profile {profile} is not loaded"), "load it: apparmor_parser -r FILE")
}

async fn tokens(auth: &AuthSettings) -> Check {
    let AuthMode::Jwt = auth.mode else {
        return Check::ok("tokens", "not checked: everybody who reaches http.listen may ask for a mandelbox");
    };
    let missing: Vec<_> =
        [("auth.issuer", auth.issuer.is_some()), ("auth.audience", auth.audience.is_some())]
            .into_iter()
            .filter_map(|(key, set)| (!set).then_some(key))
            .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Check::fail("tokens", format!("checked, but {missing} is not set"), format!("set {missing}"));
    }
    let counted = match KeySource::try_from(auth) {
        Ok(keys) => count_keys(&keys).await.map_err(|error| host_core::chain(&error)),
        Err(error) => Err(host_core::chain(&error)),
    };
    match counted {
        Ok(count) => Check::ok("tokens", format!("checked; keys: {count}")),
        Err(error) if auth.jwks_file.is_some() => {
            Check::fail("tokens", error, "fetch the issuer's key set anew, or set auth.jwks_url instead")
        }
        Err(error) => Check::fail(
            "tokens",
            error,
            "look at auth.issuer and auth.jwks_url, and whether this host may connect there",
        ),
    }
}

fn certificate(machine: &Machine, http: &HttpSettings) -> Check {
    let (Some(certificate), Some(key)) = (&http.certificate, &http.key) else {
        return Check::ok("certificate", "none set: a self-signed one is made");
    };
    for (setting, file) in [("http.certificate", certificate), ("http.key", key)] {
        if let Err(error) = fs::File::open(machine.path(file)) {
            let found = format!("{setting}: {}: {error}", file.display());
            return Check::fail("certificate", found, "put the file there, readable for this user");
        }
    }
    let mode = fs::metadata(machine.path(key)).map(|key| key.permissions().mode()).unwrap_or_default();
    if mode & 0o007 != 0 {
        let found = format!("everybody can read the key {} (mode {:o})", key.display(), mode & 0o777);
        return Check::fail("certificate", found, format!("chmod 600 {}", key.display()));
    }
    Check::ok("certificate", certificate.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine { root: root.path().to_owned(), uid: 0, open_files: None };
        (root, machine)
    }

    #[test]
    fn a_profile_that_is_named_must_be_loaded() {
        let absent = machine(&[]).1;
        assert_eq!(apparmor(&absent, None).verdict, Verdict::Warn);
        assert_eq!(apparmor(&absent, Some("host-mandelbox")).verdict, Verdict::Fail);
        let (_root, present) = machine(&[
            ("sys/module/apparmor/parameters/enabled", "Y\n"),
            ("sys/kernel/security/apparmor/profiles", "docker-default (enforce)\nhost-mandelbox (enforce)\n"),
        ]);
        assert_eq!(apparmor(&present, None).verdict, Verdict::Ok);
        assert_eq!(apparmor(&present, Some("host-mandelbox")).verdict, Verdict::Ok);
        assert_eq!(apparmor(&present, Some("host-mandelbo")).verdict, Verdict::Fail);
    }

    #[tokio::test]
    async fn checked_tokens_need_keys() {
        let key = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#; // of RFC 7515
        let (root, _) = machine(&[("jwks.json", key), ("none.json", r#"{"keys":[]}"#)]);
        let file = |name: &str| root.path().join(name).display().to_string();
        let check = async |set: &str| {
            let set = ["auth.mode=jwt", "auth.issuer=http://127.0.0.1:1/", "auth.audience=host", set];
            let set = set.map(str::to_owned).to_vec();
            let profile = Some("localdev".to_owned());
            let sources = host_config::Sources {
                profile,
                system_dir: "/nonexistent".into(),
                set,
                ..host_config::Sources::default()
            };
            tokens(&host_config::load(&sources).unwrap().settings.auth).await
        };
        let with = async |name: &str| check(&format!("auth.jwks_file={}", file(name))).await;
        assert_eq!(with("jwks.json").await, Check::ok("tokens", "checked; keys: 1"));
        assert_eq!(with("none.json").await.verdict, Verdict::Fail);
        assert_eq!(with("missing.json").await.verdict, Verdict::Fail);
        let away = check("auth.jwks_timeout=1s").await;
        assert_eq!(away.verdict, Verdict::Fail);
        assert!(away.found.starts_with("auth.jwks_url http://127.0.0.1:1/.well-known/jwks.json"), "{away:?}");
    }
}
