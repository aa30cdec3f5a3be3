//! The host's `net.ipv4.ip_forward`: on while there are containers, put back afterwards.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use host_core::PluginError;

use crate::{
    block::{forget, note},
    error, host,
    name::TABLE_PREFIX,
    nft::Nft,
    rules::{NO_ROUTER, TOOK_REDIRECTS},
};

/// Says, while it is there, that forwarding was off and is ours to turn off.
const FILE: &str = "network-forwarding";
const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
const KEY: &str = "ipv4/ip_forward";

/// The kernel sets it whenever forwarding is turned on or off.
const REDIRECTS: &str = "ipv4/conf/all/accept_redirects";
const TOOK_NONE: &str = "accept_redirects=0";

/// For services of other stores that open or close just now; each holds the lock for some milliseconds.
const LOCK: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Keeps the services of other stores in this network namespace from changing forwarding, and their tables, until it is
/// dropped. The lock is on the setting itself, so it is there once for each namespace and leaves no file.
pub(crate) async fn lock() -> Result<File, PluginError> {
    error::blocking("waiting for another store's service", || {
        let (file, deadline) = (File::open(PATH)?, Instant::now() + LOCK);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOOK_AGAIN),
                Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    })
    .await
}

/// Whether forwarding was off before us, or before another of our services: then nothing but containers' packets
/// may be forwarded, and the last of us turns it off. Then it tells whether the host took redirects before. Written
/// down before anything is changed.
pub(crate) async fn is_ours(
    nft: &Nft,
    own_table: &str,
    state_dir: &Path,
) -> Result<Option<bool>, PluginError> {
    let took_redirects = if !is_on()? {
        Some(read(REDIRECTS)? != "0")
    } else if let Ok(noted) = fs::read_to_string(state_dir.join(FILE)) {
        Some(!noted.contains(TOOK_NONE))
    } else {
        other_guards(nft, own_table).await?
    };
    if let Some(took) = took_redirects {
        let redirects = if took { "" } else { TOOK_NONE };
        let text = format!("it was off; the host service turned it on and turns it off again\n{redirects}\n");
        note(state_dir, FILE, &text)?;
    }
    Ok(took_redirects)
}

/// Turns it on; the table must be there by now.
pub(crate) fn turn_on() -> Result<(), PluginError> {
    if is_on()? { Ok(()) } else { set(KEY, "1") }
}

/// Turns it off, if it is ours and no other of our services needs it.
pub(crate) async fn put_back(nft: &Nft, own_table: &str, state_dir: &Path) -> Result<(), PluginError> {
    if is_noted(state_dir) {
        if is_on()? && other_tables(nft, own_table).await?.is_empty() {
            let noted = fs::read_to_string(state_dir.join(FILE)).unwrap_or_default();
            set(KEY, "0")?;
            set(REDIRECTS, if noted.contains(TOOK_NONE) { "0" } else { "1" })?;
        }
        forget(state_dir, FILE)?;
    }
    Ok(())
}

fn is_on() -> Result<bool, PluginError> {
    Ok(read(KEY)? != "0")
}

fn read(key: &str) -> Result<String, PluginError> {
    let read = fs::read_to_string(format!("/proc/sys/net/{key}")).map(|text| text.trim().to_owned());
    read.map_err(|error| error::kernel(format_args!("reading {key}"), error))
}

fn set(key: &str, value: &str) -> Result<(), PluginError> {
    host::sysctl(key, value).map_err(|error| error::kernel(format_args!("setting {key} to {value}"), error))
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

/// Whether the host took redirects before, if another store's service turned forwarding on.
async fn other_guards(nft: &Nft, own_table: &str) -> Result<Option<bool>, PluginError> {
    let others = other_tables(nft, own_table).await?;
    if others.is_empty() {
        return Ok(None);
    }
    let chains = nft.list(&["chains", "inet"]).await?;
    let found = |name: &str| {
        objects(&chains, "chain")
            .any(|chain| chain["name"] == name && others.iter().any(|other| chain["table"] == other.as_str()))
    };
    Ok(found(NO_ROUTER).then(|| found(TOOK_REDIRECTS)))
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
