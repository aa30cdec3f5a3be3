//! A round of questions to the driver, and what it told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use host_core::{
    check::Check,
    gpu::{GpuDevice, GpuHealth, GpuStats},
};
use nvml_wrapper::{
    Device, EventSet, Nvml,
    bitmasks::event::EventTypes,
    enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor},
    enums::event::XidError,
    error::NvmlError,
    struct_wrappers::event::EventData,
};

use crate::{
    attach::{Attacher, Identity},
    config::Config,
    driver::Progress,
    health::{Memory, Seen},
    trouble::Trouble,
};

/// Events read per GPU and round; the rest is read in the next.
const MOST_EVENTS: usize = 64;

/// Everything that one round told.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The driver's version.
    pub(crate) driver: String,
    pub(crate) devices: Vec<GpuDevice>,
    pub(crate) stats: Vec<GpuStats>,
    pub(crate) health: Vec<(String, GpuHealth)>,
    /// A GPU that was there is not, or wants a reset.
    pub(crate) misses_any: bool,
    /// The GPU that each device is or is of.
    gpus: BTreeMap<String, String>,
}

impl Survey {
    /// Whether `uuid` is that GPU or an instance of it.
    pub(crate) fn is_of(&self, uuid: &str, gpu: &str) -> bool {
        self.gpus.get(uuid).is_some_and(|of| of == gpu)
    }

    /// What a person should know.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let mut checks = vec![Check::ok("gpu driver", format!("NVIDIA {}", self.driver))];
        let undescribed: Vec<_> =
            self.devices.iter().filter(|device| device.attachment.cdi.is_empty()).collect();
        if !undescribed.is_empty() {
            let uuids: Vec<_> = undescribed.iter().map(|device| device.uuid.as_str()).collect();
            checks.push(Check::warn(
                "gpu descriptions",
                format!("no CDI specification describes {}", uuids.join(", ")),
                "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml; only Docker with NVIDIA's runtime does without",
            ));
        }
        for (uuid, health) in &self.health {
            if let GpuHealth::Unhealthy(reason) = health {
                checks.push(Check::warn(
                    format!("gpu {uuid}"),
                    reason,
                    "see dmesg for NVRM; nvidia-smi --gpu-reset, or restart",
                ));
            }
        }
        checks
    }

    fn add(&mut self, device: GpuDevice, gpu: &str, health: GpuHealth) {
        self.gpus.insert(device.uuid.clone(), gpu.to_owned());
        self.health.push((device.uuid.clone(), health));
        self.devices.push(device);
    }
}

/// NVML, begun, and its sets of events: one per GPU, because a set is lost with a GPU that refuses it.
pub(crate) struct Session<'n> {
    nvml: &'n Nvml,
    config: Arc<Config>,
    events: BTreeMap<String, Option<EventSet<'n>>>,
}

/// A round under way.
struct Round<'r> {
    memory: &'r mut Memory,
    attacher: &'r Attacher,
    survey: Survey,
    /// GPUs that said who they are.
    answered: BTreeSet<String>,
    /// The next index; devices that do not answer keep theirs.
    index: u32,
}

/// A GPU in its round.
struct Gpu<'n> {
    device: Device<'n>,
    uuid: String,
    place: u32,
    fault: Option<String>,
}

impl<'n> Session<'n> {
    pub(crate) fn new(nvml: &'n Nvml, config: Arc<Config>) -> Self {
        Self { nvml, config, events: BTreeMap::new() }
    }

    /// Asks everything of every GPU.
    ///
    /// # Errors
    /// None can be asked.
    pub(crate) fn round(
        &mut self,
        memory: &mut Memory,
        attacher: &mut Attacher,
        progress: &Progress,
    ) -> Result<Survey, Trouble> {
        attacher.refresh();
        let driver = self.nvml.sys_driver_version().map_err(of_all)?;
        let count = self.nvml.device_count().map_err(of_all)?;
        memory.places.retain(|place, _| *place < count);
        let survey = Survey { driver, ..Survey::default() };
        let mut round = Round { memory, attacher, survey, answered: BTreeSet::new(), index: 0 };
        let mut reasons = BTreeMap::new();
        for place in 0..count {
            progress.about(round.memory.places.get(&place).map(String::as_str));
            if let Err(error) = self.gpu(place, &mut round, progress) {
                if let Some(trouble) = Trouble::of_all(&error) {
                    return Err(trouble);
                }
                reasons.extend(round.failed(place, &error));
            }
        }
        let survey = round.finish(&reasons);
        let there: BTreeSet<_> =
            survey.devices.iter().filter_map(|device| survey.gpus.get(&device.uuid)).collect();
        self.events.retain(|gpu, _| there.contains(gpu));
        Ok(survey)
    }

