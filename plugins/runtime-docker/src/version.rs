//! Which version of its API is spoken with an engine.
//!
//! Every request carries the version in its path. Without one an engine speaks its newest, so that an upgrade of
//! the engine could change what answers mean; bollard sends none, whatever version it is given.

use std::{fmt, str::FromStr};

use host_core::{ErrorKind, PluginError};
use http::{Uri, uri::PathAndQuery};

/// A version of the engine's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion {
    major: u16,
    minor: u16,
}

/// Docker 20.10's.
const OLDEST: ApiVersion = ApiVersion { major: 1, minor: 41 };

/// What bollard's models were made for.
fn newest() -> ApiVersion {
    let known = bollard::API_DEFAULT_VERSION;
    let part = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    ApiVersion { major: part(known.major_version), minor: part(known.minor_version) }
}

impl ApiVersion {
    /// What to speak with an engine whose newest version is `self`.
    ///
    /// # Errors
    /// `Unsupported` when it is too old.
    pub(crate) fn negotiated(self) -> Result<Self, PluginError> {
        if self < OLDEST {
            let text = format!(
                "docker speaks API {self} at most and {OLDEST} is needed: install Docker 20.10 or later"
            );
            return Err(PluginError::new(ErrorKind::Unsupported, text));
        }
        Ok(self.min(newest()))
    }

    /// `/containers/json` becomes `/v1.41/containers/json`.
    pub(crate) fn prefix(self, uri: &Uri) -> Uri {
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = format!("/v{self}{path}").parse().ok();
        Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ApiVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ApiVersion {
        text.parse().unwrap()
    }

    #[test]
    fn the_newest_that_both_know_is_spoken() {
        for text in ["1.41", "1.44", "1.51"] {
            assert_eq!(version(text).negotiated().unwrap(), version(text));
        }
        assert_eq!(version("1.999").negotiated().unwrap(), newest());
        assert_eq!(version("2.0").negotiated().unwrap(), newest());
    }

    #[test]
    fn an_engine_that_is_too_old_is_refused_with_the_remedy() {
        let error = version("1.40").negotiated().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("Docker 20.10"), "{error}");
    }

    #[test]
    fn versions_are_no_decimals() {
        assert!(version("1.9") < version("1.41"));
        for bad in ["", "1", "1.x", "v1.41", "1.41.0"] {
            assert!(bad.parse::<ApiVersion>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_path_gets_its_prefix_and_keeps_its_query() {
        let uri = "unix://2f782e736f636b/containers/json?all=true&filters=%7B%7D".parse().unwrap();
        assert_eq!(
            version("1.41").prefix(&uri).to_string(),
            "unix://2f782e736f636b/v1.41/containers/json?all=true&filters=%7B%7D"
        );
    }
}
