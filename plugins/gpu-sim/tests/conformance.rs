//! Runs what every `Gpu` must do, on healthy devices and on broken ones.
#![cfg(test)]

use async_trait::async_trait;
use conformance::gpu::{Bench, behaviours, fault_behaviours};
use gpu_sim::{Config, SimGpu};
use host_core::gpu::Gpu;

struct Simulated(SimGpu);

#[async_trait]
impl Bench for Simulated {
    fn gpu(&self) -> &dyn Gpu {
        &self.0
    }

    async fn sicken(&self, uuid: &str) {
        self.0.make_unhealthy(uuid, "XID 79").unwrap();
    }

    async fn lose(&self, uuid: &str) {
        self.0.lose(uuid).unwrap();
    }

    async fn hang(&self) {
        self.0.hang_calls();
    }

    async fn mend(&self) {
        self.0.answer_calls();
        for (uuid, _) in self.0.health().await.unwrap() {
            self.0.recover(&uuid).unwrap();
        }
    }
}

#[tokio::test]
async fn it_does_what_every_gpu_must_do() {
    let gpu = SimGpu::new(Config::new(3, 7).unwrap());
    let report = conformance::report::run("gpu-sim", &gpu as &dyn Gpu, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}

#[tokio::test(start_paused = true)]
async fn it_breaks_and_mends_as_every_gpu_must() {
    let bench = Simulated(SimGpu::new(Config::default()));
    let report = conformance::report::run("gpu-sim", &bench as &dyn Bench, &fault_behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}
