//! How soon a host begins what the database was told, and what a fleet costs one database:
//! `cargo bench -p pubsub-postgres`. docs/performance.md and the crate's README say what the figures mean.
//!
//! The database, the control plane and every host share this machine, so the figures are upper bounds. The server syncs
//! its data as in production. `BENCH_HOSTS` is how many hosts the fleet has.
//!
//! The time begins with the commit as the server notes it, before it syncs. When the INSERT is answered would be the wrong
//! beginning: the server first signals every session that listens, and a host may have begun long before.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use futures::StreamExt;
use host_core::{
    InstanceName,
    pubsub::{Claim, Heartbeat, MandelboxRow, MandelboxStatus, PubSub, StaleAfter},
    registry::{Context, Role},
};
use host_tests::postgres::{Cluster, Database, Setup};
use pubsub_postgres::{Config, PostgresPubSub, migrate};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_postgres::{Client, NoTls};

const ROUNDS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    let hosts = std::env::var("BENCH_HOSTS").map_or(Ok(500), |text| text.parse())?;
    let processors = std::thread::available_parallelism()?;
    println!("PostgreSQL, {processors} processors, shared by the database and {hosts} hosts\n");
    println!("{:<52}{:>7}{:>10}{:>10}{:>10}", "ms", "n", "p50", "p99", "max");
    let one = measure(1, (3.0, 15.0)).await?;
    let fleet = measure(hosts, (f64::INFINITY, 50.0)).await?;
    println!("\nCPU of the database, ms{:>29}{:>14}", "1 host", format!("{hosts} hosts"));
    for ((what, alone), (_, among)) in one.iter().zip(&fleet) {
        println!("{what:<38}{:>14.3}{:>14.3}", ms(*alone), ms(*among));
    }
    carries(&fleet);
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// From the costs of single operations to what one core of a database can do.
fn carries(costs: &[(&str, Duration)]) {
    let cost =
        |name: &str| costs.iter().find(|(what, _)| *what == name).map_or(0.0, |(_, cost)| cost.as_secs_f64());
    let at_rest = cost("heartbeat") / 60.0 + cost("sweep for stale rows") / 10.0 + cost("poll") / 30.0;
    println!(
        "\na host at rest takes {:.4} % of a core: one core carries {:.0}",
        at_rest * 100.0,
        1.0 / at_rest
    );
    println!(
        "one core carries {:.0} spin-ups a second among that many hosts",
        1.0 / cost("spin-up, from row to no row")
    );
}

/// A database with so many hosts that listen.
struct Fleet {
    cluster: Cluster,
    client: Client,
    hosts: Vec<(InstanceName, Arc<PostgresPubSub>)>,
    begun: mpsc::UnboundedReceiver<(String, f64)>,
    gone: mpsc::UnboundedReceiver<()>,
    wake_ups: Arc<AtomicU64>,
    /// Connections and hosts.
    _tasks: JoinSet<Result<()>>,
    _state: tempfile::TempDir,
}

