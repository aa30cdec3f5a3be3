//! A runtime from a library does what every runtime must do, in the host's process and in one of its own.
#![cfg(test)]

mod world;

use std::sync::Arc;

use async_trait::async_trait;
use conformance::runtime::{Fixture, run};
use host_core::{
    ImageRef,
    runtime::{Feature, Runtime},
};
use serde_json::json;
use world::World;

const IMAGE: &str = "test/mandelbox:current-build";

struct Dynamic(Arc<dyn Runtime>);

#[async_trait]
impl Fixture for Dynamic {
    fn runtime(&self) -> &dyn Runtime {
        self.0.as_ref()
    }

    fn image(&self) -> ImageRef {
        IMAGE.parse().unwrap()
    }

    fn why_not(&self, _: Feature) -> Option<&'static str> {
        Some("its containers are no processes")
    }
}

async fn holds(isolation: &str) {
    let world = World::with("sim");
    let section = json!({ "isolation": isolation, "images": [IMAGE] });
    let sim = world.loader().runtime("sim").build(&section, World::context()).await.unwrap();
    let report = run("sim", &Dynamic(sim)).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}

#[tokio::test]
async fn the_simulated_runtime_in_process() {
    holds("in-process").await;
}

#[tokio::test]
async fn the_simulated_runtime_in_a_process_of_its_own() {
    holds("process").await;
}
