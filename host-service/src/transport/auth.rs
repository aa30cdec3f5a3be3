//! Who asks: the subject of a JSON Web Token, verified with the issuer's public keys.
//!
//! A token counts when it is signed with RS256 or ES256 by one of the issuer's keys, names this issuer and this
//! audience, has begun and has not ended (give or take [`LEEWAY_SECONDS`]), and has a subject. Everything else, `none`
//! and symmetric algorithms first of all, is refused.
//!
//! The keys are read through a watch channel: whoever holds the sender can replace the whole set while tokens are
//! being verified. Keys from a file are never replaced.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use host_core::UserId;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;
use tokio::sync::watch;

mod keys;
mod provider;

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
        /// A file with the issuer's JSON Web Key Set.
        jwks_file: PathBuf,
    },
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
}

impl Denied {
    /// A stable name, for programs.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Expired => "token_expired",
            _ => "token_invalid",
        }
    }
}

/// Verifies tokens.
#[derive(Debug)]
pub(super) enum Verifier {
    Off,
    Jwt { validation: Box<Validation>, keys: watch::Receiver<Arc<Keys>> },
}

impl Verifier {
    /// Reads the keys.
    ///
    /// # Errors
    /// There are none that can be used.
    pub(super) fn build(auth: &Auth) -> Result<Self, KeysError> {
        let Auth::Jwt { issuer, audience, jwks_file } = auth else {
            return Ok(Self::Off);
        };
        let keys = Arc::new(Keys::read(jwks_file)?);
        provider::install();
        let (_, keys) = watch::channel(keys);
        Ok(Self::Jwt { validation: Box::new(validation(issuer, audience)), keys })
    }

    /// Whose token it is; `None` where tokens are not checked.
    pub(super) fn subject(&self, token: Option<&str>) -> Result<Option<UserId>, Denied> {
        let Self::Jwt { validation, keys } = self else {
            return Ok(None);
        };
        let token = token.filter(|token| !token.is_empty()).ok_or(Denied::Missing)?;
        let keys = keys.borrow().clone();
        subject(token, validation, &keys).map(Some)
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
