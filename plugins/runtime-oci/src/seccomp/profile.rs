//! The format of Docker's profiles. Members that are not known here mean nothing to Docker either.

use host_core::PluginError;
use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator};
use serde::{Deserialize, Deserializer, de::Error};

use super::invalid;

/// A profile before anything is known of the container and the machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    pub(super) default_action: LinuxSeccompAction,
    pub(super) default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) architectures: Vec<String>,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) arch_map: Vec<Architecture>,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) flags: Vec<LinuxSeccompFilterFlag>,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) syscalls: Vec<Rule>,
}

/// An architecture, and those whose programs it runs besides.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Architecture {
    pub(super) architecture: String,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) sub_architectures: Vec<String>,
}

/// What to do about some calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    #[serde(default, deserialize_with = "or_null")]
    pub(super) names: Vec<String>,
    /// The older way to say one.
    pub(super) name: Option<String>,
    pub(super) action: LinuxSeccompAction,
    pub(super) errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) args: Vec<Argument>,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) includes: Condition,
    #[serde(default, deserialize_with = "or_null")]
    pub(super) excludes: Condition,
}

/// A comparison of an argument.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Argument {
    pub(super) index: usize,
    pub(super) value: u64,
    #[serde(default)]
    pub(super) value_two: u64,
    pub(super) op: LinuxSeccompOperator,
}

/// When a rule is to be had.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Condition {
    #[serde(deserialize_with = "or_null")]
    pub(super) caps: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    pub(super) arches: Vec<String>,
    #[serde(deserialize_with = "version")]
    pub(super) min_kernel: Option<(u32, u32)>,
}

impl Profile {
    /// # Errors
    /// `Invalid` with the place: `syscalls[3].action: unknown variant …`.
    pub(super) fn parse(json: &str) -> Result<Self, PluginError> {
        let mut reader = serde_json::Deserializer::from_str(json);
        let profile = serde_path_to_error::deserialize(&mut reader).map_err(invalid)?;
        reader.end().map_err(invalid)?;
        Ok(profile)
    }
}

/// Go writes empty lists as `null`.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(u32, u32)>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    kernel(&text).map(Some).ok_or_else(|| D::Error::custom(format!("{text:?} is no version such as 4.8")))
}

/// Major and minor version: `6.1.0-13-amd64` is 6.1.
pub(super) fn kernel(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.trim().split_once('.')?;
    let minor = rest.split(|char: char| !char.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
