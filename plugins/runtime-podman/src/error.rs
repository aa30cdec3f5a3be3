//! From what goes wrong with the engine to what the host acts on.

use std::{error::Error as StdError, fmt::Display, io};

use engine_http::{Broken, Doing, Endpoint, Failure, io_cause};
use host_core::{ErrorKind, PluginError};
use http::StatusCode;
use podman_api::{Error, conn};

/// Turns failures of requests to one engine into [`PluginError`]s.
#[derive(Debug, Clone)]
pub(crate) struct Explain {
    endpoint: Endpoint,
}

impl Explain {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// A request through podman-api.
    pub(crate) fn failed(&self, doing: Doing<'_>, error: Error) -> PluginError {
        match error {
            Error::Fault { code, message } => refused(doing, code.as_u16(), &message),
            // The text of these may hold a piece of the answer, and so of a container's environment.
            Error::SerdeJsonError(error) | Error::Error(conn::Error::SerdeJsonError(error)) => {
                nonsense(doing, format_args!("at column {}", error.column()))
            }
            Error::InvalidResponse(what) => nonsense(doing, what),
            other => self.disconnected(doing, &other),
        }
    }

    /// Any other request.
    pub(crate) fn unanswered(&self, doing: Doing<'_>, failure: Failure) -> PluginError {
        match failure {
            Failure::Refused(status, message) => refused(doing, status, &message),
            Failure::Broken(error) => self.broken(doing, error),
        }
    }

    pub(crate) fn broken(&self, doing: Doing<'_>, error: Broken) -> PluginError {
        self.disconnected(doing, error.as_ref())
    }

    /// The engine cannot be reached, or the connection broke. The remedy is part of the text.
    fn disconnected(&self, doing: Doing<'_>, error: &(dyn StdError + 'static)) -> PluginError {
        let endpoint = &self.endpoint;
        let cause = io_cause(error);
        let (kind, text) = match cause {
            Some(io::ErrorKind::PermissionDenied) => {
                (ErrorKind::Denied, "may not be used by this user: run as root or as the socket's owner")
            }
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => (
                ErrorKind::Unavailable,
                "is not there: start it (systemctl start podman.socket) or set runtime.podman.endpoint",
            ),
            _ => (ErrorKind::Unavailable, "broke the connection"),
        };
        let error = PluginError::new(kind, format!("cannot {doing}: podman at {endpoint} {text}"));
        match cause {
            Some(cause) => error.with_source(io::Error::from(cause)),
            None => error,
        }
    }

    pub(crate) fn timed_out(&self, doing: Doing<'_>) -> PluginError {
        let text = format!("cannot {doing}: podman at {} did not answer in time", self.endpoint);
        PluginError::new(ErrorKind::Timeout, text)
    }
}

/// The engine answered, and said no.
pub(crate) fn refused(doing: Doing<'_>, status: u16, message: &str) -> PluginError {
    let kind = kind_of(StatusCode::from_u16(status).unwrap_or_default(), message);
    PluginError::new(kind, format!("cannot {doing}: {}", message.trim()))
}

/// The engine answered something that is no answer.
pub(crate) fn nonsense(doing: Doing<'_>, what: impl Display) -> PluginError {
    let text = format!("cannot {doing}: podman's answer cannot be read ({what})");
    PluginError::new(ErrorKind::Internal, text)
}

pub(crate) fn unsupported(why: &str, what: &str) -> PluginError {
    PluginError::new(ErrorKind::Unsupported, format!("{what} cannot be applied: {why}"))
}

/// Podman answers 500 to most things, whatever they are; lower case, most telling first.
const TEXTS: &[(&str, ErrorKind)] = &[
    // It ended while the engine looked.
    ("/cgroup: no such process", ErrorKind::Conflict),
    ("/cgroup: no such file or directory", ErrorKind::Conflict),
    ("address already in use", ErrorKind::AddressInUse),
    ("no space left on device", ErrorKind::Exhausted),
    ("cannot allocate memory", ErrorKind::Exhausted),
    ("too many open files", ErrorKind::Exhausted),
    ("resource temporarily unavailable", ErrorKind::Exhausted),
    ("is already in use", ErrorKind::Conflict),
    ("container state improper", ErrorKind::Conflict),
    ("invalid reference format", ErrorKind::Invalid),
    ("repository name must be", ErrorKind::Invalid),
    ("no such container", ErrorKind::NotFound),
    ("image not known", ErrorKind::NotFound),
    ("exec format error", ErrorKind::Invalid),
    ("executable file", ErrorKind::Invalid),
    ("command not found", ErrorKind::Invalid),
    ("unresolvable cdi devices", ErrorKind::Invalid),
    ("cdi device injection failed", ErrorKind::Invalid),
    ("statfs ", ErrorKind::Invalid),
    ("stat /", ErrorKind::Invalid),
    ("decoding seccomp profile", ErrorKind::Invalid),
    ("loading seccomp profile", ErrorKind::Invalid),
    ("error setting rlimit", ErrorKind::Invalid),
    ("apparmor profile", ErrorKind::Invalid),
    ("does not match any of the supported image formats", ErrorKind::Invalid),
];

