//! The description of both APIs, admin and clients', committed as `openapi.json` at the root of the repository.

use axum::Json;
use utoipa::{
    Modify, OpenApi,
    openapi::{OpenApi as Description, Server},
};

use super::{
    instance, mandelboxes, spin_up,
    views::{NotReady, Readiness},
};

mod json_transport;
mod probes;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "host-service",
        description = "What a host says to its clients, to its operators and to probes. The admin API is HTTP over a \
            unix socket: `curl --unix-socket /run/host-service/admin.sock http://localhost/v1/status`.",
    ),
    servers((url = "http://localhost", description = "the unix socket of `[admin] socket`, for root and one group")),
    tags(
        (name = "admin", description = "for operators and the command line"),
        (name = "clients", description = "for the users' clients"),
        (name = "probes", description = "for load balancers and Prometheus"),
    ),
    paths(
        instance::status,
        instance::drain,
        mandelboxes::list,
        mandelboxes::inspect,
        mandelboxes::logs,
        mandelboxes::stop,
        spin_up::allocate,
        spin_up::spin_up,
        answer,
        json_transport::json_transport,
        probes::healthz,
        probes::readyz,
        probes::metrics,
    ),
    components(schemas(Readiness, NotReady)),
    modifiers(&OtherServers),
)]
struct Document;

/// Not everything is on the unix socket.
struct OtherServers;

impl Modify for OtherServers {
    fn modify(&self, openapi: &mut Description) {
        let server = |url: &str, setting: &str| {
            let mut server = Server::new(url);
            server.description = Some(format!("`{setting}`"));
            server
        };
        let clients = server("https://localhost:4678", "[http] listen");
        let probes = server("http://localhost:9478", "[metrics] listen");
        for (path, item) in &mut openapi.paths.paths {
            item.servers = match path.as_str() {
                "/json_transport" => Some(vec![clients.clone()]),
                "/healthz" | "/readyz" | "/metrics" => Some(vec![probes.clone()]),
                _ => None,
            };
        }
    }
}

/// The whole description.
pub fn document() -> Description {
    Document::openapi()
}

/// This description
#[utoipa::path(
    get, path = "/openapi.json", tag = "admin", operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)),
)]
pub(crate) async fn answer() -> Json<Description> {
    Json(document())
}
