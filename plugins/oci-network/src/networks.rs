//! The whole: opening, taking, publishing, closing.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use host_core::{ErrorKind, PluginError, runtime::PortMapping};
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::Instrument;

use crate::{
    addresses::Addresses,
    block,
    config::Config,
    conntrack, error, forwarding, host,
    name::Key,
    namespace::Network,
    netlink::Netlink,
    nft::Nft,
    pool::Pool,
    ports::{self, Ports},
    resolv,
    rules::Rules,
    subnet::Subnet,
    writer::{Change, Writer},
};

/// A container that still runs from an earlier service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// Its address.
    pub address: Ipv4Addr,
    /// What it has published.
    pub ports: Vec<PortMapping>,
}

/// The networks of a store's containers.
///
/// Dropping it without [`Networks::close`] is as a crash: ready networks vanish, and the table and the block's
/// route stay for the next [`Networks::open`] with the same key.
#[derive(Debug)]
pub struct Networks {
    pool: Arc<Pool>,
    writer: Writer,
    nft: Nft,
    rules: Rules,
    config: Config,
    state_dir: PathBuf,
    /// Whether closing it succeeded.
    closed: Mutex<bool>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Networks {
    /// Takes over or sets up everything of the store `key` (8 lower-case hexadecimal digits). `state_dir` holds what
    /// must be remembered across a crash. A table that is left over is replaced in one transaction by one with the
    /// `adopted` containers' ports, so that their flows go on; interfaces of others are removed.
    ///
    /// One process at a time may have a store open; the caller sees to that.
    ///
    /// # Errors
    /// `Denied` without root, `Unavailable` without the `nft` program, `Unsupported` for a kernel without
    /// nf_tables, `Conflict` when the configured block is in use or `adopted` ones are of no known block, `Invalid` for a wrong key or configuration.
    pub async fn open(
        config: Config,
        key: &str,
        state_dir: &Path,
        adopted: Vec<Adopted>,
    ) -> Result<Self, PluginError> {
        Self::open_with(Nft::default(), config, key, state_dir, adopted).await
    }

    pub(crate) async fn open_with(
        nft: Nft,
        config: Config,
        key: &str,
        state_dir: &Path,
        adopted: Vec<Adopted>,
    ) -> Result<Self, PluginError> {
        let key = Key::new(key)?;
        check(&config)?;
        let block = claim(&config, &key, state_dir, &adopted).await?;
        let set_up = set_up(&nft, &config, &key, block, state_dir, &adopted).await;
        let (rules, mtu, ports) = match set_up {
            Ok(done) => done,
            Err(error) if adopted.is_empty() => {
                undo(&nft, &key, block, state_dir).await;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let addresses = Addresses::new(block, adopted.iter().map(|container| container.address));
        let pool = Pool::new(key, block, mtu, addresses, config.ready);
        tracing::info!(%block, mtu, adopted = adopted.len(), "containers' networks are open");
        Ok(Self::run(nft, config, state_dir, rules, ports, pool))
    }

    fn run(nft: Nft, config: Config, state_dir: &Path, rules: Rules, ports: Ports, pool: Pool) -> Self {
        let (tasks, stop, pool) = (TaskTracker::new(), CancellationToken::new(), Arc::new(pool));
        let (flows, changed) = mpsc::unbounded_channel();
        let (writer, write) = Writer::new(nft.clone(), rules.clone(), ports, flows);
        tasks.spawn(conntrack::forget_all(changed).instrument(tracing::info_span!("network_flows")));
        tasks.spawn(write.instrument(tracing::info_span!("network_writer")));
        let (filler, until) = (Arc::clone(&pool), stop.clone());
        let fill = async move { filler.fill(&until).await };
        pool.making.spawn(fill.instrument(tracing::info_span!("network_filler")));
        let stop_on_drop = stop.clone().drop_guard();
        let state_dir = state_dir.to_owned();
        let closed = Mutex::new(false);
        Self { pool, writer, nft, rules, config, state_dir, closed, tasks, stop, _stop_on_drop: stop_on_drop }
    }

    /// A network for a container: a ready one, or one made now. Its address is the container's until
    /// [`Networks::release`].
    ///
    /// # Errors
    /// `Exhausted` when all addresses are in use.
    pub async fn take(&self) -> Result<Network, PluginError> {
        if self.stop.is_cancelled() {
            return Err(error::closed());
        }
        self.pool.take().await
    }

    /// Publishes `ports` of the container at `address`; all or none. What it has published already stays. A client
    /// that sent datagrams to a UDP port before it was published reaches the container a tenth of a second later
    /// at most.
    ///
    /// # Errors
    /// `AddressInUse` when another container or program has one of the ports, `Unsupported` for an IPv6
    /// `host_ip`, `Invalid` for one that is not this host's, or an address that no container has.
    pub async fn publish(&self, address: Ipv4Addr, ports: &[PortMapping]) -> Result<(), PluginError> {
        ports::check(ports)?;
        if !self.pool.addresses.is_used(address) {
            let message = format!("no container has the address {address}");
            return Err(PluginError::new(ErrorKind::Invalid, message));
        }
        if ports.is_empty() {
            return Ok(());
        }
        self.writer.change(Change::Publish(address, ports.to_vec())).await
    }

    /// Withdraws everything the container at `address` has published; when this returns the ports are free.
    /// Nothing published succeeds.
    pub async fn withdraw(&self, address: Ipv4Addr) -> Result<(), PluginError> {
        self.writer.change(Change::Withdraw(address)).await
    }

    /// Ends the container's network: cuts it off, withdraws its ports, and lets `address` be used again. Its
    /// interface vanishes with the container's namespace. Releasing what is released does nothing.
    pub async fn release(&self, address: Ipv4Addr) {
        let Some(leaving) = self.pool.addresses.leave(address) else {
            return;
        };
        let cut_off = error::blocking("cutting a container off", move || {
            host::cut_off(&mut Netlink::route()?, address)
        });
        if let Err(error) = cut_off.await.and(self.withdraw(address).await) {
            // Another container with this address would be reached by these ports.
            tracing::warn!(error = %host_core::chain(&error), %address, "an address cannot be used again");
        } else {
            leaving.done();
        }
    }

    /// Ends the tasks and removes everything: ready networks, the table, the block's route, forwarding. While
    /// containers have addresses, all but the ready networks stay, for them and for the next service.
    ///
    /// # Errors
    /// What could not be removed; the rest is. Another call tries again.
    pub async fn close(&self) -> Result<(), PluginError> {
        let mut closed = self.closed.lock().await;
        if !*closed {
            self.tear_down().await?;
            *closed = true;
        }
        Ok(())
    }

    async fn tear_down(&self) -> Result<(), PluginError> {
        self.stop.cancel();
        self.pool.close();
        let settled = self.pool.settle().await;
        let pool = Arc::clone(&self.pool);
        let has_container = move |name: &str| {
            pool.key.address(pool.block, name).is_some_and(|address| pool.addresses.is_taken(address))
        };
        let unlinked = remove_unused(&self.pool.key, self.pool.block, has_container).await;
        // Ended by an earlier call is fine.
        self.writer.end().await;
        self.tasks.close();
        let ended = timeout(error::DEADLINE, self.tasks.wait()).await;
        let settled = settled.and(ended.map_err(|_| error::late("ending the tasks of containers' networks")));
        if self.pool.addresses.used() > 0 {
            return settled.and(unlinked);
        }
        let lock = forwarding::lock().await?;
        let removed = self.nft.apply(&self.rules.remove()).await;
        let forwarding = forwarding::put_back(&self.nft, &self.pool.key.table(), &self.state_dir).await;
        drop(lock);
        let released = release_block(self.pool.block, &self.state_dir).await;
        settled.and(unlinked).and(removed).and(forwarding).and(released)
    }

    /// The text for a container's `/etc/resolv.conf`: the configured name servers, or those of the host that a
    /// container can reach, with the host's search list. A server on a link-local address that was not there when the
    /// networks were opened is reached after the next opening.
    pub async fn resolv_conf(&self) -> Result<String, PluginError> {
        let dns = self.config.dns.clone();
        error::blocking("reading resolv.conf", move || Ok(resolv::text(&dns))).await
    }

    /// The block containers' addresses come from.
    pub fn block(&self) -> Subnet {
        self.pool.block
    }

    /// The host's interface of the container with `address`.
    pub fn interface(&self, address: Ipv4Addr) -> String {
        self.pool.key.interface(self.pool.block, address)
    }

    /// How many networks are ready to be taken.
    pub fn ready(&self) -> usize {
        self.pool.len()
    }

    /// How many transactions changed, or tried to change, the table since it was opened.
    pub fn transactions(&self) -> u64 {
        self.writer.transactions()
    }
}

fn check(config: &Config) -> Result<(), PluginError> {
    if let Some(server) = config.dns.iter().find(|server| server.is_ipv6() || server.is_loopback()) {
        let message = format!(
            "runtime.oci.network.dns has {server}, which no container can reach; name an IPv4 server that is not on \
             loopback"
        );
        return Err(PluginError::new(ErrorKind::Invalid, message));
    }
    // IPv4's least, and what veth takes at most.
    if config.mtu.is_some_and(|mtu| !(68..=65535).contains(&mtu)) {
        let message = "runtime.oci.network.mtu must be between 68 and 65535 bytes";
        return Err(PluginError::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

async fn claim(
    config: &Config,
    key: &Key,
    state_dir: &Path,
    adopted: &[Adopted],
) -> Result<Subnet, PluginError> {
    let (configured, key, state_dir) = (config.subnet, key.clone(), state_dir.to_owned());
    let adopted: Vec<_> = adopted.iter().map(|container| container.address).collect();
    let claim = move || block::claim(configured, &key, &state_dir, &adopted);
    error::off_runtime("claiming addresses", claim).await
}

async fn set_up(
    nft: &Nft,
    config: &Config,
    key: &Key,
    block: Subnet,
    state_dir: &Path,
    adopted: &[Adopted],
) -> Result<(Rules, u32, Ports), PluginError> {
    let known: Vec<_> = adopted.iter().map(|container| key.interface(block, container.address)).collect();
    remove_unused(key, block, move |name| known.iter().any(|known| known == name)).await?;
    let mtu = match config.mtu {
        Some(mtu) => mtu,
        None => error::blocking("asking for the uplink", || host::uplink_mtu(&mut Netlink::route()?)).await?,
    };
    let lock = forwarding::lock().await?;
    let before = forwarding::is_ours(nft, &key.table(), state_dir).await?;
    let (no_router, took_redirects) = (before.is_some(), before == Some(true));
    let dns = config.dns.clone();
    let name_servers =
        error::blocking("reading resolv.conf", move || Ok(resolv::link_local(&resolv::text(&dns)))).await?;
    let rules = Rules { key: key.clone(), block, no_router, took_redirects, name_servers };
    let mut ports = Ports::default();
    for container in adopted {
        ports.adopt(container.address, &container.ports);
    }
    nft.apply(&rules.replace(&ports.all())).await?;
    forwarding::turn_on()?;
    drop(lock);
    Ok((rules, mtu, ports))
}

/// Removes interfaces of ours that no container has: ready networks', or held by somebody after a service was
/// killed.
async fn remove_unused(
    key: &Key,
    block: Subnet,
    has_container: impl Fn(&str) -> bool + Send + 'static,
) -> Result<(), PluginError> {
    let prefix = key.interface_prefix();
    error::blocking("removing interfaces", move || {
        let mut netlink = Netlink::route()?;
        let mut names = host::links(&mut netlink, &prefix, block)?;
        names.retain(|name| !has_container(name));
        host::delete_links(&mut netlink, &names)
    })
    .await
}

/// After a failed opening without containers; what cannot be undone is found by the next one.
async fn undo(nft: &Nft, key: &Key, block: Subnet, state_dir: &Path) {
    let (key, name_servers) = (key.clone(), Vec::new());
    let rules = Rules { key, block, no_router: false, took_redirects: false, name_servers };
    let _lock = forwarding::lock().await;
    let _ = nft.apply(&rules.remove()).await;
    let _ = forwarding::put_back(nft, &rules.key.table(), state_dir).await;
    let _ = release_block(block, state_dir).await;
}

async fn release_block(block: Subnet, state_dir: &Path) -> Result<(), PluginError> {
    let state_dir = state_dir.to_owned();
    let release = move || block::release(block, &state_dir);
    error::off_runtime("giving addresses back", release).await
}