type Costs = Vec<(&'static str, Duration)>;

/// Prints how soon claims begin; returns what operations cost the database.
async fn measure(hosts: usize, goals: (f64, f64)) -> Result<Costs> {
    let mut fleet = Fleet::new(hosts).await?;
    fleet.rounds(100, 1).await?;
    let before = fleet.wake_ups.load(Ordering::Relaxed);
    let (commit, sent) = fleet.rounds(ROUNDS, 1).await?;
    let woken = fleet.wake_ups.load(Ordering::Relaxed) - before;
    row(&format!("commit → claim begun, {hosts} host(s)"), &commit);
    row("  from when the INSERT was sent", &sent);
    let (at_once, _) = fleet.rounds(ROUNDS, 8).await?;
    row("  commit → claim begun, 8 INSERTs at once", &at_once);
    let (p50, p99) = (percentile(&commit, 0.5), percentile(&commit, 0.99));
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let met = if p50 < goals.0 && p99 < goals.1 { "met" } else { "MISSED" };
    println!(
        "  goal p50 < {} ms, p99 < {} ms: {met} at load {load}; {:.2} reads a spin-up in the whole fleet",
        goals.0,
        goals.1,
        per(woken, ROUNDS)
    );
    fleet.costs().await
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn per(count: u64, rounds: usize) -> f64 {
    count as f64 / rounds as f64
}

impl Fleet {
    async fn new(count: usize) -> Result<Self> {
        let settings = [
            "fsync = on",
            "full_page_writes = on",
            "max_connections = 3000",
            "track_commit_timestamp = on",
            "shared_buffers = 256MB",
        ];
        let cluster = Cluster::scratch_with(Setup { settings: &settings, ..Setup::default() }).await?;
        let database = cluster.postgres();
        migrate(&config(&database)?, false).await?;
        let mut tasks = JoinSet::new();
        let (client, connection) = tokio_postgres::connect(&database.url(), NoTls).await?;
        tasks.spawn(async { Ok(connection.await?) });
        let state = tempfile::tempdir()?;
        let (begun_in, begun) = mpsc::unbounded_channel();
        let (gone_in, gone) = mpsc::unbounded_channel();
        let (ready_in, mut ready) = mpsc::unbounded_channel();
        let wake_ups = Arc::new(AtomicU64::new(0));
        let mut hosts = Vec::new();
        for n in 0..count {
            let host: InstanceName = format!("host-{n}").parse()?;
            client.execute(INSERT_HOST, &[&host.as_str(), &now_ms()]).await?;
            let context =
                Context { state_dir: state.path().join(host.as_str()), local: false, role: Role::Service };
            let pubsub = Arc::new(PostgresPubSub::connect(&config(&database)?, &context).await?);
            let simulated = Simulated {
                host: host.clone(),
                pubsub: pubsub.clone(),
                begun: begun_in.clone(),
                gone: gone_in.clone(),
                ready: ready_in.clone(),
                wake_ups: wake_ups.clone(),
            };
            tasks.spawn(simulated.run());
            hosts.push((host, pubsub));
        }
        for _ in 0..count {
            timeout(PATIENCE, ready.recv()).await?.context("a host that is ready")?;
        }
        Ok(Self { cluster, client, hosts, begun, gone, wake_ups, _tasks: tasks, _state: state })
    }

    /// Spins mandelboxes up on the hosts in turn, and waits until all rows are gone again. How long it took until each
    /// claim began, since the commit and since the INSERT was sent.
    async fn rounds(&mut self, rounds: usize, at_once: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let insert = self.client.prepare(INSERT_MANDELBOX).await?;
        let committed = self.client.prepare(COMMITTED_MS).await?;
        let (mut since_commit, mut since_sent) = (Vec::new(), Vec::new());
        for round in 0..rounds / at_once {
            let sent = unix_ms();
            let inserts = (0..at_once).map(|n| {
                let number = round * at_once + n;
                let (host, _) = &self.hosts[number % self.hosts.len()];
                let (client, insert) = (&self.client, &insert);
                async move {
                    let id = format!("m-{number}");
                    let row = client.query_one(insert, &[&id, &host.as_str(), &now_ms()]).await?;
                    anyhow::Ok((id, row.get::<_, String>(0)))
                }
            });
            let transactions: HashMap<_, _> =
                futures::future::try_join_all(inserts).await?.into_iter().collect();
            for _ in 0..at_once {
                let (id, begun) = timeout(PATIENCE, self.begun.recv()).await?.context("a host")?;
                let transaction = transactions.get(&id).context("a row of this round")?;
                let commit: f64 = self.client.query_one(&committed, &[transaction]).await?.get(0);
                since_commit.push(begun - commit);
                since_sent.push(begun - sent);
            }
            for _ in 0..at_once {
                timeout(PATIENCE, self.gone.recv()).await?.context("a host")?;
            }
        }
        Ok((since_commit, since_sent))
    }

    async fn costs(&mut self) -> Result<Costs> {
        let mut costs = Costs::new();
        let before = self.cluster.cpu_time()?;
        self.rounds(ROUNDS, 1).await?;
        costs.push(("spin-up, from row to no row", self.spent(before, ROUNDS)?));

        let calls = (4 * ROUNDS).max(self.hosts.len());
        let each = |n: usize| &self.hosts[n % self.hosts.len()];
        let before = self.cluster.cpu_time()?;
        for n in 0..calls {
            let (host, pubsub) = each(n);
            pubsub.heartbeat(host, &Heartbeat { at_ms: now_ms(), ..Heartbeat::default() }).await?;
        }
        costs.push(("heartbeat", self.spent(before, calls)?));

        let after = StaleAfter { allocated: Duration::from_secs(10), connecting: Duration::from_secs(90) };
        let before = self.cluster.cpu_time()?;
        for n in 0..calls {
            let (host, pubsub) = each(n);
            pubsub.remove_stale(host, after, &[]).await?;
        }
        costs.push(("sweep for stale rows", self.spent(before, calls)?));

        let before = self.cluster.cpu_time()?;
        let read = self.client.prepare(READ).await?;
        for n in 0..calls {
            self.client.query(&read, &[&each(n).0.as_str()]).await?;
        }
        costs.push(("poll", self.spent(before, calls)?));
        Ok(costs)
    }

    fn spent(&self, before: Duration, times: usize) -> Result<Duration> {
        Ok((self.cluster.cpu_time()?.saturating_sub(before)) / u32::try_from(times)?)
    }
}

/// A host that ends what it has begun, each in a task of its own.
#[derive(Clone)]
struct Simulated {
    host: InstanceName,
    pubsub: Arc<PostgresPubSub>,
    begun: mpsc::UnboundedSender<(String, f64)>,
    gone: mpsc::UnboundedSender<()>,
    ready: mpsc::UnboundedSender<()>,
    wake_ups: Arc<AtomicU64>,
}

impl Simulated {
    async fn run(self) -> Result<()> {
        let mut states = self.pubsub.watch(&self.host).await?;
        states.next().await.context("a state")??;
        self.ready.send(())?;
        let mut owners = JoinSet::new();
        while let Some(state) = states.next().await {
            self.wake_ups.fetch_add(1, Ordering::Relaxed);
            for row in state?.mandelboxes {
                if row.status == MandelboxStatus::Allocated {
                    owners.spawn(self.clone().own(row, unix_ms()));
                }
            }
            while let Some(ended) = owners.try_join_next() {
                ended??;
            }
        }
        Ok(())
    }

    async fn own(self, row: MandelboxRow, begun: f64) -> Result<()> {
        if !matches!(self.pubsub.claim(&self.host, &row).await?, Claim::Won(_)) {
            return Ok(());
        }
        self.begun.send((row.id.to_string(), begun))?;
        for status in [MandelboxStatus::Running, MandelboxStatus::Dying] {
            self.pubsub.set_status(&self.host, &row.id, status).await?;
        }
        self.pubsub.remove(&self.host, &row.id).await?;
        Ok(self.gone.send(())?)
    }
}

fn config(database: &Database) -> Result<Config> {
    Config::with_url(database.url()).map_err(anyhow::Error::msg)
}

fn now_ms() -> i64 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(unix.as_millis()).unwrap_or(i64::MAX)
}

fn unix_ms() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

fn percentile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list of some thousand"
    )]
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

fn row(name: &str, samples: &[f64]) {
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(samples, share));
    println!("{name:<52}{:>7}{p50:>10.2}{p99:>10.2}{max:>10.2}", samples.len());
}

const INSERT_HOST: &str = "INSERT INTO cloud.instance_info VALUES \
    ('192.0.2.1', 'r', 'a', 't', 'i', 'c', $2, 0, $1, $2, 100, 0, 0, 'ACTIVE')";
const INSERT_MANDELBOX: &str = "INSERT INTO cloud.mandelbox_info VALUES ($1, 'u', $2, 'ALLOCATED', $3, 's') \
    RETURNING pg_current_xact_id()::text";
const COMMITTED_MS: &str =
    "SELECT (extract(epoch FROM pg_xact_commit_timestamp($1::text::xid)) * 1000)::float8";
const READ: &str = "SELECT i.status::text, m.* FROM cloud.instance_info i \
    LEFT JOIN cloud.mandelbox_info m ON m.instance_name = i.instance_name WHERE i.instance_name = $1";