/// The same for what only a registry can cause.
const REGISTRY_TEXTS: &[(&str, ErrorKind)] = &[
    ("manifest unknown", ErrorKind::NotFound),
    ("name unknown", ErrorKind::NotFound),
    ("no image found in", ErrorKind::NotFound),
    ("unauthorized", ErrorKind::Denied),
    ("access to the resource is denied", ErrorKind::Denied),
    ("connection refused", ErrorKind::Unavailable),
    ("no such host", ErrorKind::Unavailable),
    ("i/o timeout", ErrorKind::Unavailable),
    ("network is unreachable", ErrorKind::Unavailable),
    ("tls handshake timeout", ErrorKind::Unavailable),
    ("pinging container registry", ErrorKind::Unavailable),
];

fn kind_of(status: StatusCode, message: &str) -> ErrorKind {
    let message = message.to_lowercase();
    let told = |texts: &[(&str, ErrorKind)]| {
        texts.iter().find(|(text, _)| message.contains(text)).map(|(_, kind)| *kind)
    };
    if let Some(kind) = told(TEXTS) {
        return kind;
    }
    match status {
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::CONFLICT => ErrorKind::Conflict,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Denied,
        StatusCode::NOT_IMPLEMENTED => ErrorKind::Unsupported,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => ErrorKind::Unavailable,
        // A path that the engine corrects by redirection was made of a name that is none.
        status if status.is_client_error() || status.is_redirection() => ErrorKind::Invalid,
        _ => told(REGISTRY_TEXTS).unwrap_or(ErrorKind::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Doing = Doing("ping", "");

    #[test]
    fn what_podman_has_been_seen_to_say_has_its_kind() {
        use ErrorKind::*;
        for (status, message, expected) in [
            (404, "no container with name or ID \"a\" found: no such container", NotFound),
            (500, "container 7c does not exist in database: no such container", NotFound),
            (404, "failed to find image a/b:c: a/b:c: image not known", NotFound),
            (404, "failed to find image No/Upper:case: repository name must be lowercase", Invalid),
            (404, "failed to find image a:b:c: invalid reference format", Invalid),
            (301, "", Invalid),
            (500, "creating container storage: the container name \"a\" is already in use by 1f", Conflict),
            (
                500,
                "can only kill running containers. 7c is in state exited: container state improper",
                Conflict,
            ),
            (
                500,
                "cannot listen on the TCP port: listen tcp4 :1: bind: address already in use",
                AddressInUse,
            ),
            (500, "read /proc/899/cgroup: no such process", Conflict),
            (500, "statfs /nope: no such file or directory", Invalid),
            (
                500,
                "runc: runc create failed: unable to start container process: exec: \"/x\": stat /x: no such file or directory: OCI runtime attempted to invoke a command that was not found",
                Invalid,
            ),
            (500, "runc: exec /test-mandelbox: exec format error: OCI runtime error", Invalid),
            (500, "write /var/tmp/x: no space left on device", Exhausted),
            (
                200,
                "initializing source docker://127.0.0.1:1/a: pinging container registry 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused",
                Unavailable,
            ),
            (200, "reading manifest c in r.io/a/b: manifest unknown: manifest unknown", NotFound),
            (500, "some day", Internal),
        ] {
            assert_eq!(refused(PING, status, message).kind(), expected, "{status} {message}");
        }
    }

    #[test]
    fn an_unreachable_engine_names_its_remedy() {
        let explain = Explain::new(Endpoint::Unix("/run/x.sock".into()));
        let failed = |kind| explain.unanswered(PING, io::Error::from(kind).into());
        let error = failed(io::ErrorKind::NotFound);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("systemctl start podman.socket"), "{error}");
        assert_eq!(failed(io::ErrorKind::PermissionDenied).kind(), ErrorKind::Denied);
        assert!(failed(io::ErrorKind::ConnectionReset).to_string().contains("broke"));
    }

    #[test]
    fn a_piece_of_an_answer_is_never_told() {
        let explain = Explain::new(Endpoint::Unix("/run/x.sock".into()));
        let error = serde_json::from_str::<u8>("\"KEY=hunter2\"").unwrap_err();
        let error = explain.failed(PING, Error::SerdeJsonError(error));
        assert!(!host_core::chain(&error).contains("hunter2"));
    }
}
