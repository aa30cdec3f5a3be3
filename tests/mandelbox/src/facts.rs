//! What the mandelbox knows about itself, as it stands when asked.

use std::env;
use std::fs;
use std::io::{self, IsTerminal};

use crate::json::Json;
use crate::kernel::{self, Status};
use crate::mappings::Mappings;

/// The mandelbox's id, or the host name when it was given none.
pub(crate) fn id() -> String {
    variable("MANDELBOX_ID_VARIABLE", "FRACTAL_MANDELBOX_ID")
        .or_else(hostname)
        .unwrap_or_else(|| "nobody".into())
}

/// Everything, for `GET /facts.json`.
pub(crate) fn all(mappings: &Mappings) -> Json {
    let mut members = given(mappings);
    members.extend(confinement());
    members.extend(limits());
    Json::object(members)
}

fn given(mappings: &Mappings) -> Vec<(&'static str, Json)> {
    let aes_key = variable("MANDELBOX_KEY_VARIABLE", "FRACTAL_AES_KEY");
    let is_key = aes_key.as_deref().is_some_and(is_32_hex_digits);
    let ports = mappings.host_ports().into_iter().map(|(name, port)| (name, Json::from(port)));
    vec![
        ("id", id().into()),
        ("hostname", hostname().into()),
        ("host_ports", Json::object(ports)),
        ("tty", mappings.number("tty").into()),
        ("gpu_index", mappings.number("gpu_index").into()),
        ("timeout_seconds", mappings.number("timeout").into()),
        ("config_json", mappings.text("config.json").into()),
        ("aes_key", aes_key.into()),
        ("aes_key_is_32_hex_digits", is_key.into()),
        ("env_names", env_names().into()),
        ("nvidia_visible_devices", env::var("NVIDIA_VISIBLE_DEVICES").ok().into()),
        ("stdin_is_tty", io::stdin().is_terminal().into()),
    ]
}

fn confinement() -> Vec<(&'static str, Json)> {
    let status = Status::read();
    vec![
        ("pid", std::process::id().into()),
        ("uid", status.number("Uid").into()),
        ("gid", status.number("Gid").into()),
        ("cap_eff", status.word("CapEff").into()),
        ("cap_bnd", status.word("CapBnd").into()),
        ("no_new_privs", status.number("NoNewPrivs").into()),
        ("seccomp", status.number("Seccomp").into()),
        ("apparmor", first_line("/proc/self/attr/current").into()),
    ]
}

fn limits() -> Vec<(&'static str, Json)> {
    vec![
        ("memory_limit_bytes", memory_limit_bytes().into()),
        ("pids_limit", kernel::cgroup_value("pids", "pids.max", "pids.max").into()),
        ("cpu_shares", kernel::cgroup_value("cpu", "cpu.shares", "").into()),
        ("cpu_weight", kernel::cgroup_value("", "", "cpu.weight").into()),
        ("mounts", kernel::mounts().into()),
        ("devices", kernel::devices().into()),
    ]
}

/// The memory limit, if there is one to be seen.
pub(crate) fn memory_limit_bytes() -> Option<i64> {
    kernel::cgroup_value("memory", "memory.limit_in_bytes", "memory.max")
}

/// The value of the variable whose name another variable may say.
fn variable(named_by: &str, default_name: &str) -> Option<String> {
    let name = env::var(named_by).unwrap_or_else(|_| default_name.to_owned());
    env::var(name).ok()
}

fn hostname() -> Option<String> {
    first_line("/proc/sys/kernel/hostname")
}

fn first_line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.trim_end_matches('\0').lines().next().map(str::to_owned)
}

fn env_names() -> Vec<String> {
    let mut names: Vec<String> =
        env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_32_hex_digits(key: &str) -> bool {
    key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit())
}
