//! What this host shows of itself, and what happens when that is refused.
//!
//! Refused credentials are not shown again for a minute, whoever asks: trying cannot help until somebody changes
//! something, and a fleet with a wrong secret must not become a storm. Where the cause may be another, as with a 403 of
//! who knows whom, the pause starts at two seconds and grows. A token that was replaced is tried at once.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use control_plane::shortened;
use host_core::{ErrorKind, PluginError, Retry, pubsub::Result};
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::OwnedMutexGuard, time::Instant};

use crate::config::Config;

const ADMIN_SECRET: HeaderName = HeaderName::from_static("x-hasura-admin-secret");
const ROLE: HeaderName = HeaderName::from_static("x-hasura-role");
/// From a refusal of the credentials to the next try with the same.
const PAUSE: Duration = Duration::from_secs(60);
/// The same where it may not be the credentials; it doubles from one refusal to the next.
const SHORT_PAUSE: Duration = Duration::from_secs(2);
/// A token is a few KB.
const LONGEST_TOKEN_BYTES: u64 = 65_536;

/// Headers that say who this is.
#[derive(Debug, Clone)]
pub(crate) struct Headers(Vec<(HeaderName, SecretString)>);

#[derive(Debug)]
pub(crate) struct Credentials {
    fixed: Headers,
    /// What a proxy in between may want to see as well.
    plain: Headers,
    token_file: Option<PathBuf>,
    /// Whoever reads it. One at a time: on a file system that hangs, each would take a thread along.
    reading: Arc<tokio::sync::Mutex<()>>,
    refused: Mutex<Option<Refused>>,
}

#[derive(Debug)]
struct Refused {
    headers: Headers,
    until: Instant,
    pause: Duration,
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
            reading: Arc::default(),
            refused: Mutex::default(),
        })
    }

    /// What is shown now. The caller has the deadline.
    ///
    /// # Errors
    /// `Denied` when these were refused a moment ago; `Invalid` when the token's file cannot be read.
    pub(crate) async fn headers(&self) -> Result<Headers> {
        let mut headers = self.fixed.clone();
        if let Some(file) = &self.token_file {
            let reading = Arc::clone(&self.reading).lock_owned().await;
            headers.0.push((AUTHORIZATION, bearer(token(file, reading).await?.expose_secret())));
        }
        let mut last = self.last_refusal();
        last.take_if(|last| !last.headers.is_same(&headers));
        match &*last {
            Some(last) if last.until > Instant::now() => Err(denied(&last.why)),
            _ => Ok(headers),
        }
    }

    fn last_refusal(&self) -> MutexGuard<'_, Option<Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes with the websocket's upgrade; who this is follows in its first message.
    pub(crate) fn plain(&self) -> HeaderMap {
        self.plain.map()
    }

    /// The server has refused these. The answer says so, to everybody who would show them again.
    pub(crate) fn refused(&self, headers: Headers, said: &PluginError) -> PluginError {
        let (now, mut last) = (Instant::now(), self.last_refusal());
        let pause = match last.as_ref().filter(|last| last.headers.is_same(&headers)) {
            _ if said.retry() == Retry::Never => PAUSE,
            None => SHORT_PAUSE,
            // Of several that were under way at once.
            Some(last) if last.until > now => last.pause,
            Some(last) => (last.pause * 2).min(PAUSE),
        };
        let why = format!("{said}; not tried again with the same within {pause:?}");
        *last = Some(Refused { headers, until: now + shortened(pause), pause, why: why.clone() });
        denied(&why)
    }

    /// The server believes this host, also after a pause.
    pub(crate) fn believed(&self) {
        self.last_refusal().take_if(|last| last.until <= Instant::now());
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

/// `reading` is given back when the file is read, also when nobody waits for it any more.
async fn token(file: &Path, reading: OwnedMutexGuard<()>) -> Result<SecretString> {
    let unreadable = |error: io::Error| {
        let message = format!("pubsub.hasura.token_file, {}, cannot be used: {error}", file.display());
        PluginError::new(ErrorKind::Invalid, message)
    };
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let _reading = reading;
        read_token(&path)
    });
    let read = read.await;
    read.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(unreadable)
}

