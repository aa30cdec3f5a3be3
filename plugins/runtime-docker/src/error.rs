//! From what goes wrong with the engine to what the host acts on.

use std::{error::Error as StdError, fmt::Display, io};

use bollard::errors::Error;
use engine_http::{Doing, Endpoint, io_cause};
use host_core::{ErrorKind, PluginError};
use hyper::StatusCode;

/// Turns failures of requests to one engine into [`PluginError`]s.
#[derive(Debug, Clone)]
pub(crate) struct Explain {
    endpoint: Endpoint,
}

impl Explain {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    pub(crate) fn failed(&self, doing: Doing<'_>, error: Error) -> PluginError {
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                refused(doing, status_code, &message)
            }
            Error::DockerStreamError { error } => refused(doing, 200, &error),
            Error::RequestTimeoutError => self.timed_out(doing),
            // The text of these may hold a piece of the answer, and so of a container's environment.
            Error::JsonDataError { column, .. } => nonsense(doing, format_args!("at column {column}")),
            Error::JsonSerdeError { err } => nonsense(doing, format_args!("at column {}", err.column())),
            Error::SocketNotFoundError(_) => {
                self.disconnected(doing, &io::Error::from(io::ErrorKind::NotFound))
            }
            Error::IOError { err } => self.disconnected(doing, &err),
            Error::HyperResponseError { err } => self.disconnected(doing, &err),
            Error::HyperLegacyError { err } => self.disconnected(doing, &err),
            other => PluginError::new(ErrorKind::Internal, format!("cannot {doing}")).with_source(other),
        }
    }

    /// The engine cannot be reached, or the connection broke. The remedy is part of the text.
    pub(crate) fn disconnected(&self, doing: Doing<'_>, error: &(dyn StdError + 'static)) -> PluginError {
        let endpoint = &self.endpoint;
        let cause = io_cause(error);
        let (kind, text) = match cause {
            Some(io::ErrorKind::PermissionDenied) => {
                (ErrorKind::Denied, "may not be used by this user: run as root or as a member of its group")
            }
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => (
                ErrorKind::Unavailable,
                "is not there: start it (systemctl start docker) or set runtime.docker.endpoint",
            ),
            _ => (ErrorKind::Unavailable, "broke the connection"),
        };
        let error = PluginError::new(kind, format!("cannot {doing}: docker at {endpoint} {text}"));
        match cause {
            Some(cause) => error.with_source(io::Error::from(cause)),
            None => error,
        }
    }

    pub(crate) fn timed_out(&self, doing: Doing<'_>) -> PluginError {
        let text = format!("cannot {doing}: docker at {} did not answer in time", self.endpoint);
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
    let text = format!("cannot {doing}: docker's answer cannot be read ({what})");
    PluginError::new(ErrorKind::Internal, text)
}

/// Failures that the engine tells by text only, under whatever status; lower case, most telling first.
const TEXTS: &[(&str, ErrorKind)] = &[
    ("port is already allocated", ErrorKind::AddressInUse),
    ("address already in use", ErrorKind::AddressInUse),
    ("ports are not available", ErrorKind::AddressInUse),
    // Podman's, under 500.
    ("/cgroup: no such process", ErrorKind::Conflict),
    ("/cgroup: no such file or directory", ErrorKind::Conflict),
    ("that name is already in use", ErrorKind::Conflict),
    ("no such container", ErrorKind::NotFound),
    ("repository name must be", ErrorKind::Invalid),
    ("no space left on device", ErrorKind::Exhausted),
    ("cannot allocate memory", ErrorKind::Exhausted),
    ("too many open files", ErrorKind::Exhausted),
    ("resource temporarily unavailable", ErrorKind::Exhausted),
    ("could not select device driver", ErrorKind::Unsupported),
    ("logging driver does not support reading", ErrorKind::Unsupported),
    ("but it is not a shared", ErrorKind::Invalid),
    ("apparmor profile", ErrorKind::Invalid),
    ("unresolvable cdi devices", ErrorKind::Invalid),
    ("exec format error", ErrorKind::Invalid),
    ("does not match the specified platform", ErrorKind::Invalid),
    ("does not provide the specified platform", ErrorKind::Invalid),
    ("executable file not found", ErrorKind::Invalid),
    ("error gathering device information", ErrorKind::Invalid),
    ("seccomp profile failed", ErrorKind::Invalid),
    ("invalid reference format", ErrorKind::Invalid),
    ("setting rlimit", ErrorKind::Invalid),
];

