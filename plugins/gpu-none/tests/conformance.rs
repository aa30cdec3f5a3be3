//! Runs what every `Gpu` must do.
#![cfg(test)]

use std::path::PathBuf;

use host_core::registry::{Context, Role};

#[tokio::test]
async fn it_does_what_every_gpu_must_do() {
    let context = Context { state_dir: PathBuf::new(), local: true, role: Role::Service };
    let plugin = gpu_none::plugin();
    assert_eq!(plugin.name(), "none");
    let gpu = plugin.build(&serde_json::Value::Null, context).await.unwrap();
    let report = conformance::report::run("gpu-none", gpu.as_ref(), &conformance::gpu::behaviours()).await;
    println!("{report}");
    assert!(report.holds(), "{report}");
    assert!(gpu.enumerate().await.unwrap().is_empty());
}

#[test]
fn a_key_is_refused() {
    let error = gpu_none::plugin().check(&serde_json::json!({"count": 1})).unwrap_err();
    assert!(error.message.contains("count"), "{error}");
}
