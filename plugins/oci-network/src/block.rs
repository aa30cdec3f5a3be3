//! Choosing a block of addresses and claiming it: a `blackhole` route, which only one process can add.

use std::{fs, io, net::Ipv4Addr, path::Path};

use host_core::{ErrorKind, PluginError};

use crate::{
    error,
    host::{self, Route},
    name::Key,
    netlink::Netlink,
    subnet::Subnet,
};

/// Where a block is chosen from: 10.64.0.0/10, which clouds, Docker (172.16/12) and home routers leave alone.
const FROM: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
const FROM_PREFIX: u8 = 10;
const PREFIX: u8 = 20;
const CANDIDATES: u32 = 1 << (PREFIX - FROM_PREFIX);

/// A shorter prefix is a default route in parts, as VPNs add it, and claims nothing.
const LEAST_PREFIX: u8 = 8;

/// Where the choice is kept, so that containers keep their addresses when the service was killed.
const FILE: &str = "network-block";

/// The block the service before this one had, if it left one.
pub(crate) fn remembered(state_dir: &Path) -> Option<Subnet> {
    fs::read_to_string(state_dir.join(FILE)).ok()?.trim().parse().ok()
}

/// Claims the configured block, the remembered one, or a free one, and remembers it. While containers with `adopted`
/// addresses still run it has to be the one they are of.
pub(crate) fn claim(
    configured: Option<Subnet>,
    key: &Key,
    state_dir: &Path,
    adopted: &[Ipv4Addr],
) -> Result<Subnet, PluginError> {
    let mut netlink =
        Netlink::route().map_err(|error| error::kernel("asking for the host's routes", error))?;
    let routes =
        host::routes(&mut netlink).map_err(|error| error::kernel("listing the host's routes", error))?;
    let before = remembered(state_dir);
    if !adopted.is_empty() {
        let block = home(adopted, before, configured, &routes)?;
        readopt(&mut netlink, block)?;
        return remember(state_dir, block).map(|()| block);
    }
    if let Some(before) = before {
        let same = configured.is_none_or(|wanted| wanted == before);
        if same && is_claimed(&routes, before) {
            return readopt(&mut netlink, before).map(|()| before);
        }
        // Held by somebody, though no container is; they would be in the way of the new block's.
        let stale = host::links(&mut netlink, &key.interface_prefix(), before)
            .and_then(|names| host::delete_links(&mut netlink, &names));
        stale.map_err(|error| error::kernel("removing interfaces", error))?;
        unclaim(&mut netlink, before)?;
    }
    let free =
        |block: &Subnet| !routes.iter().any(|route| is_other(route, before) && in_the_way(route, *block));
    let block = match configured {
        Some(block) => exact(&mut netlink, block, &routes, before)?,
        None => choose(&mut netlink, key, free)?,
    };
    remember(state_dir, block).inspect_err(|_| drop(host::unclaim(&mut netlink, block)))?;
    Ok(block)
}

/// The block that running containers' addresses are of; the note of it may be lost.
fn home(
    adopted: &[Ipv4Addr],
    before: Option<Subnet>,
    configured: Option<Subnet>,
    routes: &[Route],
) -> Result<Subnet, PluginError> {
    let claimed = routes.iter().filter(|route| route.is_claim()).map(|route| route.to);
    let usual = Subnet::around(adopted.first().copied().unwrap_or(FROM), PREFIX);
    let usual = Subnet::around(FROM, FROM_PREFIX).contains(usual.first()).then_some(usual);
    let holds_all = |block: &Subnet| adopted.iter().all(|address| block.is_container(*address));
    before.into_iter().chain(claimed).chain(configured).chain(usual).find(holds_all).ok_or_else(|| {
        let message = format!(
            "the running containers' addresses {adopted:?} are of no block that this store has; remove these \
             containers, or set runtime.oci.network.subnet to the block that they are of"
        );
        PluginError::new(ErrorKind::Conflict, message)
    })
}

/// Gives the block back and forgets it.
pub(crate) fn release(block: Subnet, state_dir: &Path) -> Result<(), PluginError> {
    let mut netlink =
        Netlink::route().map_err(|error| error::kernel("asking for the host's routes", error))?;
    unclaim(&mut netlink, block)?;
    forget(state_dir, FILE)
}

