//! What only NVML can do wrong.
#![cfg(test)]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::future::join_all;
use gpu_nvml::{Config, NvmlGpu};
use host_core::{
    ErrorKind,
    check::Verdict,
    gpu::{Gpu as _, GpuHealth},
};
use nvml_stand_in::{Event, Instance, Presence, Scenario, StandIn};

/// How long the driver may be silent here.
const PATIENCE: Duration = Duration::from_millis(300);

/// For what should come at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

fn config(driver: &StandIn) -> Config {
    Config { library: driver.library(), timeout: PATIENCE, cdi: vec![], ..Config::default() }
}

async fn open(scenario: &Scenario) -> (StandIn, NvmlGpu) {
    let driver = StandIn::new(scenario).unwrap();
    let gpu = NvmlGpu::open(config(&driver), false).await.unwrap();
    (driver, gpu)
}

async fn sick(gpu: &NvmlGpu) -> Vec<(String, String)> {
    let sick = |(uuid, health)| match health {
        GpuHealth::Healthy => None,
        GpuHealth::Unhealthy(reason) => Some((uuid, reason)),
    };
    gpu.health().await.unwrap().into_iter().filter_map(sick).collect()
}

fn uuid(number: u32) -> String {
    nvml_stand_in::Gpu::new(number).uuid
}

#[tokio::test]
async fn what_the_driver_tells_is_told() {
    let mut scenario = Scenario::of(2);
    scenario.gpus[1].encoder_sessions = None;
    let (_driver, gpu) = open(&scenario).await;
    let devices = gpu.enumerate().await.unwrap();
    assert_eq!((devices[1].index, &devices[1].uuid, devices[1].memory_bytes), (1, &uuid(1), 24 << 30));
    assert_eq!(devices[1].name, "NVIDIA A10G");
    assert_eq!(devices[1].attachment.env["NVIDIA_VISIBLE_DEVICES"], uuid(1));
    let stats = gpu.stats().await.unwrap();
    assert_eq!(stats[0].memory_free_bytes, 23 << 30);
    let figures = (stats[0].utilization_percent, stats[0].encoder_percent, stats[0].encoder_sessions);
    assert_eq!(figures, (Some(7), Some(11), Some(2)));
    assert_eq!((stats[0].temperature_celsius, stats[0].power_mw), (Some(41), Some(61_500)));
    assert_eq!(stats[1].encoder_sessions, None, "not every GPU has an encoder");
}

#[tokio::test]
async fn a_gpu_in_mig_mode_is_its_instances() {
    let mut scenario = Scenario::of(2);
    let instance =
        |n| Instance { uuid: format!("MIG-{n}"), name: "MIG 1g.5gb".into(), memory_bytes: 5 << 30 };
    scenario.gpus[0].mig = Some((0..3).map(instance).collect());
    let (driver, gpu) = open(&scenario).await;
    let devices = gpu.enumerate().await.unwrap();
    let uuids: Vec<_> = devices.iter().map(|device| device.uuid.as_str()).collect();
    assert_eq!(uuids, ["MIG-0", "MIG-1", "MIG-2", &uuid(1)]);
    assert_eq!(devices[2].memory_bytes, 5 << 30);
    let stats = gpu.stats().await.unwrap();
    assert_eq!((stats[0].temperature_celsius, stats[0].power_mw), (Some(41), None));
    driver.change(|scenario| scenario.gpus[0].events.push(Event::xid(95))).unwrap();
    let sick: Vec<_> = sick(&gpu).await.into_iter().map(|(uuid, _)| uuid).collect();
    assert_eq!(sick, ["MIG-0", "MIG-1", "MIG-2"], "a fault of a GPU is one of all its instances");
    driver.change(|scenario| scenario.gpus[0].mig = Some(vec![instance(7)])).unwrap();
    let uuids: Vec<_> =
        gpu.enumerate().await.unwrap().into_iter().map(|device| (device.index, device.uuid)).collect();
    assert_eq!(uuids, [(0, "MIG-7".to_owned()), (1, uuid(1))], "cut up anew");
}

#[tokio::test]
async fn xid_and_ecc_events_are_faults_but_not_what_programs_do() {
    let (driver, gpu) = open(&Scenario::of(4)).await;
    let changed = driver.change(|scenario| {
        scenario.gpus[0].events.push(Event::xid(79));
        scenario.gpus[1].events.push(Event::xid(31));
        scenario.gpus[2].events.push(Event::double_bit_ecc());
        scenario.gpus[3].ecc_uncorrected = Some(2);
    });
    changed.unwrap();
    let sick = sick(&gpu).await;
    let told: Vec<_> = sick.iter().map(|(uuid, reason)| (uuid.clone(), &reason[..6])).collect();
    assert_eq!(told, [(uuid(0), "XID 79"), (uuid(2), "an ECC"), (uuid(3), "2 ECC ")]);
    assert_eq!(gpu.enumerate().await.unwrap().len(), 4, "they still answer");
}

