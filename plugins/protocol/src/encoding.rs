//! How values become bytes.

use host_core::{ErrorKind, PluginError};
use host_plugin_abi::{ENCODING_JSON, ENCODING_MSGPACK};
use serde::{Serialize, de::DeserializeOwned};

/// How values become bytes. Both name their fields: a positional encoding would misread a struct that has grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// For plugins in any language.
    Json,
    /// For plugins in Rust.
    Msgpack,
}

impl Encoding {
    /// The best of those that a plugin knows.
    pub fn best(bits: u32) -> Option<Self> {
        [Self::Msgpack, Self::Json].into_iter().find(|encoding| bits & encoding.bit() != 0)
    }

    /// The bit of the interface.
    pub fn bit(self) -> u32 {
        match self {
            Self::Json => ENCODING_JSON,
            Self::Msgpack => ENCODING_MSGPACK,
        }
    }

    /// # Errors
    /// `Internal`: a value has no such form, for example a map whose keys are no texts.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Vec<u8>, PluginError> {
        let unfit =
            |error: String| PluginError::new(ErrorKind::Internal, format!("not to be encoded: {error}"));
        match self {
            Self::Json => serde_json::to_vec(value).map_err(|error| unfit(error.to_string())),
            Self::Msgpack => {
                let mut bytes = Vec::with_capacity(128);
                let mut serializer =
                    rmp_serde::Serializer::new(&mut bytes).with_struct_map().with_human_readable();
                value.serialize(&mut serializer).map_err(|error| unfit(error.to_string()))?;
                Ok(bytes)
            }
        }
    }

    /// # Errors
    /// `Invalid`: these bytes are no such value.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, PluginError> {
        let unfit =
            |error: String| PluginError::new(ErrorKind::Invalid, format!("not to be decoded: {error}"));
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(|error| unfit(error.to_string())),
            Self::Msgpack => {
                let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes).with_human_readable();
                T::deserialize(&mut deserializer).map_err(|error| unfit(error.to_string()))
            }
        }
    }
}
