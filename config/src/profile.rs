//! The five profiles, compiled in.

use std::{fmt, str::FromStr};

use crate::key::nearest;

/// Which kind of place the service runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Profile {
    /// One machine of a developer: no database, no cloud, requests allocate.
    Localdev,
    /// The same with a database of its own.
    Localdevwithdb,
    /// The shared development deployment.
    Dev,
    /// The deployment before production.
    Staging,
    /// Production.
    Prod,
}

impl Profile {
    /// Every profile.
    pub const ALL: &[Self] = &[Self::Localdev, Self::Localdevwithdb, Self::Dev, Self::Staging, Self::Prod];

    /// As `--profile` and `APP_ENV` write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Localdev => "localdev",
            Self::Localdevwithdb => "localdevwithdb",
            Self::Dev => "dev",
            Self::Staging => "staging",
            Self::Prod => "prod",
        }
    }

    /// Convenience before strictness.
    pub fn is_local(self) -> bool {
        matches!(self, Self::Localdev | Self::Localdevwithdb)
    }

    /// What it sets, TOML.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Localdev => include_str!("../profiles/localdev.toml"),
            Self::Localdevwithdb => include_str!("../profiles/localdevwithdb.toml"),
            Self::Dev => include_str!("../profiles/dev.toml"),
            Self::Staging => include_str!("../profiles/staging.toml"),
            Self::Prod => include_str!("../profiles/prod.toml"),
        }
    }
}

/// What every profile starts from, TOML.
pub(crate) const DEFAULTS: &str = include_str!("../profiles/defaults.toml");

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No profile has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UnknownProfile {
    /// What was given.
    pub given: String,
    /// The name that was probably meant.
    pub nearest: Option<&'static str>,
}

impl fmt::Display for UnknownProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown profile {:?}; ", self.given)?;
        match self.nearest {
            Some(name) => write!(f, "did you mean {name}?"),
            None => write!(f, "there are localdev, localdevwithdb, dev, staging and prod"),
        }
    }
}

impl FromStr for Profile {
    type Err = UnknownProfile;

    /// Case and surrounding space do not matter; `development` and `production` are `dev` and `prod`.
    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        let name = text.trim().to_lowercase();
        let known = Self::ALL.iter().copied();
        let long = [("development", Self::Dev), ("production", Self::Prod)];
        let names = known.map(|profile| (profile.name(), profile)).chain(long);
        names.clone().find_map(|(known, profile)| (known == name).then_some(profile)).ok_or_else(|| {
            UnknownProfile { nearest: nearest(&name, names.map(|(known, _)| known)), given: text.to_owned() }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_forms_case_and_space_are_forgiven() {
        for (text, profile) in [
            ("localdev", Profile::Localdev),
            (" Production\n", Profile::Prod),
            ("development", Profile::Dev),
            ("LOCALDEVWITHDB", Profile::Localdevwithdb),
            ("staging", Profile::Staging),
        ] {
            assert_eq!(text.parse(), Ok(profile), "{text:?}");
        }
    }

    #[test]
    fn an_unknown_profile_names_the_nearest() {
        let error = |text: &str| text.parse::<Profile>().unwrap_err().to_string();
        assert_eq!(error("stagin"), "unknown profile \"stagin\"; did you mean staging?");
        assert_eq!(
            error("moon"),
            "unknown profile \"moon\"; there are localdev, localdevwithdb, dev, staging and prod"
        );
    }
}