/// The same for what only a registry can cause.
const REGISTRY_TEXTS: &[(&str, ErrorKind)] = &[
    ("manifest unknown", ErrorKind::NotFound),
    ("no matching manifest", ErrorKind::NotFound),
    ("unauthorized", ErrorKind::Denied),
    ("no basic auth credentials", ErrorKind::Denied),
    ("connection refused", ErrorKind::Unavailable),
    ("no such host", ErrorKind::Unavailable),
    ("i/o timeout", ErrorKind::Unavailable),
    ("tls handshake timeout", ErrorKind::Unavailable),
    ("request canceled while waiting for connection", ErrorKind::Unavailable),
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
        StatusCode::GATEWAY_TIMEOUT => ErrorKind::Timeout,
        // A path that the engine corrects by redirection was made of a name that is none.
        status if status.is_client_error() || status.is_redirection() => ErrorKind::Invalid,
        _ => told(REGISTRY_TEXTS).unwrap_or(ErrorKind::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: Doing = Doing("ping", "");

    fn kind(status: u16, message: &str) -> ErrorKind {
        refused(PING, status, message).kind()
    }

    #[test]
    fn what_engines_have_been_seen_to_say_has_its_kind() {
        use ErrorKind::*;
        for (status, message, expected) in [
            (404, "No such image: test/nope:latest", NotFound),
            (404, "No such container: aa", NotFound),
            (409, "Conflict. The container name \"/aa\" is already in use by container \"1\".", Conflict),
            (
                500,
                "driver failed programming external connectivity on endpoint aa (6e): Error starting userland proxy: listen tcp4 127.0.0.1:36111: bind: address already in use",
                AddressInUse,
            ),
            (
                500,
                "driver failed programming external connectivity on endpoint aa (6e): Bind for 0.0.0.0:80 failed: port is already allocated",
                AddressInUse,
            ),
            (
                500,
                "failed to set up container networking: driver failed programming external connectivity: failed to bind host port for 0.0.0.0:80:172.17.0.2:80/tcp: address already in use",
                AddressInUse,
            ),
            (
                400,
                "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: \"/nope\": stat /nope: no such file or directory: unknown",
                Invalid,
            ),
            (
                400,
                "OCI runtime create failed: exec: \"sh\": executable file not found in $PATH: unknown",
                Invalid,
            ),
            (500, "exec /usr/bin/x: exec format error", Invalid),
            (
                404,
                "image with reference a/b:c was found but does not match the specified platform: wanted linux/amd64, actual: linux/s390x",
                Invalid,
            ),
            (
                500,
                "error gathering device information while adding custom device \"/dev/nope\": no such file or directory",
                Invalid,
            ),
            (500, "could not select device driver \"nvidia\" with capabilities: [[gpu]]", Unsupported),
            (500, "Decoding seccomp profile failed: invalid character 'b'", Invalid),
            (400, "invalid mount config for type \"bind\": bind source path does not exist: /nope", Invalid),
            (500, "write /var/lib/docker/tmp/x: no space left on device", Exhausted),
            (
                500,
                "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                Unavailable,
            ),
            (200, "manifest unknown: manifest unknown", NotFound),
            (500, "Head \"https://r/v2/a/manifests/b\": unauthorized: authentication required", Denied),
            (301, "", Invalid),
            (500, "some day", Internal),
        ] {
            assert_eq!(kind(status, message), expected, "{status} {message}");
        }
    }

    #[test]
    fn an_unreachable_engine_names_its_remedy() {
        let explain = Explain::new(Endpoint::Unix("/run/x.sock".into()));
        let error = explain.failed(PING, Error::SocketNotFoundError("/run/x.sock".into()));
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("systemctl start docker"), "{error}");
        let err = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = explain.failed(PING, Error::IOError { err });
        assert_eq!(error.kind(), ErrorKind::Denied);
        let err = io::Error::from(io::ErrorKind::ConnectionReset);
        let error = explain.failed(PING, Error::IOError { err });
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("broke"), "{error}");
    }

    #[test]
    fn a_piece_of_an_answer_is_never_told() {
        let explain = Explain::new(Endpoint::Unix("/run/x.sock".into()));
        let message = "invalid type: string \"KEY=hunter2\"".to_owned();
        let error = explain.failed(PING, Error::JsonDataError { message, column: 3 });
        assert!(!host_core::chain(&error).contains("hunter2"));
    }
}
