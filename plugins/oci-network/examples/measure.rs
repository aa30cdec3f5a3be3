//! What networks cost, on a host of its own: `cargo run --release -p oci-network --example measure` as root.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use host_core::runtime::{PortMapping, Protocol};
use nix::sched::{CloneFlags, unshare};
use oci_network::{Config, Network, Networks};
use tokio::task::JoinSet;

const ROUNDS: u16 = 100;
const AT_ONCE: u16 = 50;

fn main() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure())
}

#[expect(clippy::print_stdout, reason = "a measurement prints its result")]
fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:<44} p50 {:7.2} ms   p95 {:7.2} ms", at(50), at(95));
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    (work.await, started.elapsed())
}

fn ports(n: u16) -> [PortMapping; 3] {
    let port =
        |host, protocol| PortMapping { host_ip: Ipv4Addr::UNSPECIFIED.into(), host, container: 80, protocol };
    [port(20_000 + n, Protocol::Tcp), port(21_000 + n, Protocol::Tcp), port(22_000 + n, Protocol::Udp)]
}

async fn measure() -> anyhow::Result<()> {
    let state = tempfile::tempdir()?;
    let open = async |ready| {
        Networks::open(Config { ready, ..Config::default() }, "00000001", state.path(), Vec::new()).await
    };
    let networks = std::sync::Arc::new(open(0).await?);
    let made = one_by_one(&networks).await?;
    at_once(&networks, made).await?;
    networks.close().await?;
    let pooled = open(4).await?;
    from_the_pool(&pooled).await?;
    pooled.close().await?;
    Ok(())
}

async fn one_by_one(networks: &Networks) -> anyhow::Result<Vec<Network>> {
    let [mut make, mut publish, mut withdraw, mut release] = [const { Vec::new() }; 4];
    let mut made = Vec::new();
    for n in 0..ROUNDS {
        let (network, time) = timed(networks.take()).await;
        let network = network?;
        make.push(time);
        let (published, time) = timed(networks.publish(network.address, &ports(n))).await;
        published?;
        publish.push(time);
        let (withdrawn, time) = timed(networks.withdraw(network.address)).await;
        withdrawn?;
        withdraw.push(time);
        if n >= AT_ONCE {
            release.push(timed(networks.release(network.address)).await.1);
        } else {
            made.push(network);
        }
    }
    report("make one network", make);
    report("publish three ports", publish);
    report("withdraw three ports", withdraw);
    report("release", release);
    Ok(made)
}

async fn at_once(networks: &std::sync::Arc<Networks>, mut made: Vec<Network>) -> anyhow::Result<()> {
    let before = networks.transactions();
    let mut tasks = JoinSet::new();
    for (network, n) in made.iter().zip(0..) {
        let (networks, address) = (std::sync::Arc::clone(networks), network.address);
        tasks.spawn(async move { timed(networks.publish(address, &ports(n))).await });
    }
    let (results, whole) = timed(tasks.join_all()).await;
    let times = results.into_iter().map(|(published, time)| published.map(|()| time));
    report("publish three ports each, 50 at once", times.collect::<Result<_, _>>()?);
    report("… until the last, in few transactions", vec![whole]);
    assert!(networks.transactions() - before < u64::from(AT_ONCE));
    let mut tasks = JoinSet::new();
    for _ in 0..AT_ONCE {
        let networks = std::sync::Arc::clone(networks);
        tasks.spawn(async move { timed(networks.take()).await });
    }
    let (results, whole) = timed(tasks.join_all()).await;
    let mut times = Vec::new();
    for (network, time) in results {
        times.push(time);
        made.push(network?);
    }
    report("make 50 networks at once", times);
    report("… until the last", vec![whole]);
    let mut tasks = JoinSet::new();
    for network in &made {
        let (networks, address) = (std::sync::Arc::clone(networks), network.address);
        tasks.spawn(async move { networks.release(address).await });
    }
    report("release 100 at once, until the last", vec![timed(tasks.join_all()).await.1]);
    Ok(())
}

async fn from_the_pool(networks: &Networks) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        while networks.ready() == 0 {
            tokio::task::yield_now().await;
        }
        let (network, time) = timed(networks.take()).await;
        times.push(time);
        networks.release(network?.address).await;
    }
    report("take from the pool", times);
    Ok(())
}
