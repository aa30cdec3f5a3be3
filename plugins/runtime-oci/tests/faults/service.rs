//! A service that ends, in good order or not, and the one that comes after it.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use host_core::{
    ErrorKind,
    runtime::{
        ContainerChange, ContainerSpec, ContainerState, Exit, Limits, Network, PortMapping, Protocol,
        Runtime, Selector,
    },
};
use nix::sys::signal::{Signal, kill};
use runtime_oci::OciRuntime;

use crate::{
    told::{events, follow, log, next_exit, tail, text, until},
    visits::Visits,
    world::{
        LONG, MANDELBOX, TOOLS, World, bind, eventually, exit, holder, named, seen, spec, start, within,
    },
};

/// Where a service in a process of its own works.
const DIRECTORY: &str = "OCI_FAULTS_DIRECTORY";
const CGROUP: &str = "OCI_FAULTS_CGROUP";
const PORT: u16 = 31_000;

/// Serves on a published port.
fn serving(world: &World) -> ContainerSpec {
    let files = world.path("files");
    fs::create_dir_all(&files).unwrap();
    fs::write(files.join(".ready"), "").unwrap();
    let mut spec = spec("serving", MANDELBOX);
    spec.network = Network::Bridge;
    let host_ip = Ipv4Addr::LOCALHOST.into();
    spec.ports = vec![PortMapping { host_ip, host: PORT, container: 32262, protocol: Protocol::Tcp }];
    spec.mounts = vec![bind(&files, "/fractal/resourceMappings")];
    spec
}

/// Counts for ever.
fn counting(world: &World) -> ContainerSpec {
    world.shell(
        "counting",
        "trap 'echo asked; exit 6' TERM; i=0; while :; do i=$((i+1)); echo count $i; sleep 0.05; done",
    )
}

/// What this program does when it is executed to be the service that is going to be killed.
#[tokio::test]
async fn as_a_process_of_its_own() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let world = World::at(directory.into(), std::env::var(CGROUP).unwrap().into());
    let runtime = world.with_images().await;
    start(&runtime, &serving(&world)).await;
    start(&runtime, &counting(&world)).await;
    runtime.create(&world.shell("waiting", "exit 8")).await.unwrap();
    fs::write(world.path("ready"), "").unwrap();
    std::future::pending().await
}

/// Ends with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn service(world: &World) -> Service {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--exact", "service::as_a_process_of_its_own", "--test-threads=1"]);
    command.env(DIRECTORY, world.path("")).env(CGROUP, &world.config.cgroup_parent).stdout(Stdio::null());
    let service = Service(command.spawn().unwrap());
    let ready = world.path("ready");
    eventually("the service is there", || ready.exists().then_some(()).ok_or_else(|| "not yet".to_owned()))
        .await;
    service
}

#[tokio::test]
async fn one_that_is_killed_leaves_its_containers_to_the_next() {
    let world = World::new();
    let before = service(&world).await;
    let visits = Visits::to(PORT).await;
    drop(before);
    let counted = || fs::read_to_string(world.config.root.join(of(&world, "counting")).join("log")).unwrap();
    let then = counted().len();
    eventually("it counts on", || if counted().len() > then { Ok(()) } else { Err(counted()) }).await;

    let runtime = world.open().await;
    let mut events = events(&runtime).await;
    let found = runtime.list(&Selector::default()).await.unwrap();
    let mut states: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.state.clone())).collect();
    states.sort_by_key(|(name, _)| *name);
    use ContainerState::{Created, Running};
    assert_eq!(states, [("counting", Running), ("serving", Running), ("waiting", Created)]);
    assert!(found.iter().all(|one| one.labels["test"] == one.name), "{found:?}");
    assert!(log(&runtime, "counting").await.starts_with("count 1\ncount 2\n"));
    let mut followed = follow(&runtime, "counting").await;
    until(&mut followed, "count 3\n").await;

    runtime.start(&named("waiting")).await.unwrap();
    let (end, told) = next_exit(&mut events).await;
    assert_eq!((end.code, told), (Some(8), vec![ContainerChange::Started]));
    runtime.stop(&named("counting"), LONG).await.unwrap();
    assert_eq!(next_exit(&mut events).await.0, Exit { code: Some(6), oom: false });
    assert!(text(followed).await.ends_with("asked\n"));
    assert_eq!(tail(&runtime, "counting", 1).await, "asked\n");
    visits.all_succeeded().await;
    end_all(&world, runtime).await;
}