fn unclaim(netlink: &mut Netlink, block: Subnet) -> Result<(), PluginError> {
    host::unclaim(netlink, block)
        .map_err(|error| error::kernel(format_args!("removing the route {block}"), error))
}

fn is_claimed(routes: &[Route], block: Subnet) -> bool {
    routes.iter().any(|route| route.is_claim() && route.to == block)
}

/// Not the claim that was just given up.
fn is_other(route: &Route, before: Option<Subnet>) -> bool {
    !(route.is_claim() && Some(route.to) == before)
}

fn in_the_way(route: &Route, block: Subnet) -> bool {
    route.to.prefix() >= LEAST_PREFIX && route.to.overlaps(block)
}

/// The route may be gone, after a restart of the machine.
fn readopt(netlink: &mut Netlink, block: Subnet) -> Result<(), PluginError> {
    match host::claim(netlink, block) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(claiming(block, error)),
        _ => Ok(()),
    }
}

/// A wider route that covers the block is the administrator's own choice; one within it is not.
fn exact(
    netlink: &mut Netlink,
    block: Subnet,
    routes: &[Route],
    before: Option<Subnet>,
) -> Result<Subnet, PluginError> {
    let within = |route: &&Route| is_other(route, before) && block.contains(route.to.first());
    if let Some(route) = routes.iter().find(|route| route.to.prefix() >= block.prefix() && within(route)) {
        let message = format!(
            "runtime.oci.network.subnet {block} is in use on this host: there is a route to {}; choose another",
            route.to
        );
        return Err(PluginError::new(ErrorKind::Conflict, message));
    }
    host::claim(netlink, block).map_err(|error| claiming(block, error))?;
    Ok(block)
}

fn choose(netlink: &mut Netlink, key: &Key, free: impl Fn(&Subnet) -> bool) -> Result<Subnet, PluginError> {
    for block in candidates(key).filter(free) {
        match host::claim(netlink, block) {
            Ok(()) => return Ok(block),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(claiming(block, error)),
        }
    }
    let message = format!(
        "no block of {FROM}/{FROM_PREFIX} is free: routes of this host cover it; set runtime.oci.network.subnet to \
         one that nothing uses"
    );
    Err(PluginError::new(ErrorKind::Exhausted, message))
}

/// Every block once, from one on that depends on the store.
fn candidates(key: &Key) -> impl Iterator<Item = Subnet> {
    let start = key.seed() % CANDIDATES;
    (0..CANDIDATES).map(move |n| {
        let offset = ((start + n) % CANDIDATES) << (32 - u32::from(PREFIX));
        Subnet::around(Ipv4Addr::from_bits(FROM.to_bits() + offset), PREFIX)
    })
}

fn claiming(block: Subnet, error: io::Error) -> PluginError {
    error::kernel(format_args!("claiming the addresses {block}"), error)
}

fn remember(state_dir: &Path, block: Subnet) -> Result<(), PluginError> {
    note(state_dir, FILE, &format!("{block}\n"))
}

/// Writes a file whole or not at all. What says so already stays: a full disk must not keep a service from its containers.
pub(crate) fn note(state_dir: &Path, name: &str, text: &str) -> Result<(), PluginError> {
    if fs::read_to_string(state_dir.join(name)).is_ok_and(|noted| noted == text) {
        return Ok(());
    }
    let write = || {
        fs::create_dir_all(state_dir)?;
        let new = state_dir.join(format!("{name}.new"));
        fs::write(&new, text)?;
        fs::rename(new, state_dir.join(name))
    };
    write().map_err(|error| {
        let message = format!("writing {} failed", state_dir.join(name).display());
        PluginError::new(ErrorKind::Internal, message).with_source(error)
    })
}

/// Removes a file; removed already is fine.
pub(crate) fn forget(state_dir: &Path, name: &str) -> Result<(), PluginError> {
    match fs::remove_file(state_dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let message = format!("removing {} failed", state_dir.join(name).display());
            Err(PluginError::new(ErrorKind::Internal, message).with_source(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_block_is_tried_once() {
        let key = Key::new("fffffffe").unwrap();
        let all: HashSet<_> = candidates(&key).collect();
        assert_eq!(all.len(), 1024);
        let outside = all.iter().find(|block| !Subnet::around(FROM, FROM_PREFIX).overlaps(**block));
        assert_eq!(outside, None);
    }
}
