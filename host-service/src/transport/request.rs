//! What a client sends: the body of `PUT /json_transport`.
//!
//! Unknown fields are ignored: clients and hosts are updated at different times, and a newer client must not fail on
//! an older host because of a field that this host has no use for. A field that is known must be what it is meant to
//! be, and none may come twice. `null` is the same as absence. No message repeats anything that was sent.

use std::borrow::Cow;

use axum::http::{HeaderMap, header::AUTHORIZATION};
use host_core::{MandelboxId, UserId};
use ring::digest::{self, SHA256};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, error::Category, value::RawValue};

use crate::lobby::{ClientRequest, StartupData};

/// Of `config_encryption_token`, in characters.
const SHORTEST_TOKEN: usize = 10;

/// Why a body is not a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the body is not JSON: line {line}, column {column}")]
    NotJson { line: usize, column: usize },
    #[error("the body must be one JSON object in which no field comes twice")]
    NotAnObject,
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} must be {expected}")]
    Wrong { field: &'static str, expected: &'static str },
}

/// The fields as they came.
#[derive(Deserialize)]
pub(super) struct Fields<'a> {
    #[serde(borrow)]
    mandelbox_id: Field<'a>,
    #[serde(borrow)]
    jwt_access_token: Field<'a>,
    #[serde(borrow)]
    json_data: Field<'a>,
    #[serde(borrow)]
    app_name: Field<'a>,
    #[serde(borrow)]
    config_encryption_token: Field<'a>,
    #[serde(borrow)]
    is_new_config_encryption_token: Field<'a>,
    #[serde(borrow)]
    cookies: Field<'a>,
    #[serde(borrow)]
    bookmarks: Field<'a>,
}

type Field<'a> = Option<&'a RawValue>;

impl<'a> Fields<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let fields = serde_json::from_slice(body).map_err(|error| match error.classify() {
            Category::Data => Malformed::NotAnObject,
            _ => Malformed::NotJson { line: error.line(), column: error.column() },
        })?;
        // An array of as many values would be taken for the fields in order.
        if body.trim_ascii_start().starts_with(b"{") { Ok(fields) } else { Err(Malformed::NotAnObject) }
    }

    /// The token, to be verified before anything else is looked at.
    pub(super) fn token(&self) -> Result<Option<Cow<'a, str>>, Malformed> {
        text("jwt_access_token", self.jwt_access_token)
    }

    /// The request of `subject`, who has shown `token`.
    pub(super) fn request(
        &self,
        token: Option<&str>,
        subject: Option<UserId>,
    ) -> Result<ClientRequest, Malformed> {
        let id = text("mandelbox_id", self.mandelbox_id)?;
        let id = id.ok_or(Malformed::Missing { field: "mandelbox_id" })?;
        let id = valid("mandelbox_id", "1 to 64 of A-Z a-z 0-9 _ -", id.parse::<MandelboxId>())?;
        let data = self.data()?;
        let digest = digest(&id, token, &data);
        Ok(ClientRequest { id, subject, digest, data })
    }

    fn data(&self) -> Result<StartupData, Malformed> {
        let app = text("app_name", self.app_name)?.filter(|app| !app.is_empty());
        let app =
            app.map(|app| valid("app_name", "an application's name, such as browsers/chrome", app.parse()));
        Ok(StartupData {
            json: json_data(self.json_data)?,
            config_encryption_token: self.config_encryption_token()?,
            is_new_config_encryption_token: flag(
                "is_new_config_encryption_token",
                self.is_new_config_encryption_token,
            )?,
            cookies: text("cookies", self.cookies)?.map(secret),
            bookmarks: text("bookmarks", self.bookmarks)?.map(secret),
            app: app.transpose()?,
        })
    }

    fn config_encryption_token(&self) -> Result<Option<SecretString>, Malformed> {
        let field = "config_encryption_token";
        let token = text(field, self.config_encryption_token)?;
        match token {
            Some(token) if token.chars().count() < SHORTEST_TOKEN => {
                Err(Malformed::Wrong { field, expected: "a string of at least 10 characters" })
            }
            token => Ok(token.map(secret)),
        }
    }
}

/// The token of `Authorization: Bearer`, where there is one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn text<'a>(field: &'static str, raw: Field<'a>) -> Result<Option<Cow<'a, str>>, Malformed> {
    let Some(raw) = raw else { return Ok(None) };
    let wrong = |_| Malformed::Wrong { field, expected: "a string" };
    // A derived type, because `Cow` by itself never borrows.
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str(raw.get()).map(|Text(text)| Some(text)).map_err(wrong)
}

fn flag(field: &'static str, raw: Field<'_>) -> Result<bool, Malformed> {
    let Some(raw) = raw else { return Ok(false) };
    serde_json::from_str(raw.get()).map_err(|_| Malformed::Wrong { field, expected: "true or false" })
}

/// The text of one JSON object exactly as it came, whether as an object or in a string. None at all, and the empty
/// string that some clients send instead, are the empty object.
fn json_data(raw: Field<'_>) -> Result<SecretString, Malformed> {
    let field = "json_data";
    let Some(raw) = raw else { return Ok("{}".into()) };
    let json = match raw.get() {
        object if object.starts_with('{') => Cow::Borrowed(object),
        _ => text(field, Some(raw))
            .map_err(|_| Malformed::Wrong { field, expected: "a JSON object, or a string that holds one" })?
            .unwrap_or_default(),
    };
    if json.is_empty() {
        return Ok("{}".into());
    }
    // Into values, because that also bounds how deep it is nested, for those who read it later.
    let parsed = serde_json::from_str::<Map<String, Value>>(&json);
    valid(field, "a JSON object, or a string that holds one", parsed)?;
    Ok(secret(json))
}

fn valid<T, E>(field: &'static str, expected: &'static str, parsed: Result<T, E>) -> Result<T, Malformed> {
    parsed.map_err(|_| Malformed::Wrong { field, expected })
}

fn secret(text: Cow<'_, str>) -> SecretString {
    text.into_owned().into()
}

/// Over everything that a mandelbox is given and the credentials, each part with its length, so that no two different
/// requests are written the same way.
fn digest(id: &MandelboxId, token: Option<&str>, data: &StartupData) -> [u8; 32] {
    let mut context = digest::Context::new(&SHA256);
    let mut part = |text: Option<&str>| {
        context.update(&text.map_or(u64::MAX, |text| text.len() as u64).to_be_bytes());
        context.update(text.unwrap_or_default().as_bytes());
    };
    part(Some(id.as_str()));
    part(token);
    part(Some(data.json.expose_secret()));
    part(exposed(&data.config_encryption_token));
    part(Some(if data.is_new_config_encryption_token { "new" } else { "" }));
    part(exposed(&data.cookies));
    part(exposed(&data.bookmarks));
    part(data.app.as_ref().map(|app| app.as_str()));
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn exposed(secret: &Option<SecretString>) -> Option<&str> {
    secret.as_ref().map(|secret| secret.expose_secret())
}
