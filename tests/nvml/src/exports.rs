//! NVML's functions, as its header declares them.
#![expect(unsafe_code, reason = "the names and pointers of a C library")]

use std::{
    ffi::{c_char, c_uint, c_ulonglong},
    ptr::without_provenance_mut,
    sync::Arc,
    time::Duration,
};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlEventTypeDoubleBitEccError,
    nvmlEventTypeXidCriticalError, nvmlMemory_v2_t,
    nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH as VERSION_MISMATCH,
    nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST as GPU_IS_LOST,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE as INSUFFICIENT_SIZE,
    nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NOT_FOUND as NOT_FOUND,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED as NOT_SUPPORTED, nvmlReturn_enum_NVML_ERROR_TIMEOUT as TIMEOUT,
    nvmlReturn_enum_NVML_ERROR_UNKNOWN as UNKNOWN, nvmlReturn_enum_NVML_SUCCESS as SUCCESS, nvmlReturn_t,
    nvmlUtilization_t,
};

use crate::{
    Gpu, Instance, Presence, Scenario,
    state::{Registration, patiently, state},
};

type Answer<T> = Result<T, nvmlReturn_t>;

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    answer(patiently(|scenario| scenario.hang_init).ok_or(UNKNOWN).and_then(|_| driver()).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    answer(driver().and_then(|scenario| put_text(version, length, &scenario.driver)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    answer(driver().and_then(|scenario| put_text(version, length, &format!("12.{}", scenario.driver))))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    answer(driver().and_then(|scenario| put(count, number(counted(&scenario).len()))))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    answer(driver().and_then(|scenario| {
        let gpu = *counted(&scenario).get(index as usize).ok_or(INVALID_ARGUMENT)?;
        let handle = Handle { gpu, instance: None };
        let delay_ms = ask(handle, |gpu, _| Ok(gpu.delay_ms))?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        put(device, handle.into())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    answer(ask(device.into(), |gpu, instance| {
        put_text(uuid, length, instance.map_or(&gpu.uuid, |instance| &instance.uuid))
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    answer(ask(device.into(), |gpu, instance| {
        put_text(name, length, instance.map_or(&gpu.name, |instance| &instance.name))
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    figure(device, minor, |gpu| Some(gpu.minor))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, memory: *mut nvmlMemory_v2_t) -> nvmlReturn_t {
    answer(ask(device.into(), |gpu, instance| {
        // SAFETY: NVML's contract: the caller's own struct, whose version says how large it is.
        let version = unsafe { memory.as_ref() }.ok_or(INVALID_ARGUMENT)?.version;
        if version != number(size_of::<nvmlMemory_v2_t>()) | 2 << 24 {
            return Err(VERSION_MISMATCH);
        }
        let (total, free) = match instance {
            Some(instance) => (instance.memory_bytes, instance.memory_bytes),
            None => (gpu.memory_bytes, gpu.memory_free_bytes),
        };
        put(memory, nvmlMemory_v2_t { version, total, reserved: 0, free, used: total - free })
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    utilization: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    figure(device, utilization, |gpu| Some(nvmlUtilization_t { gpu: gpu.utilization_percent?, memory: 0 }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEncoderUtilization(
    device: nvmlDevice_t,
    utilization: *mut c_uint,
    sampling_period_us: *mut c_uint,
) -> nvmlReturn_t {
    if put(sampling_period_us, 167_000).is_err() {
        return INVALID_ARGUMENT;
    }
    figure(device, utilization, |gpu| gpu.encoder_percent)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEncoderStats(
    device: nvmlDevice_t,
    sessions: *mut c_uint,
    average_fps: *mut c_uint,
    average_latency: *mut c_uint,
) -> nvmlReturn_t {
    if put(average_fps, 60).and(put(average_latency, 900)).is_err() {
        return INVALID_ARGUMENT;
    }
    figure(device, sessions, |gpu| gpu.encoder_sessions)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    _sensor: c_uint,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    figure(device, celsius, |gpu| gpu.temperature_celsius)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, milliwatts: *mut c_uint) -> nvmlReturn_t {
    figure(device, milliwatts, |gpu| gpu.power_mw)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    _kind: c_uint,
    _counter: c_uint,
    count: *mut c_ulonglong,
) -> nvmlReturn_t {
    figure(device, count, |gpu| gpu.ecc_uncorrected)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    let mode = |gpu: &Gpu| Some(c_uint::from(gpu.mig.is_some()));
    match figure(device, current, mode) {
        SUCCESS => figure(device, pending, mode),
        failed => failed,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    figure(device, count, |_| Some(MOST_INSTANCES))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    instance: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let whole = Handle::from(device);
    answer(ask(whole, |gpu, _| {
        let instances = gpu.mig.as_ref().ok_or(NOT_SUPPORTED)?;
        instances.get(index as usize).ok_or(NOT_FOUND)?;
        put(instance, Handle { instance: Some(index as usize), ..whole }.into())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    kinds: *mut c_ulonglong,
) -> nvmlReturn_t {
    figure(device, kinds, |_| Some((nvmlEventTypeXidCriticalError | nvmlEventTypeDoubleBitEccError).into()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    answer(driver().and_then(|_| {
        let mut state = state();
        state.last_set += 1;
        let handle = state.last_set;
        state.sets.insert(handle, Vec::new());
        put(set, without_provenance_mut(handle))
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    kinds: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    let handle = Handle::from(device);
    answer(ask(handle, |gpu, _| {
        let mut state = state();
        let registrations = state.sets.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?;
        registrations.push(Registration { gpu: handle.gpu, kinds, told: gpu.events.len() });
        Ok(())
    }))
}

/// Never waits: the plugin asks for what is there.
#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    _timeout_ms: c_uint,
) -> nvmlReturn_t {
    answer(driver().and_then(|scenario| {
        let mut state = state();
        let registrations = state.sets.get_mut(&set.addr()).ok_or(INVALID_ARGUMENT)?;
        for registration in registrations {
            let Some(gpu) = scenario.gpus.get(registration.gpu) else { continue };
            while let Some(event) = gpu.events.get(registration.told) {
                registration.told += 1;
                if event.kind & registration.kinds != 0 {
                    return put(
                        data,
                        nvmlEventData_t {
                            device: Handle { gpu: registration.gpu, instance: None }.into(),
                            eventType: event.kind,
                            eventData: event.data,
                            gpuInstanceId: u32::MAX,
                            computeInstanceId: u32::MAX,
                        },
                    );
                }
            }
        }
        Err(TIMEOUT)
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    state().sets.remove(&set.addr());
    SUCCESS
}

/// As many as an A100 can be cut into.
const MOST_INSTANCES: c_uint = 7;

/// Places in the scenario, one more than counted so that no handle is null.
#[derive(Clone, Copy)]
struct Handle {
    gpu: usize,
    instance: Option<usize>,
}

impl From<Handle> for nvmlDevice_t {
    fn from(Handle { gpu, instance }: Handle) -> Self {
        without_provenance_mut((gpu + 1) << 8 | instance.map_or(0, |instance| instance + 1))
    }
}

impl From<nvmlDevice_t> for Handle {
    fn from(device: nvmlDevice_t) -> Self {
        let address = device.addr();
        Self { gpu: (address >> 8).wrapping_sub(1), instance: (address & 0xff).checked_sub(1) }
    }
}

fn driver() -> Answer<Arc<Scenario>> {
    let scenario = patiently(|scenario| scenario.hang).ok_or(UNKNOWN)?;
    if scenario.init == SUCCESS { Ok(scenario) } else { Err(scenario.init) }
}

/// Places of those that have an index.
fn counted(scenario: &Scenario) -> Vec<usize> {
    let places = scenario.gpus.iter().enumerate();
    places.filter(|(_, gpu)| gpu.presence != Presence::Gone).map(|(place, _)| place).collect()
}

fn ask<T>(device: Handle, about: impl FnOnce(&Gpu, Option<&Instance>) -> Answer<T>) -> Answer<T> {
    let hangs =
        |scenario: &Scenario| scenario.hang || scenario.gpus.get(device.gpu).is_some_and(|gpu| gpu.hang);
    let scenario = patiently(hangs).ok_or(UNKNOWN)?;
    let gpu = scenario.gpus.get(device.gpu).ok_or(INVALID_ARGUMENT)?;
    if gpu.presence != Presence::Present {
        return Err(GPU_IS_LOST);
    }
    if gpu.fault != SUCCESS {
        return Err(gpu.fault);
    }
    let instances = gpu.mig.as_deref().unwrap_or_default();
    let instance = device.instance.map(|place| instances.get(place).ok_or(INVALID_ARGUMENT)).transpose()?;
    about(gpu, instance)
}

/// What only whole GPUs tell.
fn figure<T>(device: nvmlDevice_t, to: *mut T, of: impl FnOnce(&Gpu) -> Option<T>) -> nvmlReturn_t {
    answer(ask(device.into(), |gpu, instance| match instance {
        None => put(to, of(gpu).ok_or(NOT_SUPPORTED)?),
        Some(_) => Err(NOT_SUPPORTED),
    }))
}

fn answer(answer: Answer<()>) -> nvmlReturn_t {
    answer.err().unwrap_or(SUCCESS)
}

fn number(of: usize) -> c_uint {
    c_uint::try_from(of).unwrap_or(c_uint::MAX)
}

fn put<T>(to: *mut T, value: T) -> Answer<()> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: NVML's contract: what a caller passes to be written is its own and of that type.
    unsafe { to.write(value) };
    Ok(())
}

fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Answer<()> {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: NVML's contract: `to` has room for `length` bytes, and text and zero are not more.
    unsafe {
        to.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        to.add(text.len()).write(0);
    }
    Ok(())
}
