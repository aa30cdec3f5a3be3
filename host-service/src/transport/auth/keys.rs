//! An issuer's public keys.

use std::{fs, io, path::Path};

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// What public-key algorithms of tokens are taken.
pub(super) fn supported(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::RS256 | Algorithm::ES256)
}

/// Shorter RSA keys can be broken.
const SHORTEST_MODULUS_BYTES: usize = 256;

/// Why there are no keys. `place` is the setting and what it says.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("{place} cannot be read")]
    Unreadable {
        /// Which.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// The issuer does not answer as it must.
    #[error("{place} cannot be fetched: {reason}")]
    NotServed {
        /// Where it was asked.
        place: String,
        /// What came instead; nothing that was sent is repeated.
        reason: String,
    },
    /// It is not a key set.
    #[error("{place} is not a JSON Web Key Set: {{\"keys\":[…]}}")]
    NotAKeySet {
        /// Which.
        place: String,
        /// Where it is not.
        source: serde_json::Error,
    },
    /// No key in it can verify a token.
    #[error("{place} holds no key for RS256 (2048 bits or more) or ES256 among its {found} keys")]
    NoneUsable {
        /// Which.
        place: String,
        /// How many there are.
        found: usize,
    },
}

/// A set of keys. There is at least one.
#[derive(Debug)]
pub(in crate::transport) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Each key is read by itself, so that a kind of key that is new to this version does not hide the others.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

impl Keys {
    pub(super) fn read(path: &Path) -> Result<Self, KeysError> {
        let place = format!("auth.jwks_file {}", path.display());
        match fs::read(path) {
            Ok(text) => Self::parse(&text, &place),
            Err(source) => Err(KeysError::Unreadable { place, source }),
        }
    }

    /// What `place` holds.
    pub(super) fn parse(text: &[u8], place: &str) -> Result<Self, KeysError> {
        let place = || place.to_owned();
        let set: KeySet = serde_json::from_slice(text)
            .map_err(|source| KeysError::NotAKeySet { place: place(), source })?;
        let found = set.keys.len();
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::parse).collect();
        if keys.is_empty() { Err(KeysError::NoneUsable { place: place(), found }) } else { Ok(Self(keys)) }
    }

    /// How many of them can verify tokens.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The keys that may have signed a token: the one it names, or any of the algorithm when it names none.
    pub(super) fn candidates(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> impl Iterator<Item = &DecodingKey> {
        self.0
            .iter()
            .filter(move |key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id))
            .map(|key| &key.key)
    }
}

impl Key {
    /// `None` for what is no signature key of a supported kind.
    fn parse(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
            _ => return None,
        };
        let common = &jwk.common;
        let same = |named| named == KeyAlgorithm::from(algorithm);
        let signs = common.public_key_use.as_ref().is_none_or(|r#use| *r#use == PublicKeyUse::Signature);
        if !signs || !common.key_algorithm.is_none_or(same) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let strong = match key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, .. } => n.len() >= SHORTEST_MODULUS_BYTES,
            DecodingKeyKind::SecretOrDer(_) => true,
        };
        strong.then(|| Self { id: jwk.common.key_id, algorithm, key })
    }
}
