//! The harness's hosts without an engine: that nothing of what runs there stays, and that what is left there is seen.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use host_tests::{
    oci::{OciHost, on_own_host},
    service::Service,
};

use crate::traces::{Holder, no_trace, test_engine, traces};

/// Fails unless there are supervisors, and containers, whose processes are in control groups.
fn check_runs(directory: &Path, world: &Path) -> Result<()> {
    let (traces, members) = (traces(directory), members(world));
    let runs = traces.iter().any(|trace| trace.starts_with("/sys/fs/cgroup/"))
        && members.iter().any(|name| name.starts_with("host-service:"));
    ensure!(runs, "nothing runs: {traces:?}, {members:?}");
    Ok(())
}

/// The names of the processes in a PID namespace, those of namespaces inside it aside.
fn members(world: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let inside = processes.filter(|path| fs::read_link(path.join("ns/pid")).is_ok_and(|link| link == world));
    inside
        .filter_map(|path| Some(fs::read_to_string(path.join("comm")).ok()?.trim_end().to_owned()))
        .collect()
}

#[tokio::test]
async fn leaves_nothing_when_dropped_with_all_that_runs() -> Result<()> {
    let host = OciHost::scratch().await?;
    let directory = host.world().directory().to_owned();
    let service = Service::on(&host).start().await?;
    service.spin_up("running").await?;
    drop(service);
    let world = fs::read_link(format!("/proc/{}/ns/pid", host.world().first()))?;
    check_runs(&directory, &world)?;
    drop(host);
    assert_eq!((traces(&directory), members(&world)), (Vec::new(), Vec::new()));
    Ok(())
}

#[tokio::test]
async fn leaves_nothing_when_its_user_is_killed_with_all_that_runs() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let mut user = Holder::start(&mut test_engine("oci", temporary.path()))?;
    let directory = PathBuf::from(user.line()?);
    let first = fs::read_to_string(directory.join("world"))?;
    let world = fs::read_link(format!("/proc/{}/ns/pid", first.trim_end()))?;
    check_runs(&directory, &world)?;
    drop(user);
    no_trace(&directory).await?;
    assert_eq!(members(&world), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn is_untouched_only_when_nothing_of_any_kind_is_left() -> Result<()> {
    let host = OciHost::scratch().await?;
    host.assert_untouched().await?;
    let service = Service::on(&host).start().await?;
    service.spin_up("touching").await?;
    let left = host.leftovers()?.to_string();
    for kind in [
        "file ",
        "process host-service",
        "process test-mandelbox",
        "interface hs",
        "ip route show table all: ",
        "nft list ruleset: table inet host-service-",
        "forwarding 1",
        "control group ",
    ] {
        ensure!(left.contains(kind), "no {kind:?} in: {left}");
    }
    service.end_cleanly().await?;
    host.assert_untouched().await?;
    let entrance = host.world().entrance()?;
    let mut mount = entrance.command("mount");
    mount.args(["-t", "tmpfs", "forgotten", "/mnt"]);
    ensure!(entrance.output(&mut mount)?.status.success());
    assert_eq!(host.leftovers()?.to_string(), "mount /mnt");
    Ok(())
}

#[tokio::test]
async fn a_test_that_fails_inside_fails() {
    let outcome = on_own_host("oci::a_test_that_fails_inside_fails", async |_| panic!("as it has to")).await;
    let error = outcome.expect_err("a success");
    assert!(error.to_string().contains("ended with"), "{error:#}");
}

#[tokio::test]
async fn a_test_that_is_not_there_inside_fails() {
    let error = on_own_host("no::such", async |_| ()).await.expect_err("a success");
    assert!(error.to_string().contains("there is no test"), "{error:#}");
}

#[tokio::test]
async fn what_a_test_forgets_inside_fails_it() {
    let forget = async |_: &Path| {
        let added = Command::new("ip").args(["link", "add", "hs0", "type", "veth"]).status();
        assert!(added.expect("ip").success());
    };
    let outcome = on_own_host("oci::what_a_test_forgets_inside_fails_it", forget).await;
    if std::env::var_os("HOST_TESTS_INSIDE").is_none() {
        let error = outcome.expect_err("a success");
        assert!(error.to_string().contains("interface hs0"), "{error:#}");
    }
}
