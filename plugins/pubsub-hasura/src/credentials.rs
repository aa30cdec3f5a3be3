//! What this host shows of itself, and what happens when that is refused.
//!
//! Refused credentials are not shown again for a minute, whoever asks: trying cannot help until somebody changes
//! something, and a fleet with a wrong secret must not become a storm. A token that was replaced is tried at once.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use control_plane::jittered;
use host_core::{ErrorKind, PluginError, Retry, pubsub::Result};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use crate::config::Config;

const ADMIN_SECRET: HeaderName = HeaderName::from_static("x-hasura-admin-secret");
const ROLE: HeaderName = HeaderName::from_static("x-hasura-role");
/// From one refusal to the next try with the same.
const PAUSE: Duration = Duration::from_secs(60);
/// A token is a few KB.
const LONGEST_TOKEN_BYTES: usize = 65_536;

/// Headers that say who this is.
#[derive(Debug, Clone)]
pub(crate) struct Headers(Vec<(HeaderName, SecretString)>);

#[derive(Debug)]
pub(crate) struct Credentials {
    fixed: Headers,
    /// What a proxy in between may want to see as well.
    plain: Headers,
    token_file: Option<PathBuf>,
    refused: Mutex<Option<Refused>>,
}

#[derive(Debug)]
struct Refused {
    headers: Headers,
    until: Instant,
    why: String,
}

impl Credentials {
    /// # Errors
    /// `Invalid` when there are several where one is meant.
    pub(crate) fn new(config: &Config, admin_secret: Option<SecretString>) -> Result<Self> {
        let ways = [admin_secret.is_some(), config.token.is_some(), config.token_file.is_some()];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            let message = "pubsub.hasura: admin_secret, token and token_file exclude each other";
            return Err(PluginError::new(ErrorKind::Invalid, message));
        }
        let mut plain = Vec::new();
        for (name, value) in &config.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            plain.extend(name.ok().map(|name| (name, value.clone())));
        }
        let mut fixed = plain.clone();
        fixed.extend(admin_secret.map(|secret| (ADMIN_SECRET, secret)));
        fixed.extend(config.token.as_ref().map(|token| (AUTHORIZATION, bearer(token.expose_secret()))));
        if !config.role.is_empty() {
            fixed.push((ROLE, config.role.clone().into()));
        }
        Ok(Self {
            fixed: Headers(fixed),
            plain: Headers(plain),
            token_file: config.token_file.clone(),
            refused: Mutex::default(),
        })
    }

    /// What is shown now.
    ///
    /// # Errors
    /// `Denied` when these were refused a moment ago; `Invalid` when the token's file cannot be read.
    pub(crate) async fn headers(&self) -> Result<Headers> {
        let mut headers = self.fixed.clone();
        if let Some(file) = &self.token_file {
            let unreadable = |why: String| {
                let message = format!("pubsub.hasura.token_file, {}, cannot be used: {why}", file.display());
                PluginError::new(ErrorKind::Invalid, message)
            };
            let token =
                tokio::fs::read_to_string(file).await.map_err(|error| unreadable(error.to_string()))?;
            let token = token.trim();
            if token.is_empty() || token.len() > LONGEST_TOKEN_BYTES || HeaderValue::from_str(token).is_err()
            {
                return Err(unreadable("it holds no token".to_owned()));
            }
            headers.0.push((AUTHORIZATION, bearer(token)));
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.take_if(|refused| refused.until <= Instant::now() || !refused.headers.is_same(&headers));
        match &*refused {
            Some(refused) => Err(denied(&refused.why)),
            None => Ok(headers),
        }
    }

    /// What goes with the websocket's upgrade; who this is follows in its first message.
    pub(crate) fn plain(&self) -> HeaderMap {
        self.plain.map()
    }

    /// The server has refused these. The answer says so, to everybody who would show them again.
    pub(crate) fn refused(&self, headers: Headers, said: &PluginError) -> PluginError {
        let why = format!("{said}; not tried again with the same within a minute");
        let until = Instant::now() + jittered(PAUSE);
        let refused = Refused { headers, until, why: why.clone() };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
        denied(&why)
    }
}

impl Headers {
    /// For a request; marked, so that nothing shows them.
    pub(crate) fn map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in &self.0 {
            // Values were checked when they were read.
            if let Ok(mut value) = HeaderValue::from_str(value.expose_secret()) {
                value.set_sensitive(true);
                map.insert(name.clone(), value);
            }
        }
        map
    }

    /// For a websocket's first message.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.expose_secret()))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Until somebody replaces the secret, or the token.
fn denied(why: &str) -> PluginError {
    PluginError::new(ErrorKind::Denied, why).with_retry(Retry::Later)
}

fn bearer(token: &str) -> SecretString {
    format!("Bearer {token}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_shown_again_a_minute_later_or_when_it_has_changed() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("token");
        std::fs::write(&file, "one\n").unwrap();
        let config = Config { token_file: Some(file.clone()), ..Config::default() };
        let credentials = Credentials::new(&config, None).unwrap();
        let headers = credentials.headers().await.unwrap();
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("authorization", "Bearer one")]);
        credentials.refused(headers, &denied("no"));
        assert_eq!(credentials.headers().await.unwrap_err().kind(), ErrorKind::Denied);
        std::fs::write(&file, "two").unwrap();
        let headers = credentials.headers().await.unwrap();
        credentials.refused(headers, &denied("no"));
        assert!(credentials.headers().await.is_err());
        tokio::time::advance(PAUSE * 2).await;
        assert!(credentials.headers().await.is_ok());
    }

    #[test]
    fn one_way_to_say_who_this_is_will_do() {
        let config = Config { token: Some("t".into()), ..Config::default() };
        assert_eq!(Credentials::new(&config, Some("s".into())).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
