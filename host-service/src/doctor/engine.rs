//! What stands behind the plugins: the container engine, images, GPUs; and what a crashed service left with them.

use std::{sync::Arc, time::Duration};

use host_config::{Loaded, Pull};
use host_core::{
    AppName, ImageRef, PluginError, chain,
    planner::LABEL_INSTANCE,
    registry::{Plugins, Registry, Role},
    runtime::{Runtime, Selector},
};

use super::{Check, files, machine::Machine};
use crate::{
    admin::views::StatusView, deadline::within, identity, orchestrator::image::is_image_of, plugins,
};

/// Whatever hangs for longer is broken.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn checks(
    loaded: &Loaded,
    registry: &Registry,
    machine: &Machine,
    service: Option<&StatusView>,
) -> Vec<Check> {
    let settings = &loaded.settings;
    let mut checks = vec![running(service)];
    let mut runtime = None;
    match reach(loaded, &registry.runtimes).await {
        Ok((check, reached)) => {
            checks.push(check);
            let examined = tokio::time::timeout(LIMIT, reached.examine()).await;
            checks.extend(examined.unwrap_or_default());
            checks.push(image(loaded, reached.as_ref()).await);
            runtime = Some(reached);
        }
        Err(error) => checks.push(Check::fail(
            format!("runtime {}", settings.runtime.plugin),
            chain(&error),
            format!("start it, or set runtime.plugin to another: {}", names(&registry.runtimes)),
        )),
    }
    checks.extend(gpus(loaded, registry).await);
    if service.is_none() {
        checks.push(leftovers(loaded, machine, runtime.as_deref()).await);
    }
    checks
}

fn running(service: Option<&StatusView>) -> Check {
    match service {
        Some(status) => {
            Check::ok("service", format!("runs, profile {}, version {}", status.profile, status.version))
        }
        None => Check::ok("service", "does not run here"),
    }
}

fn names<P: ?Sized + 'static>(plugins: &Plugins<P>) -> String {
    plugins.names().collect::<Vec<_>>().join(", ")
}

async fn build<P: ?Sized + 'static>(
    loaded: &Loaded,
    plugins: &Plugins<P>,
    kind: &str,
    name: &str,
) -> Result<Arc<P>, PluginError> {
    within(LIMIT, "reaching it", plugins::build(plugins, kind, name, loaded, Role::Tool)).await
}

async fn reach(
    loaded: &Loaded,
    plugins: &Plugins<dyn Runtime>,
) -> Result<(Check, Arc<dyn Runtime>), PluginError> {
    let name = &loaded.settings.runtime.plugin;
    let runtime = build(loaded, plugins, "runtime", name).await?;
    let info = within(LIMIT, "asking for its version", runtime.health()).await?;
    let api = info.api_version.map(|api| format!(", API {api}")).unwrap_or_default();
    Ok((Check::ok(format!("runtime {name}"), format!("{} {}{api}", info.name, info.version)), runtime))
}

/// The image of the default app.
async fn image(loaded: &Loaded, runtime: &dyn Runtime) -> Check {
    let settings = &loaded.settings.mandelbox;
    let name = format!("image of {}", settings.default_app);
    let wanted = match settings.image.image(&settings.default_app) {
        Ok(wanted) => wanted,
        Err(error) => return Check::fail(name, error.to_string(), "set mandelbox.image"),
    };
    let search = find(&settings.default_app, &wanted, settings.match_local_images, runtime);
    match within(LIMIT, "looking for it", search).await {
        Ok(Some(image)) => Check::ok(name, format!("{image} is present")),
        Ok(None) if settings.pull == Pull::Never => Check::fail(
            name,
            format!("{wanted} is not present, and mandelbox.pull is \"never\""),
            format!("host-service image load FILE --name {wanted}"),
        ),
        Ok(None) => Check::warn(
            name,
            format!("{wanted} is not present; the first spin-up fetches it"),
            "fetch it beforehand with the engine's own pull command",
        ),
        Err(error) => Check::fail(name, chain(&error), "see the runtime's own log"),
    }
}

async fn find(
    app: &AppName,
    wanted: &ImageRef,
    match_local: bool,
    runtime: &dyn Runtime,
) -> Result<Option<ImageRef>, PluginError> {
    if runtime.image(wanted).await?.is_some() {
        return Ok(Some(wanted.clone()));
    }
    if !match_local {
        return Ok(None);
    }
    let images = runtime.images().await?;
    Ok(images.into_iter().flat_map(|image| image.names).find(|name| is_image_of(name, app)))
}

async fn gpus(loaded: &Loaded, registry: &Registry) -> Vec<Check> {
    let plugin = &loaded.settings.gpu.plugin;
    let name = format!("gpu {plugin}");
    let found = async {
        let gpu = build(loaded, &registry.gpus, "gpu", plugin).await?;
        let devices = within(LIMIT, "enumerating the devices", gpu.enumerate()).await?;
        Ok::<_, PluginError>((gpu, devices))
    };
    let (gpu, devices) = match found.await {
        Ok(found) => found,
        Err(error) => {
            let remedy =
                format!("install its driver, or set gpu.plugin to another: {}", names(&registry.gpus));
            return vec![Check::fail(name, chain(&error), remedy)];
        }
    };
    let models: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
    let found =
        if models.is_empty() { "no devices: mandelboxes run without".into() } else { models.join(", ") };
    let mut checks = vec![Check::ok(name, found)];
    checks.extend(tokio::time::timeout(LIMIT, gpu.examine()).await.unwrap_or_default());
    checks
}

/// A new service refuses to start over these.
async fn leftovers(loaded: &Loaded, machine: &Machine, runtime: Option<&dyn Runtime>) -> Check {
    let mut left = files::leftovers(machine, &loaded.settings);
    if let (Some(runtime), Some(instance)) =
        (runtime, identity::likely_name(loaded.settings.instance.name.as_ref()))
    {
        let selector = Selector::label(LABEL_INSTANCE, instance.as_str());
        match within(LIMIT, "listing containers", runtime.list(&selector)).await {
            Ok(containers) => left.extend(containers.into_iter().map(|container| container.name)),
            Err(error) => return Check::fail("leftovers", chain(&error), "see the runtime's own log"),
        }
    }
    if left.is_empty() {
        return Check::ok("leftovers", "none");
    }
    let found = format!("an earlier service left {}", left.join(", "));
    Check::fail("leftovers", found, "look at them, then host-service run --purge-leftovers")
}
