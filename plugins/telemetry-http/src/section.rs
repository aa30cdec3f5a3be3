//! Values in a plugin's section, for `#[serde(deserialize_with = …)]`.

use std::{fs, path::PathBuf, time::Duration};

use host_core::{ErrorKind, PluginError};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};

/// More is no token.
const LARGEST_SECRET_BYTES: u64 = 64 << 10;

/// `"30s"`; not zero.
///
/// # Errors
/// It is no time, with an example.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match humantime::parse_duration(&text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(de::Error::custom(format_args!(
            "{text:?} is no time to wait; write for example \"30s\" or \"500ms\""
        ))),
    }
}

/// A secret; "" is none.
///
/// # Errors
/// It is no text.
pub fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Some(SecretString::deserialize(deserializer)?).filter(|secret| !secret.expose_secret().is_empty()))
}

/// A path; "" is none.
///
/// # Errors
/// It is no text.
pub fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(Some(PathBuf::deserialize(deserializer)?).filter(|path| !path.as_os_str().is_empty()))
}

/// The secret that is written in the configuration or in a file of its own. `name` is the key, for the error.
///
/// # Errors
/// `Invalid`: there is none, or both, or the file cannot be read.
pub fn secret_of(
    name: &str,
    given: Option<&SecretString>,
    file: Option<&PathBuf>,
) -> Result<SecretString, PluginError> {
    let invalid = |message: String| PluginError::new(ErrorKind::Invalid, message);
    match (given, file) {
        (Some(_), Some(_)) => Err(invalid(format!("{name} and {name}_file are both set; keep one"))),
        (Some(given), None) => Ok(given.clone()),
        (None, None) => Err(invalid(format!(
            "{name} is not set; set it, or {name}_file, or USE_PROD_LOGGING=0 to do without Sentry and logz.io"
        ))),
        (None, Some(file)) => {
            let unreadable = |error: std::io::Error| {
                invalid(format!("{name}_file, {}, cannot be read", file.display())).with_source(error)
            };
            if file.metadata().map_err(unreadable)?.len() > LARGEST_SECRET_BYTES {
                return Err(invalid(format!("{name}_file, {}, is too large for a secret", file.display())));
            }
            let text = SecretString::from(fs::read_to_string(file).map_err(unreadable)?);
            let text = SecretString::from(text.expose_secret().trim());
            match text.expose_secret().is_empty() {
                true => Err(invalid(format!("{name}_file, {}, is empty", file.display()))),
                false => Ok(text),
            }
        }
    }
}
