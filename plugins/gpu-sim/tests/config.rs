//! The section, the driver's faults and the clock, through the plugin as the host sees it.
#![cfg(test)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures::FutureExt;
use gpu_sim::{Config, SimGpu};
use host_core::{
    ErrorKind,
    gpu::{Gpu, GpuDevice},
    registry::{Context, Role},
};
use serde_json::{Value, json};

async fn build(section: &Value) -> Arc<dyn Gpu> {
    let context = Context { state_dir: PathBuf::new(), local: true, role: Role::Service };
    gpu_sim::plugin().build(section, context).await.unwrap()
}

async fn devices(section: Value) -> Vec<GpuDevice> {
    build(&section).await.enumerate().await.unwrap()
}

#[tokio::test]
async fn without_a_section_there_are_two_alike() {
    let devices = devices(Value::Null).await;
    let uuids: Vec<_> = devices.iter().map(|device| device.uuid.as_str()).collect();
    assert_eq!(uuids, ["GPU-sim-00000000-00", "GPU-sim-00000000-01"], "UUIDs are for ever");
    assert!(devices.iter().all(|device| device.memory_bytes == 24 << 30));
    assert_eq!(devices, self::devices(json!({})).await);
}

#[tokio::test]
async fn single_devices_can_differ() {
    let devices = devices(json!({
        "count": 3,
        "memory_bytes": 1000,
        "devices": [{"name": "Old card"}, {"uuid": "GPU-sim-b", "memory_bytes": 2000}],
    }))
    .await;
    let seen: Vec<_> = devices
        .iter()
        .map(|device| (device.name.as_str(), device.uuid.as_str(), device.memory_bytes))
        .collect();
    assert_eq!(
        seen,
        [
            ("Old card", "GPU-sim-00000000-00", 1000),
            ("Simulated GPU", "GPU-sim-b", 2000),
            ("Simulated GPU", "GPU-sim-00000000-02", 1000),
        ]
    );
}

#[tokio::test]
async fn as_many_as_are_listed() {
    assert_eq!(devices(json!({"devices": [{}, {}, {}]})).await.len(), 3);
    assert!(devices(json!({"count": 0})).await.is_empty());
}

#[test]
fn sections_that_cannot_be_are_refused_with_the_reason() {
    for (section, reason) in [
        (json!({"cuont": 1}), "unknown field `cuont`"),
        (json!({"count": -1}), "invalid value"),
        (json!({"count": 65}), "at most 64"),
        (json!({"count": 1, "devices": [{}, {}]}), "devices lists 2"),
        (json!({"devices": [{"uuid": "a"}, {"uuid": "a"}]}), "given to two devices"),
        (json!({"devices": [{"uuid": "a,b"}]}), "is not 1 to 96"),
        (json!({"memory_bytes": 0}), "is 0"),
    ] {
        let error = gpu_sim::plugin().check(&section).unwrap_err();
        assert!(error.message.contains(reason), "{section}: {error}");
    }
}

#[tokio::test]
async fn an_attachment_names_its_own_device_and_no_real_one() {
    for device in devices(Value::Null).await {
        let env = &device.attachment.env;
        assert_eq!(env[gpu_sim::DEVICE_VARIABLE], device.uuid);
        assert_eq!(env["NVIDIA_VISIBLE_DEVICES"], "void");
        assert!(device.attachment.cdi.is_empty() && device.attachment.devices.is_empty());
    }
}

#[tokio::test]
async fn people_see_the_devices_behind_a_lost_one_move_up() {
    let gpu = SimGpu::new(Config::new(3, 0).unwrap());
    let before = gpu.enumerate().await.unwrap();
    gpu.lose(&before[0].uuid).unwrap();
    let after = gpu.enumerate().await.unwrap();
    assert_eq!(after.len(), 2);
    assert_eq!((after[0].index, &after[0].uuid), (0, &before[1].uuid));
}

#[tokio::test]
async fn every_call_fails_until_told_otherwise() {
    let gpu = SimGpu::new(Config::default());
    gpu.fail_calls(ErrorKind::Unavailable);
    assert_eq!(gpu.enumerate().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(gpu.stats().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(gpu.health().await.unwrap_err().kind(), ErrorKind::Unavailable);
    gpu.answer_calls();
    assert_eq!(gpu.enumerate().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_hung_call_ends_as_the_driver_is_told_to() {
    let gpu = SimGpu::new(Config::default());
    gpu.hang_calls();
    let mut call = gpu.health();
    assert!((&mut call).now_or_never().is_none());
    gpu.fail_calls(ErrorKind::Timeout);
    assert_eq!(call.await.unwrap_err().kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn an_unknown_device_cannot_be_broken() {
    let gpu = SimGpu::new(Config::default());
    assert_eq!(gpu.lose("GPU-sim-x").unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn figures_move_with_time_and_repeat_with_the_seed() {
    let (one, same) = (SimGpu::new(Config::new(2, 5).unwrap()), SimGpu::new(Config::new(2, 5).unwrap()));
    let first = one.stats().await.unwrap();
    assert_eq!(first, same.stats().await.unwrap());
    assert_ne!(first[0].memory_free_bytes, first[1].memory_free_bytes, "devices do not move together");
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_ne!(first, one.stats().await.unwrap());
    assert_eq!(one.stats().await.unwrap(), same.stats().await.unwrap());
}
