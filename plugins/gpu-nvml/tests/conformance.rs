//! Runs what every `Gpu` must do over the real bindings and a driver that tests can break, and over NVIDIA's own
//! where this machine has it.
#![cfg(test)]

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use conformance::gpu::{Bench, behaviours, fault_behaviours};
use gpu_nvml::{Config, NvmlGpu};
use host_core::gpu::{Gpu as _, GpuHealth};
use nvml_stand_in::{Event, Instance, Presence, Scenario, StandIn};

/// How long a fault lasts here; a test waits for its end.
const RECOVERY: Duration = Duration::from_millis(500);

struct Driven {
    gpu: NvmlGpu,
    driver: StandIn,
    lost: Presence,
}

impl Driven {
    async fn new(scenario: Scenario, lost: Presence) -> Self {
        let driver = StandIn::new(&scenario).unwrap();
        // More patience than the behaviours have: what they see is a call that hangs, not this plugin giving up.
        let config = Config { recovery: RECOVERY, timeout: Duration::from_secs(15), ..config(&driver) };
        Self { gpu: NvmlGpu::open(config, false).await.unwrap(), driver, lost }
    }

    /// The scenario of a GPU; `uuid` may be that of an instance.
    fn change(&self, uuid: &str, change: impl FnOnce(&mut nvml_stand_in::Gpu)) {
        let is_it = |gpu: &nvml_stand_in::Gpu| {
            gpu.uuid == uuid || gpu.mig.iter().flatten().any(|instance| instance.uuid == uuid)
        };
        let changed = self.driver.change(|scenario| {
            change(scenario.gpus.iter_mut().find(|gpu| is_it(gpu)).unwrap());
        });
        changed.unwrap();
    }
}

fn config(driver: &StandIn) -> Config {
    Config { library: driver.library(), cdi: vec![], ..Config::default() }
}

#[async_trait]
impl Bench for Driven {
    fn gpu(&self) -> &dyn host_core::gpu::Gpu {
        &self.gpu
    }

    async fn sicken(&self, uuid: &str) {
        self.change(uuid, |gpu| gpu.events.push(Event::xid(48)));
    }

    async fn lose(&self, uuid: &str) {
        self.change(uuid, |gpu| gpu.presence = self.lost);
    }

    async fn hang(&self) {
        self.driver.change(|scenario| scenario.hang = true).unwrap();
    }

    async fn mend(&self) {
        let mended = self.driver.change(|scenario| {
            scenario.hang = false;
            scenario.gpus.iter_mut().for_each(|gpu| gpu.presence = Presence::Present);
        });
        mended.unwrap();
        let all_well =
            |health: &[(String, GpuHealth)]| health.iter().all(|(_, one)| *one == GpuHealth::Healthy);
        while !all_well(&self.gpu.health().await.unwrap()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn holds(name: &str, driven: &Driven) {
    let report = conformance::report::run(name, &driven.gpu as &dyn host_core::gpu::Gpu, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
    let report = conformance::report::run(name, driven as &dyn Bench, &fault_behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}

#[tokio::test]
async fn it_does_what_every_gpu_must_do() {
    holds("gpu-nvml", &Driven::new(Scenario::of(3), Presence::Gone).await).await;
}

#[tokio::test]
async fn so_it_does_where_a_lost_gpu_keeps_its_place() {
    holds("gpu-nvml", &Driven::new(Scenario::of(3), Presence::Lost).await).await;
}

#[tokio::test]
async fn so_it_does_with_instances() {
    let mut scenario = Scenario::of(4);
    for (place, gpu) in scenario.gpus.iter_mut().enumerate().take(2) {
        let uuid = format!("MIG-{place}ab5c9e6-8f6d-5a1b-8e55-e2a4d1c0ffee");
        gpu.mig = Some(vec![Instance { uuid, name: "NVIDIA A100 MIG 1g.5gb".into(), memory_bytes: 5 << 30 }]);
    }
    holds("gpu-nvml (MIG)", &Driven::new(scenario, Presence::Lost).await).await;
}

/// Over NVIDIA's own driver. It has nothing to run on where there is none.
#[tokio::test]
async fn so_it_does_over_nvidias_driver() {
    if !Path::new("/dev/nvidiactl").exists() {
        println!("skipped: an NVIDIA GPU and its driver are needed; there is no /dev/nvidiactl");
        return;
    }
    let gpu = NvmlGpu::open(Config::default(), false).await.unwrap();
    let report =
        conformance::report::run("gpu-nvml (NVIDIA)", &gpu as &dyn host_core::gpu::Gpu, &behaviours()).await;
    println!("{report}");
    for check in gpu.examine().await {
        println!("{}: {}", check.name, check.found);
    }
    for (device, stats) in gpu.enumerate().await.unwrap().iter().zip(gpu.stats().await.unwrap()) {
        println!("{device:?}\n{stats:?}");
    }
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        gpu.stats().await.unwrap();
    }
    println!("a round takes {:?}", begun.elapsed() / 100);
    assert!(report.holds(), "{report}");
}
