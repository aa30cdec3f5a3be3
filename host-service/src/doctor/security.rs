//! Confinement of mandelboxes, and the keys and tokens of clients.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use host_config::{AuthMode, AuthSettings, HttpSettings, Settings};

use super::{Check, machine::Machine};

pub(super) fn checks(machine: &Machine, settings: &Settings) -> Vec<Check> {
    vec![
        apparmor(machine, settings.mandelbox.apparmor.as_deref()),
        tokens(machine, &settings.auth),
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

fn tokens(machine: &Machine, auth: &AuthSettings) -> Check {
    let AuthMode::Jwt = auth.mode else {
        return Check::ok("tokens", "not checked: everybody who reaches http.listen may ask for a mandelbox");
    };
    let missing: Vec<_> = [
        ("auth.issuer", auth.issuer.is_some()),
        ("auth.audience", auth.audience.is_some()),
        ("auth.jwks_file", auth.jwks_file.is_some()),
    ]
    .into_iter()
    .filter_map(|(key, set)| (!set).then_some(key))
    .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Check::fail("tokens", format!("checked, but {missing} is not set"), format!("set {missing}"));
    }
    match auth.jwks_file.as_deref().map(|file| keys(machine, file)) {
        Some(Ok(0)) => {
            Check::fail("tokens", "auth.jwks_file holds no keys", "fetch the issuer's key set anew")
        }
        Some(Ok(count)) => Check::ok("tokens", format!("checked; keys: {count}")),
        Some(Err(error)) => {
            Check::fail("tokens", format!("auth.jwks_file: {error}"), "fetch the issuer's key set anew")
        }
        None => Check::ok("tokens", "checked"),
    }
}

fn keys(machine: &Machine, file: &Path) -> Result<usize, String> {
    let text = fs::read_to_string(machine.path(file)).map_err(|error| error.to_string())?;
    let set: serde_json::Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let keys = set.get("keys").and_then(|keys| keys.as_array());
    keys.map(Vec::len).ok_or_else(|| "it is no JSON Web Key Set".to_owned())
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

    #[test]
    fn checked_tokens_need_keys() {
        let (_root, machine) = machine(&[("jwks.json", r#"{"keys":[{}]}"#), ("none.json", r#"{"keys":[]}"#)]);
        let auth = |file: Option<&str>| AuthSettings {
            mode: AuthMode::Jwt,
            issuer: Some("https://issuer/".into()),
            audience: Some("host".into()),
            jwks_file: file.map(Into::into),
        };
        let check = |file| tokens(&machine, &auth(file));
        assert_eq!(check(Some("/jwks.json")), Check::ok("tokens", "checked; keys: 1"));
        assert_eq!(check(Some("/none.json")).verdict, Verdict::Fail);
        assert_eq!(check(Some("/missing.json")).verdict, Verdict::Fail);
        assert!(check(None).found.contains("auth.jwks_file is not set"));
    }
}
