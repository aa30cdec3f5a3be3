//! How the admin API refuses: a status, a code for machines, a text for people.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use host_core::{ErrorKind, MandelboxId, PluginError, chain};

use utoipa::IntoResponses;

use super::views::ErrorView;

/// A refused or failed request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    /// `code` is stable; `message` says what to do about it.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// The request itself is wrong.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// There is no mandelbox of that id.
    pub(crate) fn no_mandelbox(id: &MandelboxId) -> Self {
        let message = format!("this host has no mandelbox {id}");
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }
}

/// What every request with a body can be told, for the description.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only describes")]
pub(crate) enum BodyRefused {
    /// `malformed`
    #[response(status = 400)]
    Malformed(ErrorView),
    /// `too_slow`
    #[response(status = 408)]
    TooSlow(ErrorView),
    /// `too_large`
    #[response(status = 413)]
    TooLarge(ErrorView),
}

/// What every request for one mandelbox can be told, for the description.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only describes")]
pub(crate) enum NoMandelbox {
    /// `malformed`
    #[response(status = 400)]
    Malformed(ErrorView),
    /// `not_found`
    #[response(status = 404)]
    NotFound(ErrorView),
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorView { error: self.message, code: self.code.to_owned() };
        (self.status, Json(body)).into_response()
    }
}

impl From<PluginError> for ApiError {
    fn from(error: PluginError) -> Self {
        let status = match error.kind() {
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict | ErrorKind::AddressInUse => StatusCode::CONFLICT,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Unavailable | ErrorKind::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.kind().as_str(), chain(&error))
    }
}