/// Whatever else has that name may have no end, or wait for somebody.
fn read_token(file: &Path) -> io::Result<SecretString> {
    if !std::fs::metadata(file)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    let length = File::open(file)?.take(LONGEST_TOKEN_BYTES + 1).read_to_string(&mut text)?;
    let token = text.trim();
    let is_one = !token.is_empty() && HeaderValue::from_str(token).is_ok();
    match is_one && length as u64 <= LONGEST_TOKEN_BYTES {
        true => Ok(token.into()),
        false => Err(io::Error::other("it holds no token")),
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
        let refusal = PluginError::new(ErrorKind::Denied, "no");
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("token");
        std::fs::write(&file, "one\n").unwrap();
        let config = Config { token_file: Some(file.clone()), ..Config::default() };
        let credentials = Credentials::new(&config, None).unwrap();
        let headers = credentials.headers().await.unwrap();
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("authorization", "Bearer one")]);
        credentials.refused(headers, &refusal);
        assert_eq!(credentials.headers().await.unwrap_err().kind(), ErrorKind::Denied);
        std::fs::write(&file, "two").unwrap();
        let headers = credentials.headers().await.unwrap();
        credentials.refused(headers, &refusal);
        tokio::time::advance(PAUSE / 2).await;
        assert!(credentials.headers().await.is_err());
        tokio::time::advance(PAUSE / 2).await;
        assert!(credentials.headers().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_cause_may_be_another_pauses_start_short_and_grow() {
        let config = Config { token: Some("t".into()), ..Config::default() };
        let credentials = Credentials::new(&config, None).unwrap();
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            let headers = credentials.headers().await.unwrap();
            // Two requests at once are one refusal.
            credentials.refused(headers.clone(), &denied("403"));
            credentials.refused(headers, &denied("403"));
            tokio::time::advance(Duration::from_secs(seconds) / 2).await;
            assert!(credentials.headers().await.is_err(), "{seconds}");
            tokio::time::advance(Duration::from_secs(seconds) / 2).await;
        }
        let headers = credentials.headers().await.unwrap();
        credentials.believed();
        credentials.refused(headers, &denied("403"));
        tokio::time::advance(SHORT_PAUSE).await;
        assert!(credentials.headers().await.is_ok());
    }

    #[tokio::test]
    async fn only_a_short_regular_file_is_a_token() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("token");
        let config = |file: &Path| Config { token_file: Some(file.to_owned()), ..Config::default() };
        let said = async |file: &Path| {
            let credentials = Credentials::new(&config(file), None).unwrap();
            credentials.headers().await.map(drop).map_err(|error| error.to_string())
        };
        assert!(said(&file).await.is_err(), "there is none");
        for (text, is_one) in [
            (String::new(), false),
            (" \n".to_owned(), false),
            ("a\nb".to_owned(), false),
            ("t".repeat(65_536), true),
            ("t".repeat(65_537), false),
        ] {
            std::fs::write(&file, &text).unwrap();
            assert_eq!(said(&file).await.is_ok(), is_one, "{} bytes", text.len());
        }
        // It never ends.
        let error = said(Path::new("/dev/zero")).await.unwrap_err();
        assert!(error.contains("no regular file"), "{error}");
        assert!(said(scratch.path()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_hangs_takes_one_thread() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("token");
        std::fs::write(&file, "one").unwrap();
        let config = Config { token_file: Some(file), ..Config::default() };
        let credentials = Credentials::new(&config, None).unwrap();
        let hung = Arc::clone(&credentials.reading).lock_owned().await;
        let second = tokio::time::timeout(Duration::from_secs(3), credentials.headers()).await;
        assert!(second.is_err(), "a second one reads");
        drop(hung);
        assert!(credentials.headers().await.is_ok());
    }

    #[test]
    fn one_way_to_say_who_this_is_will_do() {
        let config = Config { token: Some("t".into()), ..Config::default() };
        assert_eq!(Credentials::new(&config, Some("s".into())).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
