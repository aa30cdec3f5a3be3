//! From the service's settings to this server's options.

use std::{num::NonZeroU32, sync::Arc};

use futures::FutureExt;
use host_config::{AuthMode, AuthSettings, HttpSettings, Settings};
use host_core::UserId;

use super::{Auth, BuildError, Certificate, KeySource, Limits, OnRequest, Options, Quota, Served};
use crate::host::Host;

impl TryFrom<&Settings> for Options {
    type Error = BuildError;

    fn try_from(settings: &Settings) -> Result<Self, BuildError> {
        Ok(Self {
            listen: settings.http.listen,
            certificate: certificate(settings)?,
            certificate_check: settings.http.certificate_check,
            auth: auth(&settings.auth)?,
            limits: Limits::from(&settings.http),
        })
    }
}

fn certificate(settings: &Settings) -> Result<Certificate, BuildError> {
    let http = &settings.http;
    match (http.certificate.clone(), http.key.clone()) {
        (Some(certificate), Some(key)) => Ok(Certificate::Files { certificate, key }),
        (Some(_), None) => Err(BuildError::Unset("http.key")),
        (None, Some(_)) => Err(BuildError::Unset("http.certificate")),
        (None, None) => Ok(Certificate::Generated {
            directory: settings.paths.state.join("tls"),
            addresses: settings.instance.ip.into_iter().chain([http.listen.ip()]).collect(),
        }),
    }
}

fn auth(auth: &AuthSettings) -> Result<Auth, BuildError> {
    match auth.mode {
        AuthMode::Off => Ok(Auth::Off),
        AuthMode::Jwt => Ok(Auth::Jwt {
            issuer: auth.issuer.clone().ok_or(BuildError::Unset("auth.issuer"))?,
            audience: auth.audience.clone().ok_or(BuildError::Unset("auth.audience"))?,
            keys: KeySource::try_from(auth)?,
        }),
    }
}

impl TryFrom<&AuthSettings> for KeySource {
    type Error = BuildError;

    fn try_from(auth: &AuthSettings) -> Result<Self, BuildError> {
        if let Some(file) = &auth.jwks_file {
            return Ok(Self::File(file.clone()));
        }
        Ok(Self::Served(Served {
            url: auth.keys_url().ok_or(BuildError::Unset("auth.jwks_url"))?,
            refresh: auth.jwks_refresh,
            pause: auth.jwks_pause,
            timeout: auth.jwks_timeout,
        }))
    }
}

impl From<&HttpSettings> for Limits {
    fn from(http: &HttpSettings) -> Self {
        Self {
            max_connections: usize::try_from(http.max_connections).unwrap_or(usize::MAX),
            handshake_timeout: http.handshake_timeout,
            header_timeout: http.header_timeout,
            body_timeout: http.body_timeout,
            idle_timeout: http.idle_timeout,
            body_limit_bytes: usize::try_from(http.body_limit_bytes).unwrap_or(usize::MAX),
            quota: Quota {
                connections: NonZeroU32::new(http.max_connections_per_address),
                connection_rate: NonZeroU32::new(http.connection_rate_per_address),
                overall_rate: NonZeroU32::new(http.connection_rate),
                request_rate: NonZeroU32::new(http.request_rate_per_address),
            },
        }
    }
}

impl OnRequest {
    /// Through `host`, for `user` where tokens are not checked; `None` unless `mandelbox.allocate_on_request`.
    pub fn of(host: &Host, user: UserId) -> Option<Self> {
        let settings = &host.settings().mandelbox;
        let (host, app) = (host.clone(), settings.default_app.clone());
        settings.allocate_on_request.then(|| Self {
            allocate: Arc::new(move |allocation| {
                let host = host.clone();
                async move { host.allocate(&allocation).await }.boxed()
            }),
            user,
            app,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use host_config::Sources;

    use super::*;

    fn settings(set: &[&str]) -> Settings {
        let set = set.iter().map(ToString::to_string).collect();
        let profile = Some("localdev".to_owned());
        let sources = Sources { profile, system_dir: "/nonexistent".into(), set, ..Sources::default() };
        host_config::load(&sources).unwrap().settings
    }

    #[test]
    fn the_local_profile_checks_no_tokens_and_makes_its_certificate() {
        let settings = settings(&["paths.state=/scratch/state", "instance.ip=192.0.2.1"]);
        let options = Options::try_from(&settings).unwrap();
        assert!(matches!(options.auth, Auth::Off));
        let Certificate::Generated { directory, addresses } = options.certificate else { panic!("files") };
        assert_eq!(directory, Path::new("/scratch/state/tls"));
        assert_eq!(addresses, [settings.instance.ip.unwrap(), settings.http.listen.ip()]);
    }

    #[test]
    fn what_is_half_set_is_named() {
        let unset = |change: fn(&mut Settings)| {
            let mut settings = settings(&[]);
            change(&mut settings);
            Options::try_from(&settings).unwrap_err().to_string()
        };
        assert_eq!(unset(|settings| settings.auth.mode = AuthMode::Jwt), "auth.issuer is not set");
        assert_eq!(unset(|settings| settings.http.certificate = Some("c".into())), "http.key is not set");
        assert_eq!(unset(|settings| settings.http.key = Some("k".into())), "http.certificate is not set");
    }
}