/// The directories of a container, from the root and from the state.
fn of(world: &World, name: &str) -> PathBuf {
    let says = format!("\"name\":\"{name}\"");
    let described = |path: &PathBuf| {
        fs::read_to_string(path.join("container.json")).is_ok_and(|text| text.contains(&says))
    };
    let found = world.containers().into_iter().find(described).unwrap_or_else(|| panic!("{name} is nowhere"));
    PathBuf::from("containers").join(found.file_name().unwrap())
}

async fn end_all(world: &World, runtime: OciRuntime) {
    for container in runtime.list(&Selector::default()).await.unwrap() {
        runtime.remove(&container.id.into()).await.unwrap();
    }
    world.is_clean().await;
    runtime.close().await.unwrap();
    world.is_untouched().await;
}

#[tokio::test]
async fn one_that_closes_lets_its_containers_run_and_be_reached() {
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &serving(&world)).await;
    let visits = Visits::to(PORT).await;
    runtime.close().await.unwrap();
    drop(runtime);
    let again = world.open().await;
    assert_eq!(seen(&again, "serving").await.state, ContainerState::Running);
    visits.all_succeeded().await;
    again.remove(&named("serving")).await.unwrap();
    // The port is free again, and so is the name.
    start(&again, &serving(&world)).await;
    Visits::to(PORT).await.all_succeeded().await;
    end_all(&world, again).await;
}

/// Waits for the test's word.
fn told_to(world: &World, name: &str, then: &str) -> ContainerSpec {
    let words = world.path("words");
    fs::create_dir_all(&words).unwrap();
    let mut spec = world.shell(name, &format!("while [ ! -e /words/go ]; do sleep 0.05; done; {then}"));
    spec.mounts.push(bind(&words, "/words"));
    spec
}

#[tokio::test]
async fn what_ended_while_there_was_none_is_told_as_it_was() {
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &told_to(&world, "coded", "echo last words; exit 7")).await;
    let mut hungry = told_to(&world, "hungry", "exec perl -e '$x = \"x\" x (1 << 28)'");
    hungry.limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
    start(&runtime, &hungry).await;
    drop(runtime);
    fs::write(world.path("words/go"), "").unwrap();
    let supervisors = || world.containers().iter().filter_map(|path| holder(path)).count();
    eventually("both end", || if supervisors() == 0 { Ok(()) } else { Err(supervisors().to_string()) }).await;

    let runtime = world.open().await;
    assert_eq!(exit(&runtime, "coded").await, Exit { code: Some(7), oom: false });
    assert_eq!(exit(&runtime, "hungry").await, Exit { code: Some(137), oom: true });
    let followed = follow(&runtime, "coded").await;
    assert_eq!(text(followed).await, "last words\n");
    end_all(&world, runtime).await;
}

#[tokio::test]
async fn a_directory_that_describes_nothing_is_cleaned_up() {
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &world.shell("undescribed", "sleep 1000")).await;
    drop(runtime);
    let container = world.container();
    fs::remove_file(container.join("container.json")).unwrap();
    for (place, id) in [
        (&world.config.root, "0123456789abcdef0123456789abcdef"),
        (&world.state(), "fedcba9876543210fedcba9876543210"),
    ] {
        fs::create_dir(place.join("containers").join(id)).unwrap();
    }
    let runtime = world.open().await;
    assert_eq!(runtime.list(&Selector::default()).await.unwrap(), []);
    world.is_clean().await;
    end_all(&world, runtime).await;
}

#[tokio::test]
async fn a_description_cut_short_does_not_keep_the_service_from_opening() {
    let world = World::new();
    let runtime = world.with_images().await;
    runtime.create(&world.shell("cut", "true")).await.unwrap();
    drop(runtime);
    let described = world.container().join("container.json");
    let whole = fs::read(&described).unwrap();
    fs::write(&described, &whole[..whole.len() / 2]).unwrap();
    let runtime = world.open().await;
    world.is_clean().await;
    end_all(&world, runtime).await;
}