    fn gpu(&mut self, place: u32, round: &mut Round<'_>, progress: &Progress) -> Result<(), NvmlError> {
        let device = self.nvml.device_by_index(place)?;
        let uuid = device.uuid()?;
        progress.about(Some(&uuid));
        round.memory.places.insert(place, uuid.clone());
        round.answered.insert(uuid.clone());
        self.read_events(&device, &uuid, round.memory)?;
        if let Some(count) = figure(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile))?
        {
            round.memory.uncorrected(&uuid, count);
        }
        let fault = round.memory.is_faulty(&uuid, self.config.recovery);
        let gpu = Gpu { device, uuid, place, fault };
        match figure(gpu.device.mig_mode())? {
            Some(mode) if mode.current != 0 => {
                for number in 0..gpu.device.mig_device_count()? {
                    match gpu.device.mig_device_by_index(number) {
                        Ok(instance) => round.take(&gpu, &instance, Some(number))?,
                        Err(NvmlError::NotFound) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(())
            }
            _ => round.take(&gpu, &gpu.device, None),
        }
    }

    /// Those that the driver has queued since the last round.
    fn read_events(&mut self, gpu: &Device<'n>, uuid: &str, memory: &mut Memory) -> Result<(), NvmlError> {
        if !self.events.contains_key(uuid) {
            let set = self.listen(gpu).inspect_err(|error| {
                tracing::warn!(gpu = uuid, %error, "the driver tells no events of this GPU; it is asked for faults only");
            });
            self.events.insert(uuid.to_owned(), set.ok());
        }
        let Some(Some(set)) = self.events.get(uuid) else { return Ok(()) };
        let mut ignored = BTreeMap::<u64, u32>::new();
        let mut end = None;
        for _ in 0..MOST_EVENTS {
            match set.wait(0) {
                Ok(event) => match said(&event, &self.config) {
                    Said::Fault(fault) => memory.fault(uuid, fault),
                    Said::Program(xid) => *ignored.entry(xid).or_default() += 1,
                    Said::Nothing => {}
                },
                Err(error) => {
                    end = Some(error);
                    break;
                }
            }
        }
        for (xid, times) in ignored {
            tracing::info!(gpu = uuid, xid, times, "a program's fault on a GPU");
        }
        match end {
            None | Some(NvmlError::Timeout) => Ok(()),
            Some(NvmlError::GpuLost) => Err(NvmlError::GpuLost),
            Some(error) => {
                // The set may be spoilt: the next round makes another.
                tracing::debug!(gpu = uuid, %error, "a GPU's events could not be read");
                self.events.remove(uuid);
                Ok(())
            }
        }
    }

    fn listen(&self, gpu: &Device<'n>) -> Result<EventSet<'n>, NvmlError> {
        let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
        let offered = gpu.supported_event_types()? & wanted;
        if offered.is_empty() {
            return Err(NvmlError::NotSupported);
        }
        gpu.register_events(offered, self.nvml.create_event_set()?).map_err(|failed| failed.error)
    }
}

impl Round<'_> {
    /// One device: a whole GPU, or an instance of it.
    fn take(&mut self, gpu: &Gpu<'_>, device: &Device<'_>, instance: Option<u32>) -> Result<(), NvmlError> {
        let uuid = device.uuid()?;
        let memory = device.memory_info()?;
        let identity = Identity {
            uuid: &uuid,
            minor: figure(gpu.device.minor_number())?,
            instance: instance.map(|instance| (gpu.place, instance)),
        };
        let found = GpuDevice {
            index: self.index,
            name: device.name()?,
            memory_bytes: memory.total,
            node: identity.minor.map(|minor| format!("/dev/nvidia{minor}").into()),
            attachment: self.attacher.attachment(identity),
            uuid,
        };
        let percent = |percent: u32| percent.min(100);
        let stats = GpuStats {
            uuid: found.uuid.clone(),
            memory_free_bytes: memory.free.min(memory.total),
            utilization_percent: figure(device.utilization_rates())?.map(|rates| percent(rates.gpu)),
            encoder_percent: figure(device.encoder_utilization())?
                .map(|encoder| percent(encoder.utilization)),
            encoder_sessions: figure(device.encoder_stats())?.map(|stats| stats.session_count),
            // An instance is as hot as its GPU; what it draws of its GPU's power nobody knows.
            temperature_celsius: figure(gpu.device.temperature(TemperatureSensor::Gpu))?,
            power_mw: figure(device.power_usage())?,
        };
        let health = gpu.fault.clone().map_or(GpuHealth::Healthy, GpuHealth::Unhealthy);
        self.memory.devices.insert(found.uuid.clone(), Seen { device: found.clone(), gpu: gpu.uuid.clone() });
        self.index += 1;
        self.survey.stats.push(stats);
        self.survey.add(found, &gpu.uuid, health);
        Ok(())
    }

    /// A GPU does not answer as it should. One that is still on the bus stays enumerated, with what was known of it; of
    /// one that is not, its UUID and why.
    fn failed(&mut self, place: u32, error: &NvmlError) -> Option<(String, String)> {
        tracing::debug!(place, %error, "a GPU could not be asked");
        let Some(gpu) = self.memory.places.get(&place).cloned() else {
            // Never seen: nothing can be told of it but that it takes a place.
            self.index += 1;
            return None;
        };
        let known: Vec<_> = self.memory.devices.values().filter(|seen| seen.gpu == gpu).cloned().collect();
        for Seen { device, gpu } in known {
            if self.survey.gpus.contains_key(&device.uuid) {
                continue;
            }
            if !matches!(error, NvmlError::GpuLost) {
                let device = GpuDevice { index: self.index, ..device };
                self.survey.add(device, &gpu, GpuHealth::Unhealthy(error.to_string()));
            }
            self.index += 1;
        }
        self.survey.misses_any = true;
        Some((gpu, error.to_string()))
    }

    /// With those that are not there any more.
    fn finish(mut self, reasons: &BTreeMap<String, String>) -> Survey {
        for (uuid, Seen { gpu, .. }) in &self.memory.devices {
            if self.survey.gpus.contains_key(uuid) {
                continue;
            }
            let reason = reasons.get(gpu).map_or("the driver does not enumerate it any more", String::as_str);
            self.survey.health.push((uuid.clone(), GpuHealth::Unhealthy(reason.to_owned())));
            self.survey.gpus.insert(uuid.clone(), gpu.clone());
            // A GPU that was cut up anew is not lost.
            self.survey.misses_any |= !self.answered.contains(gpu);
        }
        self.survey
    }
}

fn of_all(error: NvmlError) -> Trouble {
    Trouble::of_all(&error).unwrap_or_else(|| {
        Trouble::new(
            host_core::ErrorKind::Unavailable,
            format!("NVIDIA's driver does not enumerate: {error}"),
        )
    })
}

/// What not every GPU or driver tells. Only what says that the GPU itself is in trouble is an error.
fn figure<T>(told: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match told {
        Ok(figure) => Ok(Some(figure)),
        Err(
            error @ (NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::IrqIssue
            | NvmlError::Uninitialized),
        ) => Err(error),
        Err(_) => Ok(None),
    }
}

/// What an event says of its GPU.
enum Said {
    Fault(String),
    /// An XID that a program caused.
    Program(u64),
    Nothing,
}

fn said(event: &EventData<'_>, config: &Config) -> Said {
    match event.event_data {
        Some(XidError::Value(xid)) if config.ignored_xids.contains(&xid) => Said::Program(xid),
        Some(XidError::Value(xid)) => Said::Fault(format!("XID {xid}")),
        Some(XidError::Unknown) => Said::Fault("an unknown XID".to_owned()),
        None if event.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) => {
            Said::Fault("an ECC error that could not be corrected".to_owned())
        }
        None => Said::Nothing,
    }
}
