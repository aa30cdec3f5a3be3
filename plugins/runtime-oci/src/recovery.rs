//! What an earlier service left: containers that still run are taken over, the rest is told as it is.

use std::{collections::BTreeSet, fs, io, path::Path, sync::Arc};

use host_core::{
    chain,
    runtime::{Container, ContainerId, Exit, Result},
};
use oci_images::Store;
use oci_network::Adopted;

use crate::{
    events::Hub,
    held::{Held, connect, kill_supervisor, seen},
    place::{self, Description, Root, name},
    protocol::Phase,
    runtime::{Containers, failed},
};

/// A container as its directory tells it.
pub(crate) struct Found {
    pub(crate) id: String,
    pub(crate) description: Description,
}

/// Every container on disk, and the ids of directories that are none: their service died before it had described them.
pub(crate) fn scan(root: &Root) -> io::Result<(Vec<Found>, Vec<String>)> {
    let (mut found, mut unfinished) = (Vec::new(), Vec::new());
    for id in root.ids()? {
        match place::read_json(&root.container(&id).join(name::CONTAINER)) {
            Ok(description) => found.push(Found { id, description }),
            Err(_) => unfinished.push(id),
        }
    }
    Ok((found, unfinished))
}

/// The containers as they are, told by their directories alone: for a look beside a running service.
pub(crate) fn look(root: &Root) -> io::Result<Vec<Container>> {
    let (found, _) = scan(root)?;
    found
        .into_iter()
        .map(|Found { id, description }| {
            let directory = root.container(&id);
            let phase = place::read_status(&directory).phase;
            let phase = match phase {
                Phase::Exited(_) => phase,
                _ if place::is_supervised(&directory)? => phase,
                _ => Phase::Exited(Exit::default()),
            };
            Ok(seen(&ContainerId(id), &description, phase))
        })
        .collect()
}

/// Containers whose networks are in use.
pub(crate) fn adopted(found: &[Found]) -> Vec<Adopted> {
    let of = |found: &Found| {
        let address = found.description.address?;
        Some(Adopted { address, ports: found.description.ports.clone() })
    };
    found.iter().filter_map(of).collect()
}

/// Takes over what is there. What cannot be ended now is kept, and ended when it is removed: it must not keep the service
/// from starting.
pub(crate) async fn recover(
    containers: &Arc<Containers>,
    found: Vec<Found>,
    unfinished: Vec<String>,
) -> Result<()> {
    for Found { id, description } in found {
        let held = Arc::new(Held::new(ContainerId(id), &containers.root, &containers.layout, description));
        containers.table.add(&held)?;
        take_over(containers, &held).await?;
    }
    for id in unfinished {
        let group = containers.layout.group(&containers.config.cgroup_parent.join(&id));
        let directory = containers.root.container(&id);
        // A supervisor that saw its container end would still write into the directory.
        let end = move || kill_supervisor(&directory).and_then(|()| group.destroy());
        let ended = tokio::task::spawn_blocking(end).await.map_err(io::Error::other).flatten();
        if let Err(error) = ended.and_then(|()| containers.discard(&id)) {
            tracing::error!(%error, container = id, "what a killed service had begun to make cannot be removed");
        }
    }
    release_unused(&containers.store, &containers.table.list()).await
}

async fn take_over(containers: &Arc<Containers>, held: &Arc<Held>) -> Result<()> {
    let status = place::read_status(&held.directory);
    let supervised = place::is_supervised(&held.directory)
        .map_err(failed(format!("the directory of container {} cannot be read", held.name)))?;
    held.recall(status, supervised);
    if supervised {
        match connect(held, None).await {
            Ok((link, ear)) => {
                *held.gate.lock().await = Some(link);
                let listening = ear.listen(containers.hub.clone());
                containers.tasks.spawn(containers.stop.clone().run_until_cancelled_owned(listening));
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(container = held.name, %error, "a supervisor cannot be reached; ending its container");
            }
        }
    }
    let of = held.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || of.destroy()).await {
        tracing::error!(error = %chain(&error), "a container without a supervisor cannot be ended");
    }
    held.lost(&Hub::default());
    held.recall(place_status(held), false);
    Ok(())
}

fn place_status(held: &Held) -> crate::protocol::Status {
    held.view().borrow().status
}

/// Layers that nobody uses any more.
async fn release_unused(store: &Store, held: &[Arc<Held>]) -> Result<()> {
    let used: BTreeSet<&str> = held.iter().map(|held| held.id.0.as_str()).collect();
    for user in store.users().await? {
        if !used.contains(user.as_str()) {
            store.release(&user).await?;
        }
    }
    Ok(())
}

/// What was removed and not deleted yet.
pub(crate) async fn empty_trash(trash: &Path) -> io::Result<()> {
    let entries: io::Result<Vec<_>> = fs::read_dir(trash)?.map(|entry| Ok(entry?.path())).collect();
    for tree in entries? {
        if let Err(error) = place::delete(&tree).await {
            tracing::warn!(%error, path = %tree.display(), "a removed container's files cannot be deleted");
        }
    }
    Ok(())
}
