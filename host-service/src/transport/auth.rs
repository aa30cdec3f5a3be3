//! Who asks: the subject of a JSON Web Token, verified with the issuer's public keys.
//!
//! A token counts when it is signed with RS256 or ES256 by one of the issuer's keys, names this issuer and this
//! audience, has begun and has not ended (give or take [`LEEWAY_SECONDS`]), and has a subject. Everything else, `none`
//! and symmetric algorithms first of all, is refused.
//!
//! Keys from a file are read once. Keys from a URL are replaced as a whole by [`issuer::Refresh`], while tokens are being
//! verified; the last good set stays until there is another.

use std::{collections::HashSet, path::PathBuf};

use host_core::UserId;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;

mod issuer;
mod keys;
mod provider;

use issuer::Known;
pub(super) use issuer::Refresh;
pub use issuer::Served;
pub use keys::KeysError;
use keys::{Keys, supported};

/// Between two clocks that are kept by NTP.
const LEEWAY_SECONDS: u64 = 10;

/// Tokens of real issuers have one or two KiB.
const LONGEST_TOKEN_BYTES: usize = 16 << 10;

/// Whether tokens are checked, and against what.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Everybody may have everything.
    Off,
    /// A JSON Web Token is needed.
    Jwt {
        /// The claim `iss`.
        issuer: String,
        /// The claim `aud`, or one of it.
        audience: String,
        /// Where the issuer's JSON Web Key Set is.
        keys: KeySource,
    },
}

/// Where an issuer's public keys are.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// In this file, read at start.
    File(PathBuf),
    /// At the issuer.
    Served(Served),
}

/// How many keys there are that tokens can be checked with, for `doctor`.
///
/// # Errors
/// There are none.
pub(crate) async fn count_keys(keys: &KeySource) -> Result<usize, KeysError> {
    match keys {
        KeySource::File(path) => Keys::read(path).map(|keys| keys.count()),
        KeySource::Served(served) => issuer::fetch(served).await.map(|keys| keys.count()),
    }
}

/// Why a token does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("the token is missing; send it as jwt_access_token or as Authorization: Bearer")]
    Missing,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token is signed with a key that the issuer does not have")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token lacks a claim, or one is not what it must be; exp, iss, aud and sub are needed")]
    Claims,
    #[error("the token is not a JSON Web Token signed with RS256 or ES256")]
    Malformed,
    #[error("no token can be checked at the moment: the issuer has not told its keys yet")]
    NoKeys,
}

impl Denied {
    /// A stable name, for programs.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Expired => "token_expired",
            Self::NoKeys => "keys_unavailable",
            _ => "token_invalid",
        }
    }
}

/// Verifies tokens.
#[derive(Debug)]
pub(super) enum Verifier {
    Off,
    Jwt { validation: Box<Validation>, keys: Known },
}

impl Verifier {
    /// Reads the keys. An issuer that does not answer is asked again by the [`Refresh`], which the caller must run.
    ///
    /// # Errors
    /// There are none that can be used, and never will be.
    pub(super) async fn build(auth: &Auth) -> Result<(Self, Option<Refresh>), KeysError> {
        let Auth::Jwt { issuer, audience, keys } = auth else {
            return Ok((Self::Off, None));
        };
        provider::install();
        let (keys, refresh) = match keys {
            KeySource::File(path) => (Known::forever(Keys::read(path)?), None),
            KeySource::Served(served) => {
                let (known, refresh) = issuer::ask(served).await?;
                (known, Some(refresh))
            }
        };
        Ok((Self::Jwt { validation: Box::new(validation(issuer, audience)), keys }, refresh))
    }

    /// Whose token it is; `None` where tokens are not checked.
    pub(super) async fn subject(&self, token: Option<&str>) -> Result<Option<UserId>, Denied> {
        let Self::Jwt { validation, keys } = self else {
            return Ok(None);
        };
        let token = token.filter(|token| !token.is_empty()).ok_or(Denied::Missing)?;
        let seen = keys.now();
        let known = seen.keys().ok_or(Denied::NoKeys)?;
        match subject(token, validation, known) {
            // The issuer may have begun to use a new one.
            Err(Denied::UnknownKey) => match seen.newer().await {
                Some(known) => subject(token, validation, &known).map(Some),
                None => Err(Denied::UnknownKey),
            },
            result => result.map(Some),
        }
    }
}

/// The claims that are not checked by [`Validation`] alone: it also takes a list of issuers.
#[derive(Deserialize)]
struct Claims {
    sub: UserId,
    #[expect(dead_code, reason = "that it is one string is all that is asked")]
    iss: String,
}

fn validation(issuer: &str, audience: &str) -> Validation {
    let mut validation = Validation::new(Algorithm::RS256); // narrowed to the token's own below
    validation.required_spec_claims = HashSet::from(["exp", "iss", "aud", "sub"].map(str::to_owned));
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    validation.leeway = LEEWAY_SECONDS;
    validation.validate_nbf = true;
    validation
}

fn subject(token: &str, validation: &Validation, keys: &Keys) -> Result<UserId, Denied> {
    if token.len() > LONGEST_TOKEN_BYTES {
        return Err(Denied::Malformed);
    }
    let header = decode_header(token).map_err(|_| Denied::Malformed)?;
    // What is critical demands to be understood, and nothing is.
    if !supported(header.alg) || header.crit.is_some() {
        return Err(Denied::Malformed);
    }
    let validation = Validation { algorithms: vec![header.alg], ..validation.clone() };
    let mut because = Denied::UnknownKey;
    for key in keys.candidates(header.alg, header.kid.as_deref()) {
        match decode::<Claims>(token, key, &validation) {
            Ok(token) => return Ok(token.claims.sub),
            Err(error) => because = denied(error.kind()),
        }
        if because != Denied::Signature {
            break; // it was this key's; the token is at fault
        }
    }
    Err(because)
}

fn denied(kind: &ErrorKind) -> Denied {
    match kind {
        ErrorKind::ExpiredSignature => Denied::Expired,
        ErrorKind::ImmatureSignature => Denied::NotYet,
        ErrorKind::InvalidIssuer => Denied::Issuer,
        ErrorKind::InvalidAudience => Denied::Audience,
        ErrorKind::InvalidSignature => Denied::Signature,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
            Denied::Claims
        }
        _ => Denied::Malformed,
    }
}
