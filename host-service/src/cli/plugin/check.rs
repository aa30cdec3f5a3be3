//! `plugin check`: what every plugin of its kind must do, tried on a library.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use conformance::{
    Report, Unmet, Verdict, behaviours,
    report::{self, Behaviour},
    runtime::Fixture,
};
use host_config::Loaded;
use host_core::{
    ImageRef, PluginError,
    gpu::Gpu,
    pubsub::PubSub,
    registry::{Context, Role},
    runtime::Runtime,
    telemetry::Telemetry,
};
use host_plugin_loader::{Interface, Isolation};

use super::super::{
    args::PluginCheckArgs,
    failure::Failure,
    output::{GREEN, Out, RED},
};
use crate::{deadline::within, plugins};

/// For a plugin to get ready.
const READY: Duration = Duration::from_secs(90);
/// For what has no suite of its own.
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) fn check(args: &PluginCheckArgs, loaded: &Loaded, out: &mut Out) -> Result<(), Failure> {
    let loader = plugins::loader(loaded);
    let (description, sha256) = loader.describe(&args.file)?;
    let (name, version) = (&description.name, &description.version);
    out.line(format_args!(
        "{name} {version}, made with {}, ABI {}.{}",
        description.sdk, description.abi.0, description.abi.1
    ))?;
    out.line(format_args!("sha256 {sha256}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut holds = !description.kinds().is_empty();
    for kind in description.kinds() {
        for (isolation, place) in
            [(Isolation::InProcess, "in process"), (Isolation::Process, "in a process of its own")]
        {
            let tried = runtime.block_on(trial(args, loaded, name, kind, isolation));
            out.line(format_args!("\n{kind}, {place}"))?;
            match tried {
                Ok(report) => {
                    holds &= report.holds();
                    out.line(format_args!("{report}"))?;
                }
                Err(error) => {
                    holds = false;
                    out.line(format_args!("{RED}FAIL{RED:#}  {}", host_core::chain(&error)))?;
                }
            }
        }
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    if !holds {
        out.line(format_args!("\n{RED}{name} does not do what it must{RED:#}"))?;
        return Err(Failure::Shown);
    }
    out.line(format_args!("\n{GREEN}{name} does what it must{GREEN:#}"))?;
    Ok(())
}

async fn trial(
    args: &PluginCheckArgs,
    loaded: &Loaded,
    name: &str,
    kind: Interface,
    isolation: Isolation,
) -> Result<Report, PluginError> {
    let context = Context { state_dir: loaded.settings.paths.state.clone(), local: true, role: Role::Tool };
    let section = loaded.section(kind.as_str(), name);
    let loader = plugins::loader(loaded);
    let made = loader.trial(&args.file, kind, isolation, section, context);
    let remote = Arc::new(within(READY, "making the plugin", made).await?);
    Ok(match kind {
        Interface::Runtime => {
            let runtime = Trial { runtime: remote, image: args.image.clone(), archive: args.archive.clone() };
            conformance::runtime::run(name, &runtime).await
        }
        Interface::Gpu => {
            let gpu: &dyn Gpu = remote.as_ref();
            report::run(name, gpu, &conformance::gpu::behaviours()).await
        }
        Interface::PubSub => report::run(name, remote.as_ref() as &dyn PubSub, &pubsub()).await,
        Interface::Telemetry => report::run(name, remote.as_ref() as &dyn Telemetry, &telemetry()).await,
    })
}

struct Trial<R> {
    runtime: Arc<R>,
    image: ImageRef,
    archive: Option<PathBuf>,
}

#[async_trait]
impl<R: Runtime> Fixture for Trial<R> {
    fn runtime(&self) -> &dyn Runtime {
        self.runtime.as_ref()
    }

    fn image(&self) -> ImageRef {
        self.image.clone()
    }

    fn archive(&self) -> Option<PathBuf> {
        self.archive.clone()
    }
}

/// What can be tried without the other half of a control plane.
fn pubsub() -> Vec<Behaviour<dyn PubSub>> {
    behaviours![dyn PubSub, DEADLINE; a_watch_tells_the_state_at_once]
}

async fn a_watch_tells_the_state_at_once(pubsub: &dyn PubSub) -> Verdict {
    use futures::StreamExt as _;
    let name = "plugin-check".parse().map_err(|error| Unmet::Broken(format!("{error}")))?;
    let first = pubsub.watch(&name).await?.next().await;
    conformance::ensure!(first.is_some(), "the stream ended");
    Ok(())
}

/// What can be tried without seeing the destination.
fn telemetry() -> Vec<Behaviour<dyn Telemetry>> {
    behaviours![dyn Telemetry, DEADLINE; records_are_taken_and_flushed]
}

async fn records_are_taken_and_flushed(telemetry: &dyn Telemetry) -> Verdict {
    use host_core::telemetry::{Level, Record};
    let record = Arc::new(Record {
        at: std::time::SystemTime::now(),
        level: Level::Info,
        target: "plugin_check",
        message: "a record of plugin check".to_owned(),
        fields: serde_json::Map::new(),
        instance: None,
        environment: "localdev".into(),
    });
    for _ in 0..100 {
        telemetry.record(&record);
    }
    telemetry.flush(Duration::from_secs(10)).await?;
    Ok(())
}
