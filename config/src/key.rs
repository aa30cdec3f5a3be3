//! Dotted keys, and the name that was probably meant.

use std::fmt;

use toml::de::{DeTable, DeValue};

/// A key from the root: `http.listen`. Places in lists are parts, too: `mandelbox.mounts.0.source`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Key(pub(crate) Vec<String>);

impl Key {
    /// As `--set` writes it: TOML's dotted keys, quoted where need be.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.contains(char::is_control) {
            return None;
        }
        let document = format!("{text} = 0");
        let mut table = DeTable::parse(&document).ok()?.into_inner();
        let mut parts = Vec::new();
        while let Some((name, value)) = table.into_iter().next() {
            parts.push(name.into_inner().into_owned());
            match value.into_inner() {
                DeValue::Table(next) => table = next,
                _ => return Some(Self(parts)),
            }
        }
        None
    }

    pub(crate) fn child(&self, name: impl Into<String>) -> Self {
        let mut parts = self.0.clone();
        parts.push(name.into());
        Self(parts)
    }

    pub(crate) fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

impl<const N: usize> From<[&str; N]> for Key {
    fn from(parts: [&str; N]) -> Self {
        Self(parts.map(str::to_owned).to_vec())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, part) in self.0.iter().enumerate() {
            let dot = if place == 0 { "" } else { "." };
            if is_bare(part) {
                write!(f, "{dot}{part}")?;
            } else {
                write!(f, "{dot}{}", toml::Value::from(part.as_str()))?;
            }
        }
        Ok(())
    }
}

fn is_bare(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// The candidate that `name` was probably meant to be: a few letters wrong, swapped, missing or too many.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_written_as_toml_does() {
        for text in ["a", "http.listen", "a.\"b.c\".d", "telemetry.my-plugin.x_y"] {
            let key = Key::parse(text).unwrap();
            assert_eq!(key.to_string(), text);
        }
        assert_eq!(Key::parse(" a . b ").unwrap(), Key::from(["a", "b"]));
        for bad in ["", ".", "a.", ".a", "a b", "a\nb", "[x]\na", "a=1", "a#"] {
            assert_eq!(Key::parse(bad), None, "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["plugin", "poll", "timeout", "slots_per_gpu"];
        assert_eq!(nearest("plugn", names), Some("plugin"));
        assert_eq!(nearest("pulgin", names), Some("plugin"));
        assert_eq!(nearest("slot_per_gpu", names), Some("slots_per_gpu"));
        assert_eq!(nearest("endpoint", names), None);
    }
}