#[tokio::test]
async fn one_that_wants_a_reset_is_enumerated_and_gets_nothing() {
    let (driver, gpu) = open(&Scenario::of(2)).await;
    let reset_required = 16;
    driver.change(|scenario| scenario.gpu(&uuid(0)).fault = reset_required).unwrap();
    assert_eq!(gpu.enumerate().await.unwrap().len(), 2);
    assert_eq!(gpu.stats().await.unwrap().len(), 1);
    assert!(sick(&gpu).await[0].1.contains("requires a reset"));
    driver.change(|scenario| scenario.gpu(&uuid(0)).fault = 0).unwrap();
    assert_eq!(sick(&gpu).await, []);
}

#[tokio::test]
async fn a_lost_gpu_says_why_and_comes_back() {
    let (driver, gpu) = open(&Scenario::of(3)).await;
    driver.change(|scenario| scenario.gpu(&uuid(1)).presence = Presence::Lost).unwrap();
    let lost = sick(&gpu).await;
    assert!(lost.len() == 1 && lost[0].0 == uuid(1) && lost[0].1.contains("fell off the bus"), "{lost:?}");
    let indexes: Vec<_> = gpu.enumerate().await.unwrap().iter().map(|device| device.index).collect();
    assert_eq!(indexes, [0, 2], "the others keep their numbers while the driver does");
    driver.change(|scenario| scenario.gpu(&uuid(1)).presence = Presence::Present).unwrap();
    assert_eq!(sick(&gpu).await, []);
    assert_eq!(gpu.enumerate().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_gpu_that_hangs_the_driver_is_named_and_stalls_nobody() {
    let (driver, gpu) = open(&Scenario::of(3)).await;
    driver.change(|scenario| scenario.gpu(&uuid(1)).hang = true).unwrap();
    let begun = Instant::now();
    let calls = join_all((0..200).map(|_| gpu.enumerate())).await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert!(calls.into_iter().all(|devices| devices.unwrap().len() == 3), "they are told what was known");
    let hung = sick(&gpu).await;
    assert!(hung.len() == 1 && hung[0].0 == uuid(1) && hung[0].1.contains("has not answered"), "{hung:?}");
    let error = gpu.stats().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "figures are never told twice");
    assert!(error.to_string().contains(&uuid(1)), "{error}");
    driver.change(|scenario| scenario.gpu(&uuid(1)).hang = false).unwrap();
    while !sick(&gpu).await.is_empty() {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(gpu.stats().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_driver_that_hangs_as_a_whole_makes_every_gpu_unhealthy() {
    let (driver, gpu) = open(&Scenario::of(2)).await;
    driver.change(|scenario| scenario.hang = true).unwrap();
    assert_eq!(sick(&gpu).await.len(), 2);
    driver.change(|scenario| scenario.hang = false).unwrap();
}

#[tokio::test]
async fn one_that_is_slow_with_many_gpus_is_no_driver_that_hangs() {
    let mut scenario = Scenario::of(4);
    scenario.gpus.iter_mut().for_each(|gpu| gpu.delay_ms = 400);
    let driver = StandIn::new(&scenario).unwrap();
    let config = Config { timeout: Duration::from_secs(1), ..config(&driver) };
    let gpu = NvmlGpu::open(config, false).await.unwrap();
    assert_eq!(sick(&gpu).await, []);
    assert_eq!(gpu.stats().await.unwrap().len(), 4, "each GPU answers in time");
}

#[tokio::test]
async fn a_driver_that_is_only_being_begun_anew_makes_no_gpu_unhealthy() {
    let (driver, gpu) = open(&Scenario::of(2)).await;
    let driver_not_loaded = 9;
    driver.change(|scenario| scenario.init = driver_not_loaded).unwrap();
    assert!(gpu.health().await.is_err(), "NVML has to be begun anew");
    driver.change(|scenario| (scenario.init, scenario.hang_init) = (0, true)).unwrap();
    assert_eq!(sick(&gpu).await, [], "as long as that may take");
    assert_eq!(gpu.stats().await.unwrap_err().kind(), ErrorKind::Timeout);
    driver.change(|scenario| scenario.hang_init = false).unwrap();
    assert_eq!(sick(&gpu).await, []);
}

#[tokio::test]
async fn a_driver_that_does_not_even_begin_is_told_where_gpus_are_needed() {
    let driver = StandIn::new(&Scenario { hang_init: true, ..Scenario::of(1) }).unwrap();
    let config = Config { opening: PATIENCE, ..config(&driver) };
    let error = NvmlGpu::open(config.clone(), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let gpu = NvmlGpu::open(config, true).await.unwrap();
    assert_eq!((gpu.enumerate().await.unwrap(), gpu.health().await.unwrap()), (vec![], vec![]));
    driver.change(|scenario| scenario.hang_init = false).unwrap();
    let begun = Instant::now();
    while gpu.enumerate().await.unwrap().is_empty() {
        assert!(begun.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn without_nvml_a_host_that_needs_gpus_is_told_and_another_has_none() {
    let config = Config { library: PathBuf::from("/does/not/exist/libnvidia-ml.so.1"), ..Config::default() };
    let error = NvmlGpu::open(config.clone(), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let told = error.to_string();
    assert!(told.contains("/does/not/exist") && told.contains("gpu.nvml.library"), "{told}");
    let gpu = NvmlGpu::open(config.clone(), true).await.unwrap();
    assert_eq!((gpu.enumerate().await.unwrap(), gpu.health().await.unwrap()), (vec![], vec![]));
    let config = Config { required: Some(true), ..config };
    assert!(NvmlGpu::open(config, true).await.is_err(), "what the section says counts");
}

#[tokio::test]
async fn a_driver_that_does_not_fit_is_told() {
    for (init, told) in
        [(18, "different versions"), (9, "modprobe"), (4, "root"), (999, "internal driver error")]
    {
        let driver = StandIn::new(&Scenario { init, ..Scenario::of(1) }).unwrap();
        let error = NvmlGpu::open(config(&driver), false).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
        driver.change(|scenario| scenario.init = 0).unwrap();
        assert!(NvmlGpu::open(config(&driver), false).await.is_ok());
    }
}

#[tokio::test]
async fn a_driver_that_comes_later_is_noticed() {
    let driver = StandIn::new(&Scenario { init: 9, ..Scenario::of(1) }).unwrap();
    let gpu = NvmlGpu::open(config(&driver), true).await.unwrap();
    assert_eq!(gpu.enumerate().await.unwrap(), []);
    driver.change(|scenario| scenario.init = 0).unwrap();
    assert_eq!(gpu.enumerate().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_library_without_a_function_that_is_needed_is_too_old() {
    for needed in ["nvmlDeviceGetMemoryInfo_v2", "nvmlInit_v2"] {
        let driver = StandIn::new(&Scenario::of(1)).unwrap().without(needed).unwrap();
        let error = NvmlGpu::open(config(&driver), false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(needed) && error.to_string().contains("too old"), "{error}");
    }
}

#[tokio::test]
async fn one_without_a_function_that_is_not_tells_less() {
    let driver = StandIn::new(&Scenario::of(1)).unwrap().without("nvmlDeviceGetEncoderStats").unwrap();
    let driver = driver.without("nvmlEventSetCreate").unwrap();
    let gpu = NvmlGpu::open(config(&driver), false).await.unwrap();
    let stats = gpu.stats().await.unwrap();
    assert_eq!((stats[0].encoder_sessions, stats[0].encoder_percent), (None, Some(11)));
    assert_eq!(sick(&gpu).await, []);
}

#[tokio::test]
async fn a_host_that_needs_gpus_and_has_none_is_told() {
    let driver = StandIn::new(&Scenario::of(0)).unwrap();
    let error = NvmlGpu::open(config(&driver), false).await.unwrap_err();
    assert!(error.to_string().contains("knows no GPU"), "{error}");
    assert!(NvmlGpu::open(config(&driver), true).await.is_ok());
}

#[tokio::test]
async fn a_person_is_told_of_the_driver_and_of_what_is_missing() {
    let (driver, gpu) = open(&Scenario::of(2)).await;
    driver.change(|scenario| scenario.gpus[0].events.push(Event::xid(79))).unwrap();
    let checks = gpu.examine().await;
    assert!(checks[0].verdict == Verdict::Ok && checks[0].found.contains("570.86.10"), "{checks:?}");
    assert!(checks[1].verdict == Verdict::Warn && checks[1].found.contains(&uuid(1)), "{checks:?}");
    assert!(checks[2].found.contains("XID 79"), "{checks:?}");
}

/// A debug build on a busy machine, and a driver that answers at once: what the plugin itself costs, with room.
#[tokio::test]
async fn a_round_over_eight_gpus_is_cheap() {
    let (_driver, gpu) = open(&Scenario::of(8)).await;
    let mut took = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        assert_eq!(gpu.stats().await.unwrap().len(), 8);
        took.push(begun.elapsed());
    }
    took.sort();
    println!("enumeration with figures of 8 GPUs: median {:?}, 90th {:?}", took[25], took[45]);
    assert!(took[0] < Duration::from_millis(5), "{took:?}");
}
