//! How single values are read where serde's own way would be stricter, laxer or less clear than people expect.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use host_core::runtime::EnvValue;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

use crate::mask;

/// Longer than any wait here can mean something, and short enough to be added to any instant.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// `10s`, `1m 30s`, `6h`.
pub(crate) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    from.deserialize_str(DurationVisitor)
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit, such as \"10s\", \"1m 30s\" or \"6h\", of at most a year")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        humantime::parse_duration(text)
            .ok()
            .filter(|duration| *duration <= LONGEST)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A text; empty is `None`.
pub(crate) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Some(String::deserialize(from)?).filter(|text| !text.is_empty()))
}

/// A text that says a `T`; empty is `None`.
pub(crate) fn text_as<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    text(from)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

/// A path; empty is `None`.
pub(crate) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    Ok(text(from)?.map(PathBuf::from))
}

/// A number; 0 is `None`.
pub(crate) fn nonzero<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default + PartialEq,
{
    Ok(Some(T::deserialize(from)?).filter(|number| *number != T::default()))
}

/// Variables, those that look like secrets as secrets.
pub(crate) fn environment<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, EnvValue>, D::Error> {
    let classified = |(name, value): (String, String)| {
        let value = if mask::is_secret(&name) || mask::text(&value) != value {
            EnvValue::Secret(value.into())
        } else {
            EnvValue::Plain(value)
        };
        (name, value)
    };
    Ok(BTreeMap::<String, String>::deserialize(from)?.into_iter().map(classified).collect())
}
