//! Runs what every `PubSub` must do, over the control methods as the control plane.
#![cfg(test)]

use std::sync::Arc;

use async_trait::async_trait;
use conformance::pubsub::{ControlPlane, Instance, behaviours};
use host_core::{
    InstanceName, MandelboxId, PluginError,
    pubsub::{InstanceFacts, InstanceStatus, MandelboxRow, PubSub},
};
use pubsub_memory::MemoryPubSub;

#[derive(Debug)]
struct Memory(Arc<MemoryPubSub>);

#[async_trait]
impl ControlPlane for Memory {
    async fn connect(&self) -> Result<Arc<dyn PubSub>, PluginError> {
        Ok(Arc::clone(&self.0) as Arc<dyn PubSub>)
    }

    async fn insert_instance(
        &self,
        facts: &InstanceFacts,
        status: InstanceStatus,
    ) -> Result<(), PluginError> {
        self.0.insert_instance(facts.clone(), status);
        Ok(())
    }

    async fn set_instance_status(
        &self,
        instance: &InstanceName,
        status: InstanceStatus,
    ) -> Result<(), PluginError> {
        assert!(self.0.set_instance_status(instance, status), "there is no {instance}");
        Ok(())
    }

    async fn instance(&self, instance: &InstanceName) -> Result<Option<Instance>, PluginError> {
        let row = self.0.instance(instance);
        Ok(row.map(|row| {
            let facts = row.facts.unwrap();
            Instance { status: row.status, ip: facts.ip, heartbeat: row.heartbeat }
        }))
    }

    async fn delete_instance(&self, instance: &InstanceName) -> Result<(), PluginError> {
        self.0.delete_instance(instance);
        Ok(())
    }

    async fn insert_mandelbox(&self, instance: &InstanceName, row: &MandelboxRow) -> Result<(), PluginError> {
        self.0.put_mandelbox(instance, row.clone())
    }

    async fn mandelbox(&self, mandelbox: &MandelboxId) -> Result<Option<MandelboxRow>, PluginError> {
        Ok(self.0.mandelbox(mandelbox).map(|(_, row)| row))
    }

    async fn delete_mandelbox(&self, mandelbox: &MandelboxId) -> Result<(), PluginError> {
        self.0.delete_mandelbox(mandelbox);
        Ok(())
    }

    async fn cut(&self) -> Result<bool, PluginError> {
        self.0.disconnect();
        Ok(true)
    }
}

async fn run(name: &str, pubsub: MemoryPubSub) {
    let plane = Memory(Arc::new(pubsub));
    let report = conformance::report::run(name, &plane as &dyn ControlPlane, &behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_does_what_every_pubsub_must_do() {
    run("pubsub-memory", MemoryPubSub::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_does_so_with_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let pubsub = MemoryPubSub::open(&directory.path().join("state.json")).unwrap();
    run("pubsub-memory with a file", pubsub).await;
}
