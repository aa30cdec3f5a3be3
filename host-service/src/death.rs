//! Deaths that nobody could report: SIGKILL, out of memory, a bug that aborts.
//!
//! `<state>/life.json` says that a service lives, and who it is. It goes when the end of the service was told, whatever
//! end that was. Whoever finds it with nobody holding the state directory tells the death: `host-service report-death`,
//! which systemd runs after every end (`ExecStopPost`), or else the next start.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use host_config::Loaded;
use host_core::{
    InstanceName, MandelboxId, PluginError, chain,
    pubsub::{InstanceFacts, PubSub},
    registry::{Registry, Role},
};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::{deadline::within, plugins, records::Records, telemetry::Dispatch};

const LIFE: &str = "life.json";
/// As root, never write through a link that somebody planted.
#[allow(clippy::cast_possible_wrap, reason = "a flag of open(2), which takes an int")]
const NOFOLLOW: i32 = OFlags::NOFOLLOW.bits() as i32;

/// A service that lives, or died without a word.
#[derive(Debug, Serialize, Deserialize)]
pub struct Life {
    /// Its process.
    pub pid: u32,
    /// Who it said that it is.
    pub instance: InstanceFacts,
    /// Unix time in seconds.
    pub started: u64,
}

impl Life {
    /// Writes down that this process lives as `instance`.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(state: &Path, instance: &InstanceFacts) -> io::Result<()> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let life = Self { pid: std::process::id(), instance: instance.clone(), started };
        let fresh = state.join(format!(".{LIFE}"));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(NOFOLLOW);
        serde_json::to_writer(options.open(&fresh)?, &life)?;
        fs::rename(fresh, path(state))
    }

    /// The life that `state` tells of.
    pub fn read(state: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(state)).ok()?).ok()
    }

    /// Its end was told.
    pub fn end(state: &Path) {
        // Should it stay, the end is told twice.
        let _ = fs::remove_file(path(state));
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(LIFE)
}

/// For a start: tells of an earlier service whose death nobody told.
pub(crate) fn tell_earlier(state: &Path) {
    if let Some(life) = Life::read(state) {
        tracing::error!(
            died = "unknown",
            pid = life.pid,
            started = life.started,
            "an earlier host-service died without a word"
        );
    }
}

/// How it died, as systemd tells `ExecStopPost`.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// `$SERVICE_RESULT`: `signal`, `oom-kill`, `watchdog`, …
    pub result: Option<String>,
    /// `$EXIT_CODE`: `exited`, `killed`, `dumped`.
    pub code: Option<String>,
    /// `$EXIT_STATUS`: a number or a signal's name.
    pub status: Option<String>,
}

/// What was told.
#[derive(Debug)]
pub struct Report {
    /// Of whom.
    pub instance: InstanceName,
    /// Mandelboxes that it left.
    pub left: Vec<MandelboxId>,
}

/// Tells telemetry and the control plane of a death; `None` when nobody died without a word.
///
/// # Errors
/// A service uses the state directory, or somebody could not be told, in which case it can be tried again.
pub async fn report(loaded: &Loaded, manner: &Manner) -> anyhow::Result<Option<Report>> {
    let state = &loaded.settings.paths.state;
    let Some(life) = Life::read(state) else { return Ok(None) };
    let records = Records::open(state)?;
    let (left, unreadable) = records.all()?;
    let registry = plugins::registry(loaded);
    let (telemetry, mut untold) = telemetry(&registry, loaded, &life).await?;
    tracing::error!(
        died = manner.result.as_deref().unwrap_or("unknown"),
        exit_code = manner.code,
        exit_status = manner.status,
        pid = life.pid,
        started = life.started,
        mandelboxes = left.len(),
        unreadable_records = unreadable.len(),
        "the host service died without a word"
    );
    for record in &left {
        tracing::warn!(mandelbox = %record.id, container = %record.container, stage = %record.stage, "left by a host service that died");
    }
    let name = &life.instance.name;
    let told = tell_control_plane(&registry, loaded, name, left.is_empty()).await;
    if let Err(error) = &told {
        tracing::warn!(error = %chain(error), "the control plane could not be told of the death");
    }
    telemetry.flush(loaded.settings.telemetry.flush).await;
    untold.extend(told.err().map(|error| format!("the control plane: {}", chain(&error))));
    anyhow::ensure!(untold.is_empty(), "not everybody could be told; {}", untold.join("; "));
    Life::end(state);
    Ok(Some(Report { instance: name.clone(), left: left.into_iter().map(|record| record.id).collect() }))
}

/// Every plugin that can be used, speaking as the one that died. One that cannot must not silence the others.
async fn telemetry(
    registry: &Registry,
    loaded: &Loaded,
    life: &Life,
) -> anyhow::Result<(Dispatch, Vec<String>)> {
    let (mut plugins, mut unusable) = (Vec::new(), Vec::new());
    for name in &loaded.settings.telemetry.plugins {
        match plugins::build(&registry.telemetries, "telemetry", name, loaded, Role::Tool).await {
            Ok(plugin) => plugins.push(plugin),
            Err(error) => unusable.push(format!("telemetry plugin {name}: {}", chain(&error))),
        }
    }
    let telemetry = Dispatch::new(plugins, loaded.profile.name());
    telemetry.identify(Arc::new(life.instance.clone()));
    telemetry.install(&loaded.settings.telemetry.filter).context("telemetry.filter")?;
    Ok((telemetry, unusable))
}

/// Nobody is to be sent there any more; a host on which nothing is left has no row.
async fn tell_control_plane(
    registry: &Registry,
    loaded: &Loaded,
    name: &InstanceName,
    is_empty: bool,
) -> Result<(), PluginError> {
    let settings = &loaded.settings.pubsub;
    let plugin = plugins::build(&registry.pubsubs, "pubsub", &settings.plugin, loaded, Role::Tool);
    let told = async {
        let pubsub: Arc<dyn PubSub> = plugin.await?;
        match is_empty {
            true => pubsub.unregister(name).await,
            false => pubsub.mark_draining(name).await,
        }
    };
    within(settings.timeout, "telling the control plane of the death", told).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_found_until_its_end_was_told() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(Life::read(scratch.path()).is_none());
        let instance = InstanceFacts {
            name: "host-1".parse().unwrap(),
            cloud_id: "i-1".to_owned(),
            image_id: "ami-1".to_owned(),
            region: "us-east-1".to_owned(),
            instance_type: "g4dn.xlarge".to_owned(),
            ip: "192.0.2.1".to_owned(),
            commit: "0123456".to_owned(),
        };
        Life::begin(scratch.path(), &instance).unwrap();
        let life = Life::read(scratch.path()).unwrap();
        assert_eq!((life.pid, life.instance), (std::process::id(), instance));
        Life::end(scratch.path());
        assert!(Life::read(scratch.path()).is_none());
    }
}
