//! Allocating mandelboxes by hand, in the local profiles: what a control plane and a client do elsewhere.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{Json, extract::State, http::StatusCode};
use host_core::{
    ErrorKind, MandelboxId, PluginError, UserId,
    pubsub::Allocation,
    runtime::{ContainerPort, Protocol},
};
use tokio::time::Instant;

use super::{
    body::Body,
    error::{ApiError, BodyRefused},
    show,
    views::{AllocateRequest, AllocatedView, ErrorView, ShownKey, SpinUpRequest, SpinUpView},
};
use crate::{
    host::Host,
    identity,
    lobby::{Answer, ClientRequest, Failure, StartupData},
};

/// Allocates a mandelbox: only the database event
///
/// Its client still has to bring the startup data by `json_transport`. Local profiles only.
#[utoipa::path(
    post, path = "/v1/mandelboxes", tag = "admin", request_body = AllocateRequest,
    responses(
        (status = 201, description = "it is allocated", body = AllocatedView),
        (status = 403, description = "`not_local`: only local profiles allocate", body = ErrorView),
        (status = 409, description = "`conflict`: the id exists", body = ErrorView),
        (status = 503, description = "`draining`, `unavailable`", body = ErrorView),
        (status = 504, description = "`timeout`: the control plane does not answer", body = ErrorView),
        BodyRefused,
    ),
)]
pub(crate) async fn allocate(
    State(host): State<Host>,
    Body(request): Body<AllocateRequest>,
) -> Result<(StatusCode, Json<AllocatedView>), ApiError> {
    let (allocation, view) = allocation(&host, request)?;
    host.allocate(&allocation).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// Allocates a mandelbox, delivers its startup data, and answers when it runs
///
/// A mandelbox of this id that was allocated before and waits for its client gets the startup data. A caller that
/// goes away does not cancel the spin-up. Local profiles only.
#[utoipa::path(
    post, path = "/v1/mandelboxes/spin-up", tag = "admin", request_body = SpinUpRequest,
    responses(
        (status = 201, description = "it runs", body = SpinUpView),
        (status = 400, description = "`malformed`", body = ErrorView),
        (status = 403, description = "`not_local`, `forbidden`: another user's mandelbox", body = ErrorView),
        (status = 408, description = "`not_allocated` in time, `too_slow`", body = ErrorView),
        (status = 409, description = "`already_delivered`: it runs already", body = ErrorView),
        (status = 413, description = "`too_large`", body = ErrorView),
        (status = 429, description = "`too_many` wait", body = ErrorView),
        (status = 500, description = "`spin_up_failed`, and was undone", body = ErrorView),
        (status = 503, description = "`draining`, `unavailable`", body = ErrorView),
        (status = 504, description = "`timeout`: the control plane does not answer", body = ErrorView),
    ),
)]
pub(crate) async fn spin_up(
    State(host): State<Host>,
    Body(request): Body<SpinUpRequest>,
) -> Result<(StatusCode, Json<SpinUpView>), ApiError> {
    let began = Instant::now();
    let SpinUpRequest { app, id, user, json_data } = request;
    let (allocation, allocated) = allocation(&host, AllocateRequest { app, id, user })?;
    let json = serde_json::Value::Object(json_data.unwrap_or_default()).to_string();
    let answer = meet(&host, &allocation, json).await?;
    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let view = SpinUpView {
        id: allocated.id,
        app: allocated.app,
        user: allocated.user,
        ports: show::ports(&answer.ports),
        aes_key: ShownKey(answer.aes_key.expose().to_owned()),
        url: url(host.settings().mandelbox.publish_ip, &answer.ports),
        took_ms: took,
    };
    Ok((StatusCode::CREATED, Json(view)))
}

/// First the client's part, then the allocation: the data is there when the mandelbox asks for it.
async fn meet(host: &Host, allocation: &Allocation, json: String) -> Result<Arc<Answer>, ApiError> {
    let lobby = host.lobby();
    lobby.forget(&allocation.id);
    let pending = lobby.join(ClientRequest {
        id: allocation.id.clone(),
        subject: Some(allocation.user.clone()),
        digest: rand::random(), // like no other: an answer is never given twice
        data: StartupData {
            json: json.into(),
            config_encryption_token: None,
            is_new_config_encryption_token: false,
            cookies: None,
            bookmarks: None,
            app: allocation.app.clone(),
        },
    })?;
    if pending.awaits_allocation() {
        match host.allocate(allocation).await {
            // A row that nobody has claimed yet; whoever does finds the data.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => {
                lobby.refuse(&allocation.id, Failure::Unavailable("it could not be allocated".into()));
                return Err(error.into());
            }
            Ok(()) => {}
        }
    }
    Ok(pending.await?)
}

fn allocation(host: &Host, request: AllocateRequest) -> Result<(Allocation, AllocatedView), ApiError> {
    check_local(host)?;
    if host.condition().draining.is_some() {
        return Err(Failure::Draining.into());
    }
    let app = request.app.unwrap_or_else(|| host.settings().mandelbox.default_app.clone());
    let id = request.id.map_or_else(random_id, Ok)?;
    let user = match request.user {
        Some(user) => user,
        None => valid(identity::LOCAL_USER.parse::<UserId>())?,
    };
    let allocation = Allocation {
        id: id.clone(),
        user: user.clone(),
        session: valid(random_word().parse())?,
        app: Some(app.clone()),
    };
    tracing::info!(mandelbox = %id, %app, %user, "an operator allocates a mandelbox");
    Ok((allocation, AllocatedView { id, app, user }))
}

/// Elsewhere the control plane decides who gets what where.
fn check_local(host: &Host) -> Result<(), ApiError> {
    let profile = host.profile();
    if profile.is_local() {
        return Ok(());
    }
    let message = format!(
        "profile {profile} takes mandelboxes from its control plane only; insert a row into \
         cloud.mandelbox_info, or run the service with --profile localdev"
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, "not_local", message))
}

fn random_id() -> Result<MandelboxId, ApiError> {
    valid(random_word().parse())
}

/// 64 random bits: nobody guesses or meets the same twice on one host.
fn random_word() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// For texts of our own making, which are valid.
fn valid<T>(parsed: Result<T, host_core::InvalidId>) -> Result<T, ApiError> {
    parsed.map_err(|error| ApiError::from(PluginError::new(ErrorKind::Internal, error.to_string())))
}

/// The first TCP port as a page, where ports are published.
fn url(publish: IpAddr, ports: &[(ContainerPort, u16)]) -> Option<String> {
    let (_, port) = ports.iter().find(|(port, _)| port.protocol == Protocol::Tcp)?;
    let address = if publish.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { publish };
    Some(format!("http://{}/", SocketAddr::new(address, *port)))
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let status = StatusCode::from_u16(failure.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, failure.code(), failure.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_one_that_this_machine_can_open() {
        let ports = [("1/udp".parse().unwrap(), 10_000), ("2/tcp".parse().unwrap(), 10_001)];
        let url = |ip: &str| url(ip.parse().unwrap(), &ports).unwrap();
        assert_eq!(url("0.0.0.0"), "http://127.0.0.1:10001/");
        assert_eq!(url("10.0.0.7"), "http://10.0.0.7:10001/");
        assert_eq!(url("fd00::1"), "http://[fd00::1]:10001/");
        assert_eq!(super::url("::".parse().unwrap(), &ports[..1]), None);
    }

    #[test]
    fn what_is_made_up_is_valid() {
        assert_ne!(random_id().unwrap(), random_id().unwrap());
        assert!(crate::identity::LOCAL_USER.parse::<UserId>().is_ok());
    }
}
