//! SHA-256 digests, the only kind that the store trusts.

use std::{fmt, io::Read, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{Result, invalid};

const PREFIX: &str = "sha256:";

/// `sha256:` and 64 lower-case hexadecimal digits: safe in a path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn of(content: &[u8]) -> Self {
        Self::finished(Sha256::new_with_prefix(content))
    }

    fn finished(hash: Sha256) -> Self {
        let mut text = PREFIX.to_owned();
        for byte in hash.finalize() {
            for half in [byte >> 4, byte & 15] {
                text.push(char::from_digit(half.into(), 16).unwrap_or_default());
            }
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the algorithm.
    pub(crate) fn hex(&self) -> &str {
        &self.0[PREFIX.len()..]
    }
}

impl FromStr for Digest {
    type Err = host_core::PluginError;

    fn from_str(text: &str) -> Result<Self> {
        let is_hex =
            |hex: &str| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.strip_prefix(PREFIX).is_some_and(is_hex) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(80).collect();
        Err(invalid(format!(
            "{shown:?} is no digest; only sha256: and 64 lower-case hexadecimal digits is taken"
        )))
    }
}

impl TryFrom<String> for Digest {
    type Error = host_core::PluginError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes and counts what passes.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
    count: u64,
}

impl<R> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    /// Digest and number of the bytes that passed.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (Digest::finished(self.hash), self.count)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// Digest of what comes in pieces.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest::finished(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_sha256sum() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        assert_eq!(empty.parse::<Digest>().unwrap().hex(), &empty[7..]);
        let mut reader = Hashing::new(&b"abc"[..]);
        std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
        assert_eq!(reader.finish(), (Digest::of(b"abc"), 3));
    }

    #[test]
    fn what_could_leave_a_directory_is_no_digest() {
        let hex = "a".repeat(64);
        for bad in
            ["", "sha256:", "../x", &hex, &format!("sha512:{hex}"), &format!("sha256:{}", hex.to_uppercase())]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad} was accepted");
        }
    }
}
