//! What a script can do to a simulation.
#![cfg(test)]

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use futures::{FutureExt, StreamExt};
use host_core::{
    ContainerName, ErrorKind,
    registry::{Context, Role},
    runtime::{
        ContainerChange, ContainerRef, ContainerSpec, ContainerState, Exit, Limits, Mount, Network,
        PortMapping, Propagation, Protocol, Runtime, RuntimeEvent, Security, Selector,
    },
};
use runtime_sim::{Config, Containers, Op, Sim};
use serde_json::json;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

fn sim() -> Sim {
    Sim::new(Config::default())
}

fn name(text: &str) -> ContainerName {
    text.parse().unwrap()
}

fn named(text: &str) -> ContainerRef {
    name(text).into()
}

fn spec(text: &str) -> ContainerSpec {
    ContainerSpec {
        name: name(text),
        image: "a/b:c".parse().unwrap(),
        command: Vec::new(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        terminal: false,
        network: Network::Bridge,
        ports: Vec::new(),
        mounts: Vec::new(),
        tmpfs: Vec::new(),
        shm_bytes: 0,
        devices: Vec::new(),
        gpu: None,
        security: Security::default(),
        limits: Limits::default(),
    }
}

fn port() -> PortMapping {
    PortMapping { host_ip: [0, 0, 0, 0].into(), host: 20_000, container: 32262, protocol: Protocol::Tcp }
}

async fn started(sim: &Sim, text: &str) {
    sim.create(&spec(text)).await.unwrap();
    sim.start(&named(text)).await.unwrap();
}

async fn state(sim: &Sim, text: &str) -> Option<ContainerState> {
    Some(sim.inspect(&named(text)).await.unwrap()?.state)
}

fn exited(code: i32) -> Option<ContainerState> {
    Some(ContainerState::Exited(Exit { code: Some(code), oom: false }))
}

#[tokio::test]
async fn only_the_nth_call_fails_and_it_has_no_effect() {
    let sim = sim();
    let script = sim.script();
    script.on(Op::Create).nth(2).fails(ErrorKind::Exhausted);
    for (text, expected) in [("one", None), ("two", Some(ErrorKind::Exhausted)), ("three", None)] {
        let created = sim.create(&spec(text)).await;
        assert_eq!(created.err().map(|error| error.kind()), expected, "{text}");
    }
    let names: Vec<_> = script.containers().into_iter().map(|container| container.name).collect();
    assert_eq!(names, ["one", "three"]);
    assert_eq!(script.calls(Op::Create), 3);
    assert_eq!(script.spec(&name("one")).unwrap().image.as_str(), "a/b:c");
}

#[tokio::test]
async fn a_fault_can_be_meant_for_one_container_and_taken_back() {
    let sim = sim();
    let script = sim.script();
    script.on(Op::Start).of(&name("unlucky")).fails(ErrorKind::Internal);
    let id = sim.create(&spec("unlucky")).await.unwrap();
    started(&sim, "lucky").await;
    // By whatever it is called.
    assert!(sim.start(&named("unlucky")).await.is_err());
    assert!(sim.start(&id.clone().into()).await.is_err());
    script.relent();
    sim.start(&id.into()).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_does_not_undo_the_effect() {
    let sim = sim();
    sim.script().on(Op::Create).answer_is_lost(ErrorKind::Unavailable);
    assert_eq!(sim.create(&spec("one")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(state(&sim, "one").await, Some(ContainerState::Created));
}

#[tokio::test(start_paused = true)]
async fn a_call_can_hang_before_or_after_its_effect() {
    let sim = sim();
    let script = sim.script();
    script.on(Op::Create).nth(1).hangs();
    script.on(Op::Create).nth(2).hangs_after_effect();
    for expected in [None, Some(ContainerState::Created)] {
        let hung = tokio::time::timeout(SECOND * 1000, sim.create(&spec("one"))).await;
        assert!(hung.is_err());
        assert_eq!(state(&sim, "one").await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_take_as_long_as_said_by_section_and_script() {
    let section = json!({ "delays": { "create": "2s" } });
    let sim = Sim::new(serde_json::from_value(section).unwrap());
    sim.script().on(Op::Create).takes(SECOND);
    let begun = Instant::now();
    sim.create(&spec("one")).await.unwrap();
    assert_eq!(begun.elapsed(), SECOND * 3);
}

#[tokio::test(start_paused = true)]
async fn containers_end_when_it_is_said() {
    let sim = sim();
    let script = sim.script();
    script.all_exit_after(SECOND * 5, 3);
    script.exits_after(&name("early"), SECOND, 4);
    started(&sim, "early").await;
    started(&sim, "late").await;
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(state(&sim, "early").await, exited(4));
    assert_eq!(state(&sim, "late").await, Some(ContainerState::Running));
    tokio::time::sleep(SECOND * 4).await;
    assert_eq!(state(&sim, "late").await, exited(3));

    started(&sim, "now").await;
    script.exit(&name("now"), 9);
    assert_eq!(state(&sim, "now").await, exited(9));
}

#[tokio::test]
async fn running_out_of_memory_and_a_strangers_removal_are_told() {
    let sim = sim();
    started(&sim, "one").await;
    let mut events = sim.events(&Selector::default()).await.unwrap();
    sim.script().run_out_of_memory(&name("one"));
    sim.script().remove(&name("one"));
    let exit = Exit { code: Some(137), oom: true };
    for expected in [ContainerChange::Oom, ContainerChange::Exited(exit), ContainerChange::Removed] {
        let Some(Some(Ok(RuntimeEvent::Container(event)))) = events.next().now_or_never() else {
            panic!("nothing was told instead of {expected:?}");
        };
        assert_eq!(event.change, expected);
    }
    assert_eq!(state(&sim, "one").await, None);
}

#[tokio::test]
async fn streams_are_cut_and_gaps_are_told() {
    let sim = sim();
    let mut events = sim.events(&Selector::default()).await.unwrap();
    sim.script().tell_gap();
    sim.script().cut_events();
    assert!(matches!(events.next().await, Some(Ok(RuntimeEvent::Gap))));
    assert_eq!(events.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_restart_does_to_containers_what_is_said() {
    for (containers, expected) in [
        (Containers::RunOn, Some(ContainerState::Running)),
        (Containers::Die, exited(137)),
        (Containers::Vanish, None),
    ] {
        let sim = sim();
        let script = sim.script();
        started(&sim, "one").await;
        let before = sim.started_at().await.unwrap();
        let mut events = sim.events(&Selector::default()).await.unwrap();
        script.go_down();
        assert!(events.next().await.unwrap().is_err());
        assert_eq!(sim.health().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(sim.list(&Selector::default()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        script.come_up(containers);
        assert_eq!(state(&sim, "one").await, expected, "{containers:?}");
        assert!(sim.started_at().await.unwrap() > before);
        assert!(events.next().await.is_none(), "the old stream told of the new engine");
    }
}

#[tokio::test]
async fn images_and_ports_can_be_missing() {
    let sim = sim();
    let script = sim.script();
    let image = "a/b:c".parse().unwrap();
    script.remove_image(&image);
    assert_eq!(sim.create(&spec("one")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(sim.pull(&image, &|_| ()).await.unwrap_err().kind(), ErrorKind::NotFound);
    script.publish_image(&image);
    sim.pull(&image, &|_| ()).await.unwrap();

    script.take_port(&port());
    sim.create(&ContainerSpec { ports: vec![port()], ..spec("one") }).await.unwrap();
    assert_eq!(sim.start(&named("one")).await.unwrap_err().kind(), ErrorKind::AddressInUse);
}

#[tokio::test(start_paused = true)]
async fn the_application_answers_the_host() {
    for (command, announced_after) in
        [("", Some(SECOND / 10)), ("slow-ready 3000", Some(SECOND * 4)), ("never-ready", None)]
    {
        let (sim, directory) = (sim(), tempfile::tempdir().unwrap());
        let announcement = directory.path().join("done_sleeping_until_X_clients");
        let mappings = Mount {
            source: directory.path().to_owned(),
            target: PathBuf::from("/fractal/resourceMappings"),
            read_only: false,
            propagation: Propagation::Private,
        };
        let command = command.split_whitespace().map(str::to_owned).collect();
        sim.create(&ContainerSpec { command, mounts: vec![mappings], ..spec("one") }).await.unwrap();
        sim.start(&named("one")).await.unwrap();
        tokio::time::sleep(SECOND * 60).await;
        assert!(!announcement.exists(), "it did not wait");

        fs::write(directory.path().join(".ready"), "").unwrap();
        tokio::time::sleep(SECOND / 100).await;
        let at_once = announcement.exists();
        tokio::time::sleep(announced_after.unwrap_or(SECOND * 60)).await;
        assert_eq!(announcement.exists(), announced_after.is_some());
        assert_eq!(at_once, announced_after == Some(SECOND / 10));
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_on_when_it_is_dropped() {
    let sim = sim();
    let script = sim.script();
    script.all_exit_after(SECOND, 0);
    started(&sim, "one").await;
    drop(sim);
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(script.containers()[0].state, ContainerState::Running);
}

#[tokio::test]
async fn the_plugin_is_built_from_its_section() {
    let plugin = runtime_sim::plugin();
    let context = Context { state_dir: PathBuf::new(), local: true, role: Role::Service };
    let section = json!({ "images": [] });
    let runtime = plugin.build(&section, context).await.unwrap();
    assert_eq!(runtime.create(&spec("one")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(plugin.check(&json!({ "image": [] })).is_err());
}
