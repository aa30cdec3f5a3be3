//! The host's `net.ipv4.ip_forward`: on while there are containers, put back afterwards.

use std::{fs, path::Path};

use host_core::PluginError;

use crate::{
    block::{forget, note},
    error, host,
    name::TABLE_PREFIX,
    nft::Nft,
    rules::NO_ROUTER,
};

/// Says, while it is there, that forwarding was off and is ours to turn off.
const FILE: &str = "network-forwarding";
const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
const KEY: &str = "ipv4/ip_forward";

/// Whether forwarding was off before us, or before another of our services: then nothing but containers' packets
/// may be forwarded, and the last of us turns it off. Written down before anything is changed.
pub(crate) async fn is_ours(nft: &Nft, own_table: &str, state_dir: &Path) -> Result<bool, PluginError> {
    let ours = !is_on()? || is_noted(state_dir) || other_guards(nft, own_table).await?;
    if ours {
        note(state_dir, FILE, "it was off; the host service turned it on and turns it off again\n")?;
    }
    Ok(ours)
}

/// Turns it on; the table must be there by now.
pub(crate) fn turn_on() -> Result<(), PluginError> {
    if is_on()? { Ok(()) } else { set("1") }
}

/// Turns it off, if it is ours and no other of our services needs it.
pub(crate) async fn put_back(nft: &Nft, own_table: &str, state_dir: &Path) -> Result<(), PluginError> {
    if is_noted(state_dir) {
        if is_on()? && other_tables(nft, own_table).await?.is_empty() {
            set("0")?;
        }
        forget(state_dir, FILE)?;
    }
    Ok(())
}

fn is_on() -> Result<bool, PluginError> {
    let read = fs::read_to_string(PATH).map(|text| text.trim() != "0");
    read.map_err(|error| error::kernel(format_args!("reading {PATH}"), error))
}

fn set(value: &str) -> Result<(), PluginError> {
    host::sysctl(KEY, value).map_err(|error| error::kernel(format_args!("setting {PATH} to {value}"), error))
}

/// Tables of other stores' services.
async fn other_tables(nft: &Nft, own_table: &str) -> Result<Vec<String>, PluginError> {
    let tables = nft.list(&["tables"]).await?;
    Ok(objects(&tables, "table")
        .filter_map(|table| table["name"].as_str())
        .filter(|name| name.starts_with(TABLE_PREFIX) && *name != own_table)
        .map(str::to_owned)
        .collect())
}

async fn other_guards(nft: &Nft, own_table: &str) -> Result<bool, PluginError> {
    let others = other_tables(nft, own_table).await?;
    if others.is_empty() {
        return Ok(false);
    }
    let chains = nft.list(&["chains", "inet"]).await?;
    let found = objects(&chains, "chain").any(|chain| {
        chain["name"] == NO_ROUTER && others.iter().any(|other| chain["table"] == other.as_str())
    });
    Ok(found)
}

/// Objects of one kind in what `nft -j list` answers.
pub(crate) fn objects<'a>(
    answer: &'a serde_json::Value,
    kind: &'a str,
) -> impl Iterator<Item = &'a serde_json::Value> {
    answer["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

/// Whether it is ours to turn off.
pub(crate) fn is_noted(state_dir: &Path) -> bool {
    state_dir.join(FILE).exists()
}
