//! Who pulls: from the section, or else from what `docker login` has written.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use host_core::{ErrorKind, PluginError};
use oci_client::secrets::RegistryAuth;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde::Deserialize;

use crate::{
    Registry,
    error::{Result, invalid},
};

/// Docker Hub goes by an older name in there.
const HUB: &str = "https://index.docker.io/v1/";

/// A name and its password, which no text shows.
#[derive(Debug)]
pub(crate) struct Credentials {
    username: String,
    password: SecretString,
}

impl Credentials {
    /// What the client takes; it has no secret type of its own, so this lives as short as a pull.
    pub(crate) fn for_client(this: Option<&Self>) -> RegistryAuth {
        this.map_or(RegistryAuth::Anonymous, |Self { username, password }| {
            RegistryAuth::Basic(username.clone(), password.expose_secret().to_owned())
        })
    }

    pub(crate) fn username(&self) -> &str {
        &self.username
    }

    pub(crate) fn password(&self) -> &SecretString {
        &self.password
    }
}

/// # Errors
/// `Denied` when a file that must be there cannot be read.
pub(crate) fn find(host: &str, registry: &Registry) -> Result<Option<Credentials>> {
    match (&registry.username, &registry.password_file) {
        (Some(username), Some(file)) => {
            Ok(Some(Credentials { username: username.clone(), password: password(file)? }))
        }
        (None, None) => docker_login().map_or(Ok(None), |file| logged_in(&file, host)),
        _ => {
            Err(invalid(format!("the registry {host} needs both a username and a password_file, or neither")))
        }
    }
}

fn password(file: &Path) -> Result<SecretString> {
    let content = fs::read_to_string(file).map(Zeroizing::new).map_err(|error| unreadable(file, error))?;
    Ok(content.trim_end_matches(['\r', '\n']).into())
}

fn unreadable(file: &Path, error: io::Error) -> PluginError {
    PluginError::new(ErrorKind::Denied, format!("cannot read {}", file.display())).with_source(error)
}

fn docker_login() -> Option<PathBuf> {
    env::var_os("HOME").map(|home| Path::new(&home).join(".docker/config.json"))
}

#[derive(Deserialize)]
struct Logins {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct Login {
    auth: Option<SecretString>,
}

/// Credential helpers are programs of others; they are not run, and what they keep is not found.
fn logged_in(file: &Path, host: &str) -> Result<Option<Credentials>> {
    let content = match fs::read_to_string(file) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        content => content.map(Zeroizing::new).map_err(|error| unreadable(file, error))?,
    };
    // Without the parser's own text, which may quote what is wrong.
    let bad = || invalid(format!("{} is not what docker login writes", file.display()));
    let logins: Logins = serde_json::from_str(&content).map_err(|_| bad())?;
    let wanted = if host == "docker.io" { HUB } else { host };
    let found = logins.auths.iter().find(|(name, _)| *name == wanted || host_of(name) == host);
    let Some(auth) = found.and_then(|(_, login)| login.auth.as_ref()) else {
        return Ok(None);
    };
    let decoded = STANDARD.decode(auth.expose_secret()).map(Zeroizing::new).map_err(|_| bad())?;
    let text = std::str::from_utf8(&decoded).map_err(|_| bad())?;
    let (username, password) = text.split_once(':').ok_or_else(bad)?;
    Ok(Some(Credentials { username: username.to_owned(), password: password.into() }))
}

fn host_of(name: &str) -> &str {
    let name = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name);
    name.split('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(content: &str, host: &str) -> Result<Option<(String, String)>> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        fs::write(&file, content).unwrap();
        let found = logged_in(&file, host)?;
        Ok(found.map(|found| (found.username, found.password.expose_secret().to_owned())))
    }

    #[test]
    fn what_docker_login_wrote_is_found() {
        let auth = STANDARD.encode("me:a:b");
        let found = Some(("me".to_owned(), "a:b".to_owned()));
        for (key, host) in [("r.io:5000", "r.io:5000"), ("https://r.io/v2/", "r.io"), (HUB, "docker.io")] {
            let content = serde_json::json!({ "auths": { key: { "auth": auth } }, "credsStore": "x" });
            assert_eq!(login(&content.to_string(), host).unwrap(), found, "{key}");
            assert_eq!(login(&content.to_string(), "other.io").unwrap(), None);
        }
        assert_eq!(login("{}", "r.io").unwrap(), None);
        assert_eq!(login(r#"{"auths":{"r.io":{}}}"#, "r.io").unwrap(), None);
        assert!(logged_in(Path::new("/absent/config.json"), "r.io").unwrap().is_none());
    }

    #[test]
    fn what_is_wrong_is_told_without_the_secret() {
        for secret in ["%geheim%", &STANDARD.encode("geheim")] {
            let content = serde_json::json!({ "auths": { "r.io": { "auth": secret } } });
            let error = login(&content.to_string(), "r.io").unwrap_err();
            let told = format!("{error:?} {}", host_core::chain(&error));
            assert!(!told.contains(secret) && !told.contains("geheim"), "{told}");
        }
    }

    #[test]
    fn the_password_is_read_from_its_file_and_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, "geheim\n").unwrap();
        let mut registry =
            Registry { username: Some("me".into()), password_file: Some(file), ..Registry::default() };
        let found = find("r.io", &registry).unwrap().unwrap();
        assert_eq!(found.password.expose_secret(), "geheim");
        let shown = format!("{found:?} {:?}", Credentials::for_client(Some(&found)));
        assert!(!shown.contains("geheim"), "{shown}");

        registry.password_file = Some("/absent".into());
        assert_eq!(find("r.io", &registry).unwrap_err().kind(), ErrorKind::Denied);
        registry.password_file = None;
        assert_eq!(find("r.io", &registry).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
