//! What the driver of a test says.

use std::{fs, io, path::Path};

use nvml_wrapper_sys::bindings::{nvmlEventTypeDoubleBitEccError, nvmlEventTypeXidCriticalError};
use serde::{Deserialize, Serialize};

/// A driver and its GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// Its version.
    pub driver: String,
    /// What `nvmlInit_v2` returns, and every call that is not about one GPU, a number of `nvmlReturn_t`; 0 is success.
    pub init: u32,
    /// `nvmlInit_v2` does not return.
    pub hang_init: bool,
    /// No call returns.
    pub hang: bool,
    /// In the order of the bus.
    pub gpus: Vec<Gpu>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self { driver: "570.86.10".to_owned(), init: 0, hang_init: false, hang: false, gpus: Vec::new() }
    }
}

impl Scenario {
    /// So many GPUs that are alike.
    pub fn of(count: u32) -> Self {
        Self { gpus: (0..count).map(Gpu::new).collect(), ..Self::default() }
    }

    /// Reads it from its file.
    ///
    /// # Errors
    /// The file cannot be read or is no scenario.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Puts it in the place of the one in that file, whole.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, path)
    }

    /// The GPU with that UUID.
    ///
    /// # Panics
    /// There is none.
    #[expect(clippy::panic, reason = "a slip in a test")]
    pub fn gpu(&mut self, uuid: &str) -> &mut Gpu {
        match self.gpus.iter_mut().find(|gpu| gpu.uuid == uuid) {
            Some(gpu) => gpu,
            None => panic!("no GPU {uuid}"),
        }
    }
}

/// One GPU. What is `None` is answered with `NVML_ERROR_NOT_SUPPORTED`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// Its identity.
    pub uuid: String,
    /// Its product name.
    pub name: String,
    /// The number in `/dev/nvidia<minor>`.
    pub minor: u32,
    /// All its memory.
    pub memory_bytes: u64,
    /// Memory not in use.
    pub memory_free_bytes: u64,
    /// 0 to 100.
    pub utilization_percent: Option<u32>,
    /// 0 to 100.
    pub encoder_percent: Option<u32>,
    /// Video encoder sessions open.
    pub encoder_sessions: Option<u32>,
    /// Degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Milliwatts.
    pub power_mw: Option<u32>,
    /// Errors that could not be corrected, since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// In MIG mode, and cut up so.
    pub mig: Option<Vec<Instance>>,
    /// What happened to it, the latest last; those that are there when it is registered for events are not told.
    pub events: Vec<Event>,
    /// Whether it is on the bus.
    pub presence: Presence,
    /// What calls about it return, a number of `nvmlReturn_t`; 0 is success.
    pub fault: u32,
    /// No call about it returns.
    pub hang: bool,
    /// So many ms pass until it is found.
    pub delay_ms: u64,
}

impl Gpu {
    /// The `number`th on the bus.
    pub fn new(number: u32) -> Self {
        Self {
            uuid: format!("GPU-{number:08x}-5d1a-4c5e-9f2b-0123456789ab"),
            name: "NVIDIA A10G".to_owned(),
            minor: number,
            memory_bytes: 24 << 30,
            memory_free_bytes: 23 << 30,
            utilization_percent: Some(7),
            encoder_percent: Some(11),
            encoder_sessions: Some(2),
            temperature_celsius: Some(41),
            power_mw: Some(61_500),
            ecc_uncorrected: Some(0),
            mig: None,
            events: Vec::new(),
            presence: Presence::Present,
            fault: 0,
            hang: false,
            delay_ms: 0,
        }
    }
}

impl Default for Gpu {
    fn default() -> Self {
        Self::new(0)
    }
}

/// A slice of a GPU in MIG mode. Figures besides memory are not told of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// Its identity, `MIG-…`.
    pub uuid: String,
    /// For example `NVIDIA A100 MIG 1g.5gb`.
    pub name: String,
    /// All its memory.
    pub memory_bytes: u64,
}

/// Something that NVML tells as an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// One of `nvmlEventType*`.
    pub kind: u64,
    /// The XID.
    pub data: u64,
}

impl Event {
    /// A critical XID error.
    pub fn xid(number: u64) -> Self {
        Self { kind: nvmlEventTypeXidCriticalError.into(), data: number }
    }

    /// An ECC error that could not be corrected.
    pub fn double_bit_ecc() -> Self {
        Self { kind: nvmlEventTypeDoubleBitEccError.into(), data: 0 }
    }
}

/// Whether a GPU is on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// It is.
    Present,
    /// It fell off: it has a place in the enumeration, and every call about it says so.
    Lost,
    /// It is not even counted.
    Gone,
}
