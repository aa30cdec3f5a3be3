//! Where the database is and how it is reached: the URL, taken apart as libpq takes it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{Host, SslMode};

/// A connection that is silent so long is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// What was sent and not acknowledged for so long is lost, and the connection with it.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

const EXAMPLE: &str = "write postgres://user:password@host:5432/database?sslmode=verify-full, with special \
                       characters of the password percent-encoded";

/// How the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Not at all: `prefer`, `require`.
    Nothing,
    /// It is signed by an authority: `verify-ca`.
    Authority,
    /// And it is this host's: `verify-full`.
    Full,
}

/// What the URL says of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) verify: Verify,
    /// `None` is the machine's authorities.
    pub(crate) authorities: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// A database. The driver's configuration masks its password.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) postgres: tokio_postgres::Config,
    pub(crate) tls: Tls,
}

#[derive(Default)]
struct Parameters {
    mode: Option<String>,
    authorities: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    /// For the driver.
    rest: Vec<String>,
}

impl Target {
    /// # Errors
    /// What is wrong, with an example. Nothing of the URL's text is in it: any part may be a password gone astray.
    pub(crate) fn parse(url: &SecretString) -> Result<Self, String> {
        let url = url.expose_secret();
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(format!("it is no PostgreSQL URL; {EXAMPLE}"));
        }
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let Parameters { mode, authorities, certificate, key, rest } = parameters(query)?;
        let text = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let parsed = text.parse::<tokio_postgres::Config>();
        let mut postgres = parsed.map_err(|_| format!("the URL cannot be read; {EXAMPLE}"))?;
        let (ssl_mode, verify) = modes(mode.as_deref(), is_near(&postgres))?;
        if certificate.is_some() != key.is_some() {
            return Err("sslcert and sslkey belong together, and one of them is missing".to_owned());
        }
        if postgres.get_application_name().is_none() {
            postgres.application_name("host-service");
        }
        postgres.ssl_mode(ssl_mode).keepalives_idle(KEEPALIVE).tcp_user_timeout(UNACKNOWLEDGED);
        Ok(Self { postgres, tls: Tls { verify, authorities, certificate, key } })
    }

    /// A host that does not answer leaves the others their part of `limit`, unless the URL says how long to wait.
    pub(crate) fn share(&mut self, limit: Duration) {
        if self.postgres.get_connect_timeout().is_none() {
            let hosts = self.postgres.get_hosts().len().max(self.postgres.get_hostaddrs().len());
            let parts = u32::try_from(hosts).unwrap_or(u32::MAX).saturating_add(1);
            self.postgres.connect_timeout(limit / parts);
        }
    }

    /// Whoever is between may read along, or pass for the database.
    pub(crate) fn is_exposed(&self) -> bool {
        self.tls.verify == Verify::Nothing && !is_near(&self.postgres)
    }
}

fn parameters(query: &str) -> Result<Parameters, String> {
    let mut found = Parameters::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = || percent_decode_str(value).decode_utf8_lossy().into_owned();
        match name {
            "sslmode" => found.mode = Some(value()),
            "sslrootcert" => {
                found.authorities = Some(value().into()).filter(|path: &PathBuf| path.as_os_str() != "system")
            }
            "sslcert" => found.certificate = Some(value().into()),
            "sslkey" => found.key = Some(value().into()),
            "application_name"
            | "channel_binding"
            | "connect_timeout"
            | "dbname"
            | "host"
            | "hostaddr"
            | "load_balance_hosts"
            | "options"
            | "password"
            | "port"
            | "target_session_attrs"
            | "user" => {
                found.rest.push(pair.to_owned());
            }
            _ => return Err(format!("the URL has a parameter that is not known; {EXAMPLE}")),
        }
    }
    Ok(found)
}

/// Without a word about it, what leaves this machine is encrypted for the right server only.
fn modes(mode: Option<&str>, is_near: bool) -> Result<(SslMode, Verify), String> {
    Ok(match mode {
        Some("disable") => (SslMode::Disable, Verify::Nothing),
        None if is_near => (SslMode::Disable, Verify::Nothing),
        Some("allow" | "prefer") => (SslMode::Prefer, Verify::Nothing),
        Some("require") => (SslMode::Require, Verify::Nothing),
        Some("verify-ca") => (SslMode::Require, Verify::Authority),
        None | Some("verify-full") => (SslMode::Require, Verify::Full),
        Some(_) => {
            return Err("sslmode is one of disable, prefer, require, verify-ca, verify-full".to_owned());
        }
    })
}

/// Every address is on this machine.
fn is_near(postgres: &tokio_postgres::Config) -> bool {
    let near = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()),
    };
    let addresses = postgres.get_hostaddrs();
    if addresses.is_empty() {
        postgres.get_hosts().iter().all(near)
    } else {
        addresses.iter().all(IpAddr::is_loopback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Target, String> {
        Target::parse(&SecretString::from(url))
    }

    #[test]
    fn what_leaves_the_machine_is_verified_unless_said_otherwise() {
        let (full, none) = (Verify::Full, Verify::Nothing);
        for (url, mode, verify, is_exposed) in [
            ("postgres://u@127.0.0.1/d", SslMode::Disable, none, false),
            ("postgres://u@localhost/d", SslMode::Disable, none, false),
            ("postgresql://u@%2Frun%2Fpg/d", SslMode::Disable, none, false),
            ("postgres://u@db.example/d", SslMode::Require, full, false),
            ("postgres://u@127.0.0.1,db.example/d", SslMode::Require, full, false),
            ("postgres://u@db.example/d?sslmode=disable", SslMode::Disable, none, true),
            ("postgres://u@localhost,db.example/d?sslmode=disable", SslMode::Disable, none, true),
            ("postgres://u@db.example/d?sslmode=prefer", SslMode::Prefer, none, true),
            ("postgres://u@db.example/d?sslmode=require", SslMode::Require, none, true),
            ("postgres://u@127.0.0.1/d?sslmode=verify-ca", SslMode::Require, Verify::Authority, false),
        ] {
            let target = parse(url).unwrap();
            let found = (target.postgres.get_ssl_mode(), target.tls.verify, target.is_exposed());
            assert_eq!(found, (mode, verify, is_exposed), "{url}");
        }
    }

    #[test]
    fn files_are_taken_from_the_url_as_libpq_takes_them() {
        let url = "postgres://u@h/d?sslrootcert=%2Fa%20b&sslcert=/c&sslkey=/k&connect_timeout=3";
        let tls = parse(url).unwrap().tls;
        assert_eq!(tls.authorities.unwrap(), PathBuf::from("/a b"));
        assert_eq!((tls.certificate.unwrap(), tls.key.unwrap()), ("/c".into(), "/k".into()));
        assert!(parse("postgres://u@h/d?sslrootcert=system").unwrap().tls.authorities.is_none());
    }

    #[test]
    fn a_wrong_url_is_refused_and_not_repeated() {
        for url in [
            "host=h password=hunter2",
            "postgres://u:hun?ter2@h/d",
            "postgres://u:hunter2@h:hunter2/d",
            "postgres://u@h/d?hunter2=1",
            "postgres://u@h/d?sslmode=hunter2",
            "postgres://u@h/d?sslkey=/hunter2",
        ] {
            let error = parse(url).unwrap_err();
            assert!(!error.contains("ter2"), "{url}: {error}");
        }
        let shown = format!("{:?}", parse("postgres://u:hunter2@h/d").unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
