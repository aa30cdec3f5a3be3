//! What every `Runtime` must do, as far as it concerns a simulated one.
#![cfg(test)]

use async_trait::async_trait;
use conformance::{
    Verdict,
    runtime::{Fixture, run},
    table::keep,
};
use host_core::{
    ImageRef,
    runtime::{Feature, Runtime},
};
use runtime_sim::{Config, Containers, Sim};

const IMAGE: &str = "test/mandelbox:current-build";
const PULLABLE: &str = "test/pullable:current-build";

struct Simulated(Sim);

#[async_trait]
impl Fixture for Simulated {
    fn runtime(&self) -> &dyn Runtime {
        &self.0
    }

    fn image(&self) -> ImageRef {
        IMAGE.parse().unwrap()
    }

    fn why_not(&self, _: Feature) -> Option<&'static str> {
        Some("its containers are no processes")
    }

    fn pullable(&self) -> Option<ImageRef> {
        Some(PULLABLE.parse().unwrap())
    }

    async fn restart(&self) -> Verdict {
        self.0.script().restart(Containers::RunOn);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn it_does_what_every_runtime_must_do() {
    let sim = Sim::new(Config { images: Some(vec![IMAGE.parse().unwrap()]), ..Config::default() });
    sim.script().publish_image(&PULLABLE.parse().unwrap());
    let report = run("sim", &Simulated(sim)).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
    keep(&report).unwrap();
}
