//! The clients' one request, as the contract has it. The transport reads it by types of its own; these are for the
//! description.
#![expect(dead_code, reason = "types and functions that only describe")]

use serde::Serialize;
use utoipa::ToSchema;

/// What a client brings for its mandelbox. Fields that are not known are ignored; `null` is the same as absence.
#[derive(ToSchema)]
struct JsonTransportRequest {
    /// Which mandelbox.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    mandelbox_id: String,
    /// Who asks: a JSON Web Token whose subject the mandelbox was allocated to. May come as `Authorization: Bearer`
    /// instead; not needed where tokens are not checked.
    jwt_access_token: Option<String>,
    /// Handed to the application: DPI, time zone, dark mode, location, …
    json_data: Option<JsonData>,
    /// What to run; for requests that allocate their mandelbox themselves, in `localdev`.
    #[schema(example = "browsers/chrome")]
    app_name: Option<String>,
    /// Encrypts the user's configuration.
    #[schema(min_length = 10)]
    config_encryption_token: Option<String>,
    /// There is no configuration under that token yet.
    is_new_config_encryption_token: Option<bool>,
    /// The browser's cookies, handed on as they are.
    cookies: Option<String>,
    /// The browser's bookmarks, handed on as they are.
    bookmarks: Option<String>,
}

/// An object, or a string that holds one.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum JsonData {
    /// As JSON.
    #[schema(value_type = Object)]
    Object(serde_json::Map<String, serde_json::Value>),
    /// As text.
    Text(String),
}

/// A mandelbox that is ready for its client.
#[derive(ToSchema)]
struct JsonTransportAnswer {
    /// What the client needs.
    result: JsonTransportResult,
}

/// Where a mandelbox is reached. There is one `port_…` for each of `[mandelbox] ports`; these are the default's.
#[derive(ToSchema)]
struct JsonTransportResult {
    /// Host port of 32262/tcp.
    port_32262: u16,
    /// Host port of 32263/udp.
    port_32263: u16,
    /// Host port of 32273/tcp.
    port_32273: u16,
    /// 16 bytes in hex digits.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    aes_key: String,
}

/// Why a client does not get its mandelbox.
#[derive(ToSchema)]
struct JsonTransportFailure {
    /// Always `null`.
    #[schema(value_type = Option<Object>)]
    result: Option<()>,
    /// For people; repeats nothing that was sent.
    error: String,
    /// For programs; see each status.
    code: String,
}

/// Brings a mandelbox its startup data and answers when it is ready
///
/// The request may come before or after the mandelbox is allocated, and is taken once: an identical one within the
/// first minute gets the same answer. A client that goes away does not cancel the spin-up.
#[utoipa::path(
    put, path = "/json_transport", tag = "clients", request_body = JsonTransportRequest,
    responses(
        (status = 200, description = "it is ready", body = JsonTransportAnswer),
        (status = 400, description = "`malformed`, `plain_http`", body = JsonTransportFailure),
        (status = 401, description = "`token_missing`, `token_invalid`, `token_expired`", body = JsonTransportFailure),
        (status = 403, description = "`forbidden`: another user's mandelbox", body = JsonTransportFailure),
        (status = 404, description = "`unknown_path`", body = JsonTransportFailure),
        (status = 405, description = "`wrong_method`", body = JsonTransportFailure),
        (status = 408, description = "`not_allocated` in time, `too_slow`", body = JsonTransportFailure),
        (status = 409, description = "`already_delivered`, by another request", body = JsonTransportFailure),
        (status = 413, description = "`too_large`", body = JsonTransportFailure),
        (status = 429, description = "`too_many` wait", body = JsonTransportFailure),
        (status = 500, description = "`spin_up_failed`, and was undone", body = JsonTransportFailure),
        (status = 503, description = "`draining`, `unavailable`", body = JsonTransportFailure),
    ),
)]
pub(super) fn json_transport() {}
