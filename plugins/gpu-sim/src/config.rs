//! `[gpu.sim]`: which devices there are.

use std::collections::HashSet;

use serde::Deserialize;

/// More than any machine has; a slip of the finger should not make a million.
const MOST_DEVICES: usize = 64;
const DEFAULT_COUNT: usize = 2;
const DEFAULT_NAME: &str = "Simulated GPU";
/// 24 GiB, as cards made for streaming have.
const DEFAULT_MEMORY_BYTES: u64 = 24 << 30;

/// The section, checked: every device with its identity.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Section")]
pub struct Config {
    pub(crate) devices: Vec<DeviceConfig>,
    pub(crate) seed: u64,
}

impl Config {
    /// `count` devices that are alike, whose figures follow `seed`.
    ///
    /// # Errors
    /// More than 64 devices.
    pub fn new(count: usize, seed: u64) -> Result<Self, InvalidConfig> {
        Self::try_from(Section { count: Some(count), seed, ..Section::default() })
    }
}

impl Default for Config {
    fn default() -> Self {
        let device = |slot| DeviceConfig {
            uuid: uuid(0, slot),
            name: DEFAULT_NAME.to_owned(),
            memory_bytes: DEFAULT_MEMORY_BYTES,
        };
        Self { devices: (0..DEFAULT_COUNT).map(device).collect(), seed: 0 }
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceConfig {
    pub(crate) uuid: String,
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
}

/// What is wrong with the section as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(String);

/// The section as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Section {
    /// How many devices; as many as `devices` lists, or 2.
    count: Option<usize>,
    /// The name of each.
    name: Option<String>,
    /// The memory of each.
    memory_bytes: Option<u64>,
    /// Figures and generated UUIDs follow from it.
    seed: u64,
    /// What is different about single devices, the first entry for the first device.
    devices: Vec<Override>,
}

/// What is different about one device.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Override {
    uuid: Option<String>,
    name: Option<String>,
    memory_bytes: Option<u64>,
}

impl TryFrom<Section> for Config {
    type Error = InvalidConfig;

    fn try_from(section: Section) -> Result<Self, InvalidConfig> {
        let listed = section.devices.len();
        let count = section.count.unwrap_or(if listed == 0 { DEFAULT_COUNT } else { listed });
        if count < listed {
            return Err(InvalidConfig(format!(
                "count = {count}, but devices lists {listed}; raise count or leave it out"
            )));
        }
        if count > MOST_DEVICES {
            return Err(InvalidConfig(format!("{count} devices, but at most {MOST_DEVICES} are possible")));
        }
        let mut overrides = section.devices.into_iter();
        let name = section.name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let memory_bytes = section.memory_bytes.unwrap_or(DEFAULT_MEMORY_BYTES);
        let mut devices = Vec::with_capacity(count);
        for slot in 0..count {
            let own = overrides.next().unwrap_or_default();
            devices.push(DeviceConfig {
                uuid: own.uuid.unwrap_or_else(|| uuid(section.seed, slot)),
                name: own.name.unwrap_or_else(|| name.clone()),
                memory_bytes: own.memory_bytes.unwrap_or(memory_bytes),
            });
        }
        check(&devices)?;
        Ok(Self { devices, seed: section.seed })
    }
}

/// The same for the same seed and slot, for ever.
fn uuid(seed: u64, slot: usize) -> String {
    format!("GPU-sim-{seed:08x}-{slot:02}")
}

fn check(devices: &[DeviceConfig]) -> Result<(), InvalidConfig> {
    let mut uuids = HashSet::new();
    for device in devices {
        let uuid = &device.uuid;
        if uuid.is_empty() || !uuid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') || uuid.len() > 96
        {
            return Err(InvalidConfig(format!("uuid {uuid:?} is not 1 to 96 of A-Z a-z 0-9 -")));
        }
        if !uuids.insert(uuid) {
            return Err(InvalidConfig(format!("uuid {uuid:?} is given to two devices")));
        }
        if device.memory_bytes == 0 {
            return Err(InvalidConfig(format!("memory_bytes of {uuid} is 0")));
        }
    }
    Ok(())
}
