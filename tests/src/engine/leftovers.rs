//! What containers have left of themselves in an engine.

use anyhow::Result;
use bollard::Docker;
use bollard::query_parameters::{ListContainersOptionsBuilder, ListVolumesOptions};

use super::Make;
use crate::leftovers::{Leftovers, control_groups, interfaces, mounts, processes};
use crate::world::World;

pub(super) async fn find(make: Make, docker: &Docker, world: &World) -> Result<Leftovers> {
    let mut found = in_engine(make, docker).await?;
    found.extend(processes(world.first(), make.processes()));
    found.extend(mounts(world.first()).into_iter().filter(|point| make.is_left(point)));
    found.extend(interfaces(world.first()).into_iter().filter(|name| name.starts_with("interface veth")));
    let groups = control_groups(&make.group(&world.name()));
    found.extend(groups.into_iter().filter(|group| make.is_containers(group)));
    Ok(Leftovers(found))
}

async fn in_engine(make: Make, docker: &Docker) -> Result<Vec<String>> {
    let all = ListContainersOptionsBuilder::default().all(true).build();
    let containers = docker.list_containers(Some(all)).await?;
    let containers = containers.into_iter().map(|container| {
        let name = container.names.unwrap_or_default().join(" ");
        format!("container {name} ({})", container.status.unwrap_or_default())
    });
    let volumes = docker.list_volumes(None::<ListVolumesOptions>).await?.volumes.unwrap_or_default();
    let volumes = volumes.into_iter().map(|volume| format!("volume {}", volume.name));
    let networks = docker.list_networks(None).await?.into_iter().filter_map(|network| network.name);
    let networks = networks.filter(|name| !make.networks().contains(&name.as_str()));
    Ok(containers.chain(volumes).chain(networks.map(|name| format!("network {name}"))).collect())
}
