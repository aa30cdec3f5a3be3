//! GPUs as mandelboxes see them: NVIDIA's bindings over a driver that a file describes, and nodes that every machine has.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use host_tests::{
    engine::Engine,
    ground::Ground,
    oci::OciHost,
    service::{Builder, Service},
    wait::until,
};
use nvml_stand_in::{Presence, Scenario, StandIn};
use serde_json::{Value, json};

use crate::SOON;

/// What stands for `/dev/nvidia0` and the following, and its numbers.
const NODES: [(&str, &str); 4] =
    [("/dev/null", "1 3"), ("/dev/zero", "1 5"), ("/dev/full", "1 7"), ("/dev/random", "1 8")];

/// Four GPUs, named by places in another order than the driver's.
const MISNAMED: &[(&str, &[usize])] =
    &[("all", &[0, 1, 2, 3]), ("0", &[3]), ("1", &[2]), ("2", &[1]), ("3", &[0])];

/// Describes devices, by name and nodes, in a directory.
fn describe(directory: &Path, devices: &[(&str, &[usize])]) -> Result<()> {
    let node = |minor: &usize| json!({ "path": format!("/dev/nvidia{minor}"), "hostPath": NODES[*minor].0 });
    let device = |(name, minors): &(&str, &[usize])| {
        let nodes: Vec<_> = minors.iter().map(node).collect();
        json!({ "name": name, "containerEdits": { "deviceNodes": nodes } })
    };
    let devices: Vec<_> = devices.iter().map(device).collect();
    let everybodys = json!({ "deviceNodes": [{ "path": "/dev/nvidiactl", "hostPath": "/dev/null" }] });
    let text = json!({
        // The latest that Podman 4.3 knows.
        "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": everybodys,
    });
    fs::create_dir_all(directory)?;
    Ok(fs::write(directory.join("nvidia.json"), text.to_string())?)
}

/// A list of one path, as TOML has it.
fn list(path: &Path) -> String {
    format!("[\"{}\"]", path.display())
}

/// A service on the driver's GPUs, which looks for descriptions of them in `cdi`.
fn service(ground: &dyn Ground, driver: &StandIn, cdi: &Path) -> Builder {
    Service::on(ground)
        .set("gpu.plugin=nvml")
        .set(format!("gpu.nvml.library={}", driver.library().display()))
        .set("gpu.nvml.required=true")
        .set(format!("gpu.nvml.cdi={}", list(cdi)))
        .set("gpu.poll=100ms")
}

/// The same with containers by `oci`.
fn on_oci(host: &OciHost, driver: &StandIn) -> Result<Builder> {
    let cdi = driver.directory().join("cdi");
    describe(&cdi, MISNAMED)?;
    Ok(service(host, driver, &cdi).set(format!("runtime.oci.cdi={}", list(&cdi))))
}

