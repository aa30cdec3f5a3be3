//! Secrets that cannot be printed by accident.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A mandelbox's AES key: 16 random bytes in 32 hex digits. `Debug` shows none of it.
#[derive(Clone)]
pub struct AesKey(SecretString);

impl AesKey {
    /// From 16 bytes of a cryptographic random source.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(hex.into())
    }

    /// The hex digits; only for the container's environment and the client's answer.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for AesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AesKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_hex_digits_and_never_printed() {
        let key = AesKey::from_bytes([0xab; 16]);
        assert_eq!(key.expose(), "ab".repeat(16));
        assert!(!format!("{key:?}").contains("ab"));
    }
}
