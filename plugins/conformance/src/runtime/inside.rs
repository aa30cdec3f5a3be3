//! What a container's specification does, as the test mandelbox sees it from inside.

use std::{collections::BTreeSet, path::PathBuf};

use host_core::{
    ErrorKind,
    runtime::{Attachment, Capability, Device, EnvValue, Feature, Limits, Seccomp, Selector, Tmpfs},
};
use serde_json::Value;

use super::{
    Fixture,
    lifecycle::ensure_fails,
    needs,
    trial::{LABEL, MAPPINGS, Trial, bind, lacking},
};
use crate::{
    ensure,
    report::{Unmet, Verdict},
};

const ISOLATION: &[Feature] = &[Feature::Isolation];
const LIMITS: &[Feature] = &[Feature::Isolation, Feature::Limits];

/// Variables that engines add, and the image's own.
const USUAL_VARIABLES: [&str; 6] = ["PATH", "HOME", "HOSTNAME", "TERM", "container", "LANG"];

pub(super) async fn the_environment_is_exact(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    // The test mandelbox tells one value: that of the variable which this one names.
    let secret = "with = and \"quotes\" and ü";
    let given = [
        ("MANDELBOX_KEY_VARIABLE", EnvValue::from("SECRET")),
        ("SECRET", EnvValue::Secret(secret.into())),
        ("EMPTY", EnvValue::from("")),
    ];
    let trial = Trial::of(fixture)?.serving()?.with(|spec| {
        spec.env.extend(given.map(|(name, value)| (name.to_owned(), value)));
    });
    trial.start().await?;
    let facts = trial.facts().await?;
    ensure!(facts["aes_key"] == secret, "the secret became {}", facts["aes_key"]);
    let names = texts(&facts["env_names"]);
    for name in trial.spec.env.keys() {
        ensure!(names.contains(name.as_str()), "{name} is not among {names:?}");
    }
    let unexpected: Vec<_> = names
        .into_iter()
        .filter(|name| !trial.spec.env.contains_key(*name) && !USUAL_VARIABLES.contains(name))
        .collect();
    ensure!(unexpected.is_empty(), "nobody gave it {unexpected:?}");
    Ok(())
}

pub(super) async fn a_gpu_variable_wins_over_the_same_in_the_environment(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    let variable = "NVIDIA_VISIBLE_DEVICES";
    let trial = Trial::of(fixture)?.serving()?.with(|spec| {
        spec.env.insert(variable.to_owned(), "all".into());
        let env = [(variable.to_owned(), "void".to_owned())].into();
        spec.gpu = Some(Attachment { env, ..Attachment::default() });
    });
    trial.start().await?;
    let visible = &trial.facts().await?["nvidia_visible_devices"];
    ensure!(visible == "void", "it may see {visible}");
    Ok(())
}

pub(super) async fn capabilities_are_those_given_and_no_others(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    // Bits of linux/capability.h.
    for (given, mask) in
        [(&[][..], 0), (&["KILL", "NET_BIND_SERVICE", "SYS_NICE"][..], 1 << 5 | 1 << 10 | 1 << 23)]
    {
        let given: Result<BTreeSet<Capability>, _> = given.iter().map(|name| name.parse()).collect();
        let given = given.map_err(lacking)?;
        let trial = Trial::of(fixture)?.serving()?.with(|spec| spec.security.capabilities = given);
        trial.start().await?;
        let facts = trial.facts().await?;
        for set in ["cap_eff", "cap_bnd"] {
            let has = facts[set].as_str().and_then(|hex| u64::from_str_radix(hex, 16).ok());
            ensure!(has == Some(mask), "{set} is {} instead of {mask:x}", facts[set]);
        }
    }
    Ok(())
}

pub(super) async fn privileges_can_be_kept_from_growing(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    for (said, seen) in [(true, 1), (false, 0)] {
        let trial = Trial::of(fixture)?.serving()?.with(|spec| spec.security.no_new_privileges = said);
        trial.start().await?;
        let no_new_privileges = &trial.facts().await?["no_new_privs"];
        ensure!(no_new_privileges == seen, "said {said}, it is {no_new_privileges}");
    }
    Ok(())
}

pub(super) async fn system_calls_are_filtered_as_said(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    let profile =
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["reboot"],"action":"SCMP_ACT_ERRNO"}]}"#;
    // 0 is no filter, 2 is a filter.
    for (said, seen) in
        [(Seccomp::Default, 2), (Seccomp::Unconfined, 0), (Seccomp::Profile(profile.to_owned()), 2)]
    {
        let trial = Trial::of(fixture)?.serving()?.with(|spec| spec.security.seccomp = said.clone());
        trial.start().await?;
        let mode = &trial.facts().await?["seccomp"];
        ensure!(mode == seen, "said {said:?}, its mode is {mode}");
    }
    Ok(())
}

