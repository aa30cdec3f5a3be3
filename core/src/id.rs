//! Validated names. A value that exists is safe in a path, a container name, a label and a log line.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {rule}")]
pub struct InvalidId {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl InvalidId {
    /// At most 80 characters of the offending text are kept: it may be hostile and large.
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        Self { what, value: value.chars().take(80).collect(), rule }
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(&value) { Ok(Self(value)) } else { Err(InvalidId::new($what, &value, $rule)) }
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::try_from(value.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

fn is_word(text: &str, extra: &[u8], max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

fn is_printable(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && !text.chars().any(char::is_control)
}

identifier!(
    /// A mandelbox, unique in the whole fleet.
    MandelboxId,
    "mandelbox id",
    "it must be 1 to 64 of A-Z a-z 0-9 _ -",
    |text| is_word(text, b"_-", 64)
);

identifier!(
    /// A host: the EC2 `Name` tag, the host's key in the database.
    InstanceName,
    "instance name",
    "it must be 1 to 128 printable characters",
    |text| is_printable(text, 128)
);

identifier!(
    /// An application, for example `browsers/chrome`: the part of an image's name that users choose.
    AppName,
    "app name",
    "it must be 1 to 128 of a-z 0-9 . _ - in parts divided by /, each beginning with a letter or digit",
    |text| text.len() <= 128
        && text.split('/').all(|part| {
            is_word(part, b"._-", 128)
                && part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && !part.bytes().any(|b| b.is_ascii_uppercase())
                && !part.contains("..")
        })
);

identifier!(
    /// Whose mandelbox it is: the subject of the user's token.
    UserId,
    "user id",
    "it must be 1 to 256 printable characters",
    |text| is_printable(text, 256)
);

identifier!(
    /// The client's session that asked for the mandelbox; only ever passed on.
    SessionId,
    "session id",
    "it must be 1 to 256 printable characters",
    |text| is_printable(text, 256)
);

identifier!(
    /// What an engine resolves to an image: `[registry/]name[:tag][@digest]`.
    ImageRef,
    "image reference",
    "it must be 1 to 512 of A-Z a-z 0-9 . _ - / : @ and begin with a letter or digit",
    |text| is_word(text, b"._-/:@", 512) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
);

identifier!(
    /// A container's name in its engine, `<app>-<id>`.
    ContainerName,
    "container name",
    "it must be 1 to 200 of A-Z a-z 0-9 . _ - and begin with a letter or digit",
    |text| is_word(text, b"._-", 200) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
);

impl ContainerName {
    /// `<app>-<id>`, where characters that no engine takes become `-`. The id alone makes it unique.
    pub fn of(app: &AppName, id: &MandelboxId) -> Self {
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' }
        };
        Self(app.as_str().chars().map(safe).chain(std::iter::once('-')).chain(id.as_str().chars()).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_that_try_paths_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a\0b", "a b", "ä", &"a".repeat(65)] {
            assert!(bad.parse::<MandelboxId>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["", "/a", "a/", "a//b", "../a", "a/..", "A/b", "-a"] {
            assert!(bad.parse::<AppName>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn container_names_follow_the_contract() {
        let app: AppName = "browsers/chrome".parse().unwrap();
        let id: MandelboxId = "182cas8923jnckku023ind3".parse().unwrap();
        assert_eq!(ContainerName::of(&app, &id).as_str(), "browsers-chrome-182cas8923jnckku023ind3");
    }

    proptest! {
        #[test]
        fn an_accepted_mandelbox_id_is_one_plain_path_component(text in ".{0,80}") {
            if let Ok(id) = text.parse::<MandelboxId>() {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                let normal = matches!(path.components().next(), Some(std::path::Component::Normal(_)));
                prop_assert!(normal);
            }
        }

        #[test]
        fn every_container_name_made_is_a_valid_one(app in "[a-z0-9]{1,9}(/[a-z0-9][a-z0-9._-]{0,9}){0,3}", id in "[A-Za-z0-9_-]{1,64}") {
            if let (Ok(app), Ok(id)) = (app.parse(), id.parse()) {
                let name = ContainerName::of(&app, &id);
                prop_assert!(name.as_str().parse::<ContainerName>().is_ok());
            }
        }
    }
}
