//! What a person who looks is told of the engine.

use host_core::{chain, check::Check, runtime::Feature};

use crate::engine::Engine;

pub(crate) async fn examine(engine: &Engine) -> Vec<Check> {
    let support = &engine.support;
    let whose = if support.rootless { "a user's" } else { "root's" };
    let mut checks = vec![match engine.version().await {
        Ok(version) => Check::ok("podman", format!("{version}, {whose}, with {}", support.oci_runtime)),
        Err(error) => Check::fail("podman", chain(&error), "systemctl start podman.socket"),
    }];
    checks.push(match (support.limits(), support.rootless) {
        (true, _) => Check::ok("limits", "memory, processors and processes"),
        (false, true) => Check::warn(
            "limits",
            "the user's control group lacks controllers: mandelboxes with limits are refused",
            "systemctl set-property user@UID.service Delegate='cpu memory pids', or root's podman",
        ),
        (false, false) => Check::warn(
            "limits",
            "the kernel lacks control group controllers: mandelboxes with limits are refused",
            "boot with cgroup_enable=memory",
        ),
    });
    if !support.features().contains(&Feature::OomReport) {
        checks.push(Check::warn(
            "kills for memory",
            "are not told as such by this version",
            "podman 5 or later",
        ));
    }
    if support.log_files.is_none() {
        checks.push(Check::warn(
            "logs",
            "are not bounded by the host service: the log driver is no file",
            "bound the journal, or set log_driver = \"k8s-file\" in containers.conf",
        ));
    }
    checks
}
