//! A request's JSON body, bounded in size and time.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::StatusCode,
};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Room for the largest startup data that `json_transport` takes.
pub(crate) const LIMIT_BYTES: usize = 1024 * 1024;

/// From the end of the header to the end of the body.
const DEADLINE: Duration = Duration::from_secs(10);

/// The body as a `T`; an empty one is `T::default()`. The content type does not matter: nothing but JSON is taken.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T, S> FromRequest<S> for Body<T>
where
    T: DeserializeOwned + Default,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = tokio::time::timeout(DEADLINE, Bytes::from_request(request, state)).await;
        let bytes = bytes
            .map_err(|_| {
                ApiError::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not come in time")
            })?
            .map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "too_large",
                    format!("a body may have {LIMIT_BYTES} bytes"),
                ),
                _ => ApiError::malformed(rejection.body_text()),
            })?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value: T = serde_path_to_error::deserialize(&mut json).map_err(|error| explain(&error))?;
        json.end().map_err(|error| ApiError::malformed(error.to_string()))?;
        Ok(Self(value))
    }
}

/// `app: app name "…" is not valid: …`, without the path where it says nothing.
fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let path = error.path().to_string();
    match path.as_str() {
        "." => ApiError::malformed(error.inner().to_string()),
        _ => ApiError::malformed(format!("{path}: {}", error.inner())),
    }
}