#[tokio::test]
async fn after_a_reboot_everything_has_ended_and_nobody_knows_how() {
    lost(true).await;
}

#[tokio::test]
async fn what_lost_its_supervisor_while_there_was_no_service_is_ended_by_the_next() {
    lost(false).await;
}

#[tokio::test]
async fn after_a_reboot_that_forgot_what_was_in_memory_nothing_is_left() {
    let world = World::new();
    let runtime = world.with_images().await;
    let mut spec = world.shell("forgotten", "echo written >/file; sleep 1000");
    spec.network = Network::Bridge;
    start(&runtime, &spec).await;
    drop(runtime);
    world.kill_everything().await;
    fs::remove_dir_all(world.state()).unwrap();
    let runtime = world.open().await;
    assert_eq!(runtime.list(&Selector::default()).await.unwrap(), []);
    start(&runtime, &spec).await;
    end_all(&world, runtime).await;
}

async fn lost(all_processes: bool) {
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &world.shell("running", "echo begun; exec sleep 1000")).await;
    runtime.create(&world.shell("created", "sleep 1000")).await.unwrap();
    drop(runtime);
    for container in world.containers() {
        kill(holder(&container).unwrap(), Signal::SIGKILL).unwrap();
    }
    if all_processes {
        world.kill_everything().await;
    }
    let look = OciRuntime::look(world.config.clone()).await.unwrap();
    let ended = ContainerState::Exited(Exit::default());
    for name in ["running", "created"] {
        eventually(name, || {
            world
                .containers()
                .iter()
                .all(|path| holder(path).is_none())
                .then_some(())
                .ok_or_else(|| "supervised".to_owned())
        })
        .await;
        assert_eq!(seen(&look, name).await.state, ended);
    }
    let runtime = within(LONG, "opening", world.open()).await;
    for name in ["running", "created"] {
        assert_eq!(seen(&runtime, name).await.state, ended, "{name}");
    }
    assert_eq!(world.processes(), Vec::<String>::new());
    let error = runtime.create(&world.shell("running", "true")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    runtime.remove(&named("running")).await.unwrap();
    start(&runtime, &world.shell("running", "exit 3")).await;
    assert_eq!(exit(&runtime, "running").await.code, Some(3));
    end_all(&world, runtime).await;
}

#[tokio::test]
async fn a_second_one_is_refused_and_a_tool_only_looks() {
    let world = World::new();
    let runtime = world.with_images().await;
    start(&runtime, &counting(&world)).await;
    let error = world.try_open().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(world.config.root.to_str().unwrap()), "{error}");

    let tool = OciRuntime::look(world.config.clone()).await.unwrap();
    assert_eq!(seen(&tool, "counting").await, seen(&runtime, "counting").await);
    let listed = tool.list(&Selector::label("test", "counting")).await.unwrap();
    assert_eq!(listed, runtime.list(&Selector::default()).await.unwrap());
    until(&mut follow(&runtime, "counting").await, "count 1\n").await;
    assert!(log(&tool, "counting").await.starts_with("count 1\n"));
    let other = crate::image::Image::new("test/other:1", crate::world::tools_layer());
    world.load(&tool, other).await;
    let image = "test/other:1".parse().unwrap();
    assert_eq!(runtime.image(&image).await.unwrap(), tool.image(&image).await.unwrap());
    assert!(runtime.image(&image).await.unwrap().is_some());
    tool.tag_image(&image, &"test/another:1".parse().unwrap()).await.unwrap();
    let spec = spec("tools", TOOLS);
    let name = named("counting");
    for refused in [
        tool.create(&spec).await.map(drop),
        tool.start(&name).await,
        tool.stop(&name, Duration::ZERO).await,
        tool.remove(&name).await,
        tool.events(&Selector::default()).await.map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    tool.close().await.unwrap();
    assert_eq!(seen(&runtime, "counting").await.state, ContainerState::Running);
    end_all(&world, runtime).await;
}
