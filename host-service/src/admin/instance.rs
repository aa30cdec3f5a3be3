//! Routes about the host as a whole.

use std::time::Duration;

use axum::{Json, extract::State, http::StatusCode};
use host_core::planner::DrainCause;

use super::{
    body::Body,
    error::{ApiError, BodyRefused},
    show,
    views::{DrainRequest, DrainView, StatusView},
};
use crate::host::{DrainOrder, Host};

/// The whole service at a glance
#[utoipa::path(
    get, path = "/v1/status", tag = "admin",
    responses((status = 200, description = "as it is now", body = StatusView)),
)]
pub(crate) async fn status(State(host): State<Host>) -> Json<StatusView> {
    Json(show::status(&host))
}

/// Takes no new mandelboxes, lets sessions end, and ends the service with the last
///
/// Answers as soon as the drain is ordered. A second order may only hurry the first.
#[utoipa::path(
    post, path = "/v1/drain", tag = "admin", request_body = DrainRequest,
    responses((status = 202, description = "it is ordered", body = DrainView), BodyRefused),
)]
pub(crate) async fn drain(
    State(host): State<Host>,
    Body(request): Body<DrainRequest>,
) -> Result<(StatusCode, Json<DrainView>), ApiError> {
    tracing::info!(force = request.force, deadline_ms = request.deadline_ms, "an operator orders a drain");
    host.drain(DrainOrder {
        cause: DrainCause::Operator,
        deadline: request.deadline_ms.map(Duration::from_millis),
        force: request.force,
    });
    let mandelboxes = host.board().len();
    Ok((StatusCode::ACCEPTED, Json(DrainView { mandelboxes })))
}
