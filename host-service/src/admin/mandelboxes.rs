//! Routes about mandelboxes that exist.

use std::time::Duration;

use axum::{
    Json,
    body::Body as ResponseBody,
    extract::{FromRequestParts, Path, Query, State},
    http::{StatusCode, header::CONTENT_TYPE, request::Parts},
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use host_core::{MandelboxId, chain, runtime::LogOptions};

use super::{
    body::Body,
    error::{ApiError, BodyRefused, NoMandelbox},
    show,
    views::{ErrorView, LogsQuery, MandelboxView, MandelboxesView, StopRequest, StoppedView},
};
use crate::{host::Host, mandelbox::Mandelbox};

/// The id in the path.
#[derive(Debug)]
pub(crate) struct Id(MandelboxId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|rejection| ApiError::malformed(rejection.body_text()))?;
        let id =
            text.parse().map_err(|error: host_core::InvalidId| ApiError::malformed(error.to_string()))?;
        Ok(Self(id))
    }
}

/// Every mandelbox that has not ended
#[utoipa::path(
    get, path = "/v1/mandelboxes", tag = "admin",
    responses((status = 200, description = "by id", body = MandelboxesView)),
)]
pub(crate) async fn list(State(host): State<Host>) -> Json<MandelboxesView> {
    let mandelboxes = host.board().all().iter().map(|mandelbox| show::mandelbox(mandelbox)).collect();
    Json(MandelboxesView { mandelboxes })
}

/// One mandelbox
#[utoipa::path(
    get, path = "/v1/mandelboxes/{id}", tag = "admin", params(("id" = String, Path)),
    responses((status = 200, description = "as it is now", body = MandelboxView), NoMandelbox),
)]
pub(crate) async fn inspect(State(host): State<Host>, Id(id): Id) -> Result<Json<MandelboxView>, ApiError> {
    let mandelbox = host.board().get(&id).ok_or_else(|| ApiError::no_mandelbox(&id))?;
    Ok(Json(show::mandelbox(&mandelbox)))
}

/// A mandelbox's output, standard error included
#[utoipa::path(
    get, path = "/v1/mandelboxes/{id}/logs", tag = "admin", params(("id" = String, Path), LogsQuery),
    responses(
        (status = 200, description = "as it was written", content_type = "application/octet-stream"),
        (status = 503, description = "`unavailable`: the engine does not answer", body = ErrorView),
        NoMandelbox,
    ),
)]
pub(crate) async fn logs(
    State(host): State<Host>,
    Id(id): Id,
    query: Result<Query<LogsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::malformed(rejection.body_text()))?;
    let options = LogOptions { follow: query.follow, tail: query.tail };
    let opened = host.logs(&id, options).await.ok_or_else(|| ApiError::no_mandelbox(&id))?;
    let output = opened?.inspect_err(move |error| {
        // The status is sent already: all that is left is to break the answer off.
        tracing::warn!(mandelbox = %id, error = %chain(error), "a log broke off");
    });
    Ok(([(CONTENT_TYPE, "application/octet-stream")], ResponseBody::from_stream(output)).into_response())
}

/// Stops a mandelbox and waits until it is gone
#[utoipa::path(
    post, path = "/v1/mandelboxes/{id}/stop", tag = "admin", params(("id" = String, Path)),
    request_body = StopRequest,
    responses(
        (status = 200, description = "it is gone", body = StoppedView),
        (status = 504, description = "`timeout`: it is still being ended", body = ErrorView),
        NoMandelbox,
        BodyRefused,
    ),
)]
pub(crate) async fn stop(
    State(host): State<Host>,
    Id(id): Id,
    Body(request): Body<StopRequest>,
) -> Result<Json<StoppedView>, ApiError> {
    let grace = request.grace_ms.map(Duration::from_millis);
    let mandelbox = host.stop(&id, grace).ok_or_else(|| ApiError::no_mandelbox(&id))?;
    tracing::info!(mandelbox = %id, grace_ms = request.grace_ms, "an operator stops a mandelbox");
    let limit = stop_limit(&host, grace);
    let gone = tokio::time::timeout(limit, mandelbox.gone()).await;
    gone.map_err(|_| {
        let message = format!("mandelbox {id} is not gone after {limit:?}; it is still being ended");
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    })?;
    stopped(&mandelbox).map(Json)
}

/// The longest that an end can take when every step of it takes its whole time.
fn stop_limit(host: &Host, grace: Option<Duration>) -> Duration {
    let settings = &host.settings().mandelbox;
    let timeouts = &settings.timeouts;
    let step = timeouts.create.max(timeouts.image); // the one it may be in when the order comes
    grace.unwrap_or(settings.stop_grace) + step + timeouts.stop + timeouts.remove
}

fn stopped(mandelbox: &Mandelbox) -> Result<StoppedView, ApiError> {
    let end = show::end(&mandelbox.state().phase).ok_or_else(|| {
        let message = format!("mandelbox {} is gone without a reason", mandelbox.id());
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    })?;
    Ok(StoppedView { id: mandelbox.id().clone(), end })
}
