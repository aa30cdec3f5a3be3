//! Types of single values.

use std::{fmt, ops::RangeInclusive, path::PathBuf};

use host_core::{AppName, ImageRef, InvalidId};
use serde::Deserialize;

use crate::profile::Profile;

/// Whether clients' tokens are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// A JSON Web Token of the configured issuer, whose subject is the mandelbox's user.
    Jwt,
    /// Everybody may ask for anything; local profiles only.
    Off,
}

/// Where the facts about this host come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Metadata {
    /// From `[instance]` itself.
    Static,
    /// From the metadata service of an instance of EC2.
    Ec2,
}

/// When an image is fetched from its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// When it is not present.
    Missing,
    /// At every spin-up.
    Always,
    /// Never; one that is not present is an error.
    Never,
}

/// The system call filter of mandelboxes: `default`, `unconfined`, or the path of a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum SeccompChoice {
    /// The engine's own.
    Default,
    /// None.
    Unconfined,
    /// A profile in Docker's format in this file, absolute.
    File(PathBuf),
}

impl TryFrom<String> for SeccompChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "default" => Ok(Self::Default),
            "unconfined" => Ok(Self::Unconfined),
            path if path.starts_with('/') => Ok(Self::File(text.into())),
            _ => Err(format!(
                "expected \"default\", \"unconfined\" or the absolute path of a profile, found {text:?}"
            )),
        }
    }
}

/// Numbers from the first to the last, both included, written `10-63`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NumberRange {
    /// The least.
    pub start: u16,
    /// The greatest.
    pub end: u16,
}

impl NumberRange {
    /// Every number in it.
    pub fn numbers(self) -> RangeInclusive<u16> {
        self.start..=self.end
    }

    /// How many numbers; at least one.
    pub fn count(self) -> usize {
        self.numbers().len()
    }
}

impl TryFrom<String> for NumberRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok();
        text.split_once('-')
            .and_then(|(start, end)| Some((number(start)?, number(end)?)))
            .filter(|(start, end)| start <= end)
            .map(|(start, end)| Self { start, end })
            .ok_or_else(|| {
                format!("expected a range, lower number first, such as \"10000-29999\", found {text:?}")
            })
    }
}

impl fmt::Display for NumberRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Where images are found: an image reference with `{app}` for the app's name and `{environment}` for the
/// profile's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ImageTemplate(String);

impl ImageTemplate {
    /// The image of `app`.
    ///
    /// # Errors
    /// The result is too long for an image reference.
    pub fn image(&self, app: &AppName) -> Result<ImageRef, InvalidId> {
        self.0.replace("{app}", app.as_str()).parse()
    }

    /// The template with the profile's name in it.
    pub(crate) fn resolved(&self, profile: Profile) -> Self {
        Self(self.0.replace("{environment}", profile.name()))
    }
}

impl TryFrom<String> for ImageTemplate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let sample = text.replace("{app}", "app").replace("{environment}", "dev");
        if sample.contains(['{', '}']) {
            return Err(format!("only {{app}} and {{environment}} are replaced, found {text:?}"));
        }
        sample.parse::<ImageRef>().map(|_| Self(text)).map_err(|error| error.to_string())
    }
}

impl fmt::Display for ImageTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Result<ImageTemplate, String> {
        text.to_owned().try_into()
    }

    #[test]
    fn an_image_is_made_of_registry_environment_and_app() {
        let image = template("ghcr.io/org/{environment}/{app}:current-build").unwrap();
        let app = "browsers/chrome".parse().unwrap();
        assert_eq!(
            image.resolved(Profile::Staging).image(&app).unwrap().as_str(),
            "ghcr.io/org/staging/browsers/chrome:current-build"
        );
    }

    #[test]
    fn a_template_that_can_name_no_image_is_refused() {
        for bad in ["", "{ap}:x", "{app", "a b/{app}", ":{app}"] {
            assert!(template(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn ranges_run_upwards_and_name_both_ends() {
        let range = NumberRange::try_from("10-63".to_owned()).unwrap();
        assert_eq!((range.count(), range.to_string()), (54, "10-63".to_owned()));
        for bad in ["", "10", "63-10", "1-70000", "a-b", "-1-5"] {
            assert!(NumberRange::try_from(bad.to_owned()).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn seccomp_is_a_word_or_an_absolute_path() {
        let choice = |text: &str| SeccompChoice::try_from(text.to_owned());
        assert_eq!(choice("default"), Ok(SeccompChoice::Default));
        assert_eq!(choice("/etc/x.json"), Ok(SeccompChoice::File("/etc/x.json".into())));
        assert!(choice("x.json").is_err());
    }
}