/// The nodes of GPUs that a mandelbox has.
fn nodes(facts: &Value) -> Vec<&str> {
    let all = facts["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let paths =
        all.iter().filter(|device| device["opens"] == true).filter_map(|device| device["path"].as_str());
    paths.filter(|path| path.starts_with("/dev/nvidia") && *path != "/dev/nvidiactl").collect()
}

/// The UUID of a mandelbox's GPU.
fn gpu_of(service: &Service, id: &str) -> Result<String> {
    let all = service.mandelboxes()?;
    let own = all.iter().find(|mandelbox| mandelbox["id"] == id).context("no such mandelbox")?;
    Ok(own["gpu"].as_str().context("no GPU")?.to_owned())
}

/// Of four GPUs each of four mandelboxes gets its own and no other.
async fn isolates(builder: Builder, scenario: &Scenario) -> Result<()> {
    let service = builder.start().await?;
    let ids = ["one", "two", "three", "four"];
    let answers = try_join_all(ids.iter().map(|id| service.spin_up(id))).await?;
    let mut seen = BTreeSet::new();
    for (id, answer) in ids.iter().zip(&answers) {
        let (facts, uuid) = (service.facts(answer).await?, gpu_of(&service, id)?);
        let gpu = scenario.gpus.iter().find(|gpu| gpu.uuid == uuid).context("an unknown GPU")?;
        assert_eq!(facts["nvidia_visible_devices"], gpu.uuid.as_str());
        assert_eq!(nodes(&facts), [format!("/dev/nvidia{}", gpu.minor)], "{facts}");
        seen.insert(uuid);
    }
    assert_eq!(seen.len(), 4, "one each");
    service.end_cleanly().await
}

#[tokio::test]
async fn of_four_gpus_a_mandelbox_gets_its_own_on_oci() -> Result<()> {
    let (host, scenario) = (OciHost::scratch().await?, Scenario::of(4));
    let driver = StandIn::new(&scenario)?;
    isolates(on_oci(&host, &driver)?, &scenario).await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn of_four_gpus_a_mandelbox_gets_its_own_with_crun() -> Result<()> {
    let (host, scenario) = (OciHost::with_binary("crun").await?, Scenario::of(4));
    let driver = StandIn::new(&scenario)?;
    isolates(on_oci(&host, &driver)?, &scenario).await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn of_four_gpus_a_mandelbox_gets_its_own_on_podman() -> Result<()> {
    let (engine, scenario) = (Engine::scratch_podman().await?, Scenario::of(4));
    let driver = StandIn::new(&scenario)?;
    // The engine's /etc is its own.
    let cdi = engine.seen_outside(Path::new("/etc/cdi"));
    describe(&cdi, MISNAMED)?;
    let builder = service(&engine, &driver, &cdi).set(format!("runtime.podman.cdi={}", list(&cdi)));
    isolates(builder, &scenario).await?;
    engine.assert_clean().await
}

/// By device requests, as NVIDIA's toolkit answers them: this Docker may know nothing of CDI.
#[tokio::test]
async fn of_four_gpus_a_mandelbox_gets_its_own_on_docker() -> Result<()> {
    let (engine, scenario) = (Engine::scratch().await?, Scenario::of(4));
    let driver = StandIn::new(&scenario)?;
    let gpus = scenario.gpus.iter().zip(NODES);
    let gpus: String =
        gpus.map(|(gpu, (_, numbers))| format!("{} nvidia{} {numbers}\n", gpu.uuid, gpu.minor)).collect();
    fs::write(engine.directory().join("gpus"), gpus)?;
    isolates(service(&engine, &driver, Path::new("/nonexistent/cdi")), &scenario).await?;
    engine.assert_clean().await
}

/// Simulated containers have no devices, but leases.
#[tokio::test]
async fn of_four_gpus_a_mandelbox_leases_its_own_on_sim() -> Result<()> {
    let scenario = Scenario::of(4);
    let driver = StandIn::new(&scenario)?;
    let service = Service::with("[runtime]\nplugin = \"sim\"\n")
        .set("gpu.plugin=nvml")
        .set(format!("gpu.nvml.library={}", driver.library().display()))
        .start()
        .await?;
    let ids = ["one", "two", "three", "four"];
    try_join_all(ids.iter().map(|id| service.spin_up(id))).await?;
    let leased: BTreeSet<_> = ids.iter().map(|id| gpu_of(&service, id)).collect::<Result<_>>()?;
    assert_eq!(leased, scenario.gpus.iter().map(|gpu| gpu.uuid.clone()).collect());
    service.end_cleanly().await
}

#[tokio::test]
async fn operators_are_told_of_every_gpu() -> Result<()> {
    let (host, scenario) = (OciHost::scratch().await?, Scenario::of(4));
    let driver = StandIn::new(&scenario)?;
    let service = on_oci(&host, &driver)?.start().await?;
    service.spin_up("one").await?;
    let status = service.status()?;
    assert_eq!((&status["capacity"], &status["leases"]["gpu_slots"]["held"]), (&json!(12), &json!(1)));
    let told = &status["gpus"][1];
    assert_eq!((&told["uuid"], &told["encoder_sessions"]), (&json!(scenario.gpus[1].uuid), &json!(2)));
    assert_eq!((&told["memory_free_bytes"], &told["power_mw"]), (&json!(23_u64 << 30), &json!(61_500)));
    let (_, metrics) = service.probe("/metrics").await?;
    let figure = format!("host_service_gpu_temperature_celsius{{uuid=\"{}\"}} 41", scenario.gpus[2].uuid);
    ensure!(metrics.contains(&figure), "{metrics}");
    service.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn a_gpu_lost_under_load_ends_nobody_and_gets_nobody_until_it_is_back() -> Result<()> {
    let (host, scenario) = (OciHost::scratch().await?, Scenario::of(2));
    let lost = scenario.gpus[1].uuid.clone();
    let driver = StandIn::new(&scenario)?;
    let service = on_oci(&host, &driver)?.start().await?;
    let ids = ["one", "two"];
    let answers = try_join_all(ids.iter().map(|id| service.spin_up(id))).await?;
    let is_well = async |well: bool| {
        let told = async || {
            let status = service.status().ok()?;
            (status["gpus"][1]["unhealthy"].is_null() == well).then_some(())
        };
        until("health of the GPU", SOON, told).await.with_context(|| service.log())
    };

    driver.change(|scenario| scenario.gpu(&lost).presence = Presence::Lost)?;
    is_well(false).await?;
    let late = try_join_all(["three", "four"].iter().map(|id| service.spin_up(id))).await?;
    for id in ["three", "four"] {
        assert_ne!(gpu_of(&service, id)?, lost);
    }
    for answer in answers.iter().chain(&late) {
        service.facts(answer).await.context("a session goes on")?;
    }
    let full = service.ask("five", "test/mandelbox").await?;
    ensure!(full.status >= 500, "the only GPU that is left is full: {full:?}");
    let log = service.log();
    ensure!(log.contains("gets no new mandelboxes"), "{log}");

    driver.change(|scenario| scenario.gpu(&lost).presence = Presence::Present)?;
    is_well(true).await?;
    service.spin_up("six").await?;
    assert_eq!(gpu_of(&service, "six")?, lost);
    assert_eq!(service.mandelboxes()?.len(), 5);
    service.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn a_driver_that_hangs_stalls_no_session() -> Result<()> {
    let (host, scenario) = (OciHost::scratch().await?, Scenario::of(2));
    let driver = StandIn::new(&scenario)?;
    let service = on_oci(&host, &driver)?.start().await?;
    driver.change(|scenario| scenario.gpus[0].hang = true)?;
    let told = async || {
        let status = service.status().ok()?;
        let reason = status["gpus"][0]["unhealthy"].as_str()?;
        reason.contains("has not answered").then_some(())
    };
    until("notice of the hang", SOON, told).await.with_context(|| service.log())?;
    let answer = service.spin_up("one").await?;
    assert_eq!(gpu_of(&service, "one")?, scenario.gpus[1].uuid);
    service.facts(&answer).await?;
    // Also while it hangs.
    service.end_cleanly().await?;
    host.assert_untouched().await
}

#[tokio::test]
async fn a_mandelbox_that_is_given_another_gpu_is_ended() -> Result<()> {
    let (host, scenario) = (OciHost::scratch().await?, Scenario::of(1));
    let driver = StandIn::new(&scenario)?;
    // What is given is not what was found, as with a description that is replaced meanwhile.
    let given: PathBuf = driver.directory().join("given");
    let service = on_oci(&host, &driver)?.set(format!("runtime.oci.cdi={}", list(&given))).start().await?;
    for (id, minors, told) in
        [("greedy", &[0, 2][..], "/dev has nvidia0 nvidia2"), ("wrong", &[2][..], "/dev has nvidia2")]
    {
        describe(&given, &[("3", minors)])?;
        let answer = service.ask(id, "test/mandelbox").await?;
        assert_eq!(answer.status, 500, "{answer:?}");
        service.idle().await?;
        let log = service.log();
        ensure!(log.contains(told), "{answer:?}\n{log}");
    }
    service.end_cleanly().await?;
    host.assert_untouched().await
}