pub(super) async fn limits_are_in_force(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, LIMITS)?;
    let (memory, pids, shares) = (64 << 20, 40, 256);
    let trial = Trial::of(fixture)?.serving()?.with(|spec| {
        spec.limits = Limits {
            memory_bytes: Some(memory),
            cpu_shares: Some(shares),
            nano_cpus: Some(500_000_000),
            pids: Some(pids),
            open_files: Some(1000),
        };
    });
    trial.start().await?;
    let facts = trial.facts().await?;
    ensure!(facts["memory_limit_bytes"] == memory, "memory: {}", facts["memory_limit_bytes"]);
    ensure!(facts["pids_limit"] == pids, "pids: {}", facts["pids_limit"]);
    // Control groups of version 2 have a weight instead, from 1 to 10,000 and usually 100.
    let has_shares = facts["cpu_shares"] == shares;
    let has_weight = facts["cpu_weight"].as_u64().is_some_and(|weight| weight < 100);
    ensure!(has_shares || has_weight, "cpu: {} or {}", facts["cpu_shares"], facts["cpu_weight"]);

    let answer = trial.post("/fork-bomb?n=200").await?;
    let started = serde_json::from_str::<Value>(&answer).ok().and_then(|fork| fork["started"].as_u64());
    ensure!(started.is_some_and(|started| started < pids), "with {pids} pids: {answer}");
    Ok(())
}

pub(super) async fn an_out_of_memory_kill_is_told(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, &[Feature::Isolation, Feature::Limits, Feature::OomReport])?;
    let trial = Trial::of(fixture)?.serving()?.with(|spec| spec.limits.memory_bytes = Some(64 << 20));
    let events = trial.runtime.events(&Selector::label(LABEL, trial.spec.name.as_str())).await?;
    trial.start().await?;
    trial.post("/oom").await?;
    let exit = trial.exit().await?;
    ensure!(exit.code == Some(137), "it ended with {exit:?}");
    if exit.oom {
        return Ok(());
    }
    let told = super::events::until_exit(events).await?;
    ensure!(super::events::tells_oom(&told), "inspection says {exit:?}, events say {told:?}");
    Ok(())
}

pub(super) async fn binds_are_read_only_when_said(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    let directory = tempfile::tempdir().map_err(lacking)?;
    let trial = Trial::of(fixture)?
        .serving()?
        .with(|spec| spec.mounts.push(bind(directory.path(), "/read-only", true)));
    // Its announcement arrives through the other one.
    trial.run().await?;
    let facts = trial.facts().await?;
    for (target, read_only) in [("/read-only", true), (MAPPINGS, false)] {
        let seen = &mount(&facts, target)?["read_only"];
        ensure!(seen == read_only, "that {target} is read-only is {seen}");
    }
    Ok(())
}

pub(super) async fn a_missing_bind_source_is_refused(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    let trial = Trial::of(fixture)?;
    let missing = trial.files().join("missing");
    let trial = trial.with(|spec| spec.mounts.push(bind(&missing, "/missing", false)));
    let outcome = match trial.runtime.create(&trial.spec).await {
        Ok(_) => trial.runtime.start(&trial.name()).await,
        Err(error) => Err(error),
    };
    ensure_fails!(outcome, ErrorKind::Invalid, "mounting what is missing");
    ensure!(!missing.exists(), "the missing source was made");
    Ok(())
}

pub(super) async fn memory_file_systems_have_their_sizes(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    let (size, shm) = (50 << 20, 128 << 20);
    let trial = Trial::of(fixture)?.serving()?.with(|spec| {
        spec.shm_bytes = shm;
        spec.tmpfs = ["/run", "/run/lock"]
            .map(|target| Tmpfs { target: PathBuf::from(target), size_bytes: size })
            .into();
    });
    trial.start().await?;
    let facts = trial.facts().await?;
    for (target, expected) in [("/run", size), ("/run/lock", size), ("/dev/shm", shm)] {
        let seen = mount(&facts, target)?;
        let is_right = seen["type"] == "tmpfs" && seen["size_bytes"] == expected;
        ensure!(is_right, "{target} is {seen} instead of {expected} bytes");
    }
    Ok(())
}

pub(super) async fn a_device_is_given_and_no_other(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    let given = "/dev/fuse";
    for permissions in [Some("rwm"), Some("w"), None] {
        let trial = Trial::of(fixture)?.serving()?.with(|spec| {
            // Any harmless device does, under a name that the test mandelbox dares to open for reading.
            spec.devices.extend(permissions.map(|permissions| Device {
                host: PathBuf::from("/dev/zero"),
                container: PathBuf::from(given),
                permissions: permissions.to_owned(),
            }));
        });
        trial.start().await?;
        let facts = trial.facts().await?;
        let devices = facts["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = devices.iter().find(|device| device["path"] == given);
        match permissions {
            None => ensure!(found.is_none(), "nobody gave it {found:?}"),
            Some(_) => ensure!(found.is_some(), "{given} is not among {devices:?}"),
        }
    }
    Ok(())
}

pub(super) async fn a_terminal_is_there_when_said(fixture: &dyn Fixture) -> Verdict {
    needs(fixture, ISOLATION)?;
    for said in [true, false] {
        let trial = Trial::of(fixture)?.serving()?.with(|spec| spec.terminal = said);
        trial.start().await?;
        let is_terminal = &trial.facts().await?["stdin_is_tty"];
        ensure!(is_terminal == said, "said {said}, it is {is_terminal}");
    }
    Ok(())
}

fn texts(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The last mount at a target is the one that is seen.
fn mount<'a>(facts: &'a Value, target: &str) -> Result<&'a Value, Unmet> {
    let mounts = facts["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = mounts.iter().rfind(|mount| mount["target"] == target);
    found.ok_or_else(|| Unmet::Broken(format!("{target} is not among {mounts:?}")))
}
