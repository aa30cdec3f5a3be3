//! The routes of the metrics server, which serves them by closures.
#![expect(dead_code, reason = "functions that only describe")]

use crate::admin::views::Readiness;

/// The service lives
#[utoipa::path(
    get, path = "/healthz", tag = "probes",
    responses((status = 200, description = "it does", content_type = "text/plain", body = String)),
)]
pub(super) fn healthz() {}

/// Whether this host should get new mandelboxes
#[utoipa::path(
    get, path = "/readyz", tag = "probes",
    responses(
        (status = 200, description = "it should", body = Readiness),
        (status = 503, description = "draining, or the engine or the control plane cannot be heard", body = Readiness),
    ),
)]
pub(super) fn readyz() {}

/// Metrics in OpenMetrics text
#[utoipa::path(
    get, path = "/metrics", tag = "probes",
    responses((status = 200, description = "as they are now", content_type = "application/openmetrics-text", body = String)),
)]
pub(super) fn metrics() {}
