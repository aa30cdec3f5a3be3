//! The task that owns the table.
//!
//! ```text
//!   publish, withdraw ──► channel ──► gather a batch ──► bind ports ──► one transaction ──► answer each
//!                                        ▲                                   │ failed
//!                                        └── what arrives meanwhile waits    ▼
//!                                                            each alone, nft replacing the table
//! ```
//!
//! Once a second it looks whether the table is still there: without
//! it nothing keeps containers from the host and from each other. A lost one is replaced whole, as is one in doubt.
//!
//! A batch holds at most one change per address, and never gives a port away that it withdraws, so that its
//! order does not matter. A request whose caller has gone is applied like any other: the caller undoes it by
//! withdrawing, which comes later on the same channel.

use std::{
    collections::{HashSet, VecDeque},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use host_core::{
    PluginError,
    runtime::{PortMapping, Protocol},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    elements, error,
    netlink::Netlink,
    nft::{DEADLINE, Nft},
    ports::{Bound, HostPort, Ports, Published, host_port},
    rules::Rules,
};

/// Changes waiting for the one that is being applied.
const QUEUE: usize = 1024;

/// Between two looks at whether the table is still there; one takes microseconds.
const LOOK: Duration = Duration::from_secs(1);

type Answer = Result<(), PluginError>;

/// What to change.
#[derive(Debug)]
pub(crate) enum Change {
    Publish(Ipv4Addr, Vec<PortMapping>),
    Withdraw(Ipv4Addr),
}

impl Change {
    fn address(&self) -> Ipv4Addr {
        match self {
            Self::Publish(address, _) | Self::Withdraw(address) => *address,
        }
    }
}

#[derive(Debug)]
enum Message {
    Change(Change, oneshot::Sender<Answer>),
    /// The last; the table stays as it is.
    End(oneshot::Sender<Answer>),
}

/// Where changes are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    messages: mpsc::Sender<Message>,
    transactions: Arc<AtomicU64>,
}

impl Writer {
    /// A handle, and the task to run. `ports` are in the table already. UDP ports that changed go to `flows`.
    pub(crate) fn new(
        nft: Nft,
        rules: Rules,
        ports: Ports,
        flows: mpsc::UnboundedSender<HashSet<u16>>,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (messages, inbox) = mpsc::channel(QUEUE);
        let transactions = Arc::new(AtomicU64::new(0));
        let state = State {
            nft,
            rules,
            ports,
            flows,
            socket: None,
            in_doubt: false,
            transactions: Arc::clone(&transactions),
        };
        (Self { messages, transactions }, state.run(inbox))
    }

    /// Returns when it is in force.
    pub(crate) async fn change(&self, change: Change) -> Answer {
        self.send(|done| Message::Change(change, done)).await
    }

    /// Ends the task; returns when it changes nothing any more.
    pub(crate) async fn end(&self) {
        let _ = self.send(Message::End).await;
    }

    /// How many transactions were tried.
    pub(crate) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    async fn send(&self, message: impl FnOnce(oneshot::Sender<Answer>) -> Message) -> Answer {
        let (done, wait) = oneshot::channel();
        self.messages.send(message(done)).await.map_err(|_| error::closed())?;
        wait.await.unwrap_or_else(|_| Err(error::closed()))
    }
}

/// A change that is possible, ready to be written.
struct Step {
    change: Prepared,
    done: oneshot::Sender<Answer>,
}

enum Prepared {
    Publish(Bound),
    Withdraw(Ipv4Addr, Vec<Published>),
}

struct State {
    nft: Nft,
    rules: Rules,
    ports: Ports,
    /// Kept open; none before the first change and after a failed one.
    socket: Option<Netlink>,
    /// UDP ports whose flows are to be forgotten.
    flows: mpsc::UnboundedSender<HashSet<u16>>,
    /// The table may differ from `ports`: the next transaction replaces it.
    in_doubt: bool,
    transactions: Arc<AtomicU64>,
}

impl State {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) {
        let mut waiting = VecDeque::new();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // While changes keep coming, too.
            tokio::select! {
                biased;
                _ = look.tick() => {
                    self.heal().await;
                    continue;
                }
                message = inbox.recv(), if waiting.is_empty() => match message {
                    Some(message) => waiting.push_back(message),
                    None => return,
                },
                () = std::future::ready(()), if !waiting.is_empty() => {}
            }
            while let Ok(message) = inbox.try_recv() {
                waiting.push_back(message);
            }
            let batch = self.gather(&mut waiting);
            if !batch.is_empty() {
                self.apply(batch).await;
            } else if let Some(Message::End(done)) = waiting.pop_front() {
                let _ = done.send(Ok(()));
                return;
            }
        }
    }

    /// The changes at the front of the queue that can go together.
    fn gather(&self, waiting: &mut VecDeque<Message>) -> Vec<(Change, oneshot::Sender<Answer>)> {
        let (mut addresses, mut withdrawn) = (HashSet::new(), HashSet::<HostPort>::new());
        let mut batch = Vec::new();
        while let Some(Message::Change(change, _)) = waiting.front() {
            let again = !addresses.insert(change.address());
            let changes_hands = match change {
                Change::Publish(_, ports) => ports.iter().any(|port| withdrawn.contains(&host_port(port))),
                Change::Withdraw(address) => {
                    withdrawn.extend(self.ports.of(*address).iter().map(|one| host_port(&one.port)));
                    false
                }
            };
            if again || changes_hands {
                break;
            }
            if let Some(Message::Change(change, done)) = waiting.pop_front() {
                batch.push((change, done));
            }
        }
        batch
    }

    async fn apply(&mut self, batch: Vec<(Change, oneshot::Sender<Answer>)>) {
        let steps: Vec<_> =
            batch.into_iter().filter_map(|(change, done)| self.prepare(change, done)).collect();
        if steps.is_empty() {
            return;
        }
        match self.write(&steps).await {
            Ok(()) => self.commit(steps),
            Err(error) => self.apply_singly(steps, error).await,
        }
    }

    /// `None` when it is answered already: nothing to do, or impossible.
    fn prepare(&self, change: Change, done: oneshot::Sender<Answer>) -> Option<Step> {
        let prepared = match change {
            Change::Publish(address, ports) => self.ports.bind(address, &ports).map(|bound| {
                let nothing_new = bound.published().next().is_none();
                (!nothing_new).then_some(Prepared::Publish(bound))
            }),
            Change::Withdraw(address) => {
                let published = self.ports.of(address);
                Ok((!published.is_empty()).then_some(Prepared::Withdraw(address, published)))
            }
        };
        match prepared {
            Ok(Some(change)) => Some(Step { change, done }),
            Ok(None) => {
                let _ = done.send(Ok(()));
                None
            }
            Err(error) => {
                let _ = done.send(Err(error));
                None
            }
        }
    }

    async fn write(&mut self, steps: &[Step]) -> Answer {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        let written = if self.in_doubt {
            self.nft.apply(&self.whole(steps)).await
        } else {
            self.difference(steps).await
        };
        self.in_doubt = written.is_err();
        written
    }

    /// Only what changes.
    async fn difference(&mut self, steps: &[Step]) -> Answer {
        let (mut delete, mut add) = (Vec::new(), Vec::new());
        for step in steps {
            match &step.change {
                Prepared::Publish(bound) => add.extend(bound.published()),
                Prepared::Withdraw(_, published) => delete.extend(published),
            }
        }
        let (socket, table) = (self.socket.take(), self.rules.key.table());
        let work = move || {
            let mut socket = socket.map_or_else(Netlink::netfilter, Ok)?;
            elements::change(&mut socket, &table, &delete, &add).map(|()| socket)
        };
        let done = timeout(DEADLINE, error::blocking("changing published ports", work)).await;
        self.socket = Some(done.unwrap_or_else(|_| Err(error::late("changing published ports")))?);
        Ok(())
    }

    /// Puts the table back if somebody removed it, or a transaction left it in doubt.
    async fn heal(&mut self) {
        if !self.in_doubt {
            match self.is_there().await {
                Ok(true) => return,
                Ok(false) => tracing::warn!(
                    table = self.rules.key.table(),
                    "somebody removed the containers' nftables table; it is put back"
                ),
                Err(error) => {
                    tracing::warn!(error = %host_core::chain(&error), "the containers' table cannot be looked at");
                    return;
                }
            }
        }
        self.in_doubt = true;
        match self.write(&[]).await {
            Ok(()) => tracing::info!("the containers' nftables table is whole again"),
            Err(error) => {
                tracing::warn!(error = %host_core::chain(&error), "the containers' table cannot be put back yet");
            }
        }
    }

    async fn is_there(&mut self) -> Result<bool, PluginError> {
        const DOING: &str = "looking at the containers' table";
        let (socket, table) = (self.socket.take(), self.rules.key.table());
        let work = move || {
            let mut socket = socket.map_or_else(Netlink::netfilter, Ok)?;
            elements::is_there(&mut socket, &table).map(|there| (there, socket))
        };
        let done = timeout(DEADLINE, error::blocking(DOING, work)).await;
        let (there, socket) = done.unwrap_or_else(|_| Err(error::late(DOING)))?;
        self.socket = Some(socket);
        Ok(there)
    }

    /// The table as it is to be, whatever it was: another program may have flushed it.
    fn whole(&self, steps: &[Step]) -> String {
        let mut all = self.ports.all();
        for step in steps {
            match &step.change {
                Prepared::Publish(bound) => all.extend(bound.published()),
                Prepared::Withdraw(address, _) => all.retain(|one| one.address != *address),
            }
        }
        self.rules.replace(&all)
    }

    /// One bad change must not fail the others. Each try replaces the table, so that a lost table is healed too.
    async fn apply_singly(&mut self, steps: Vec<Step>, error: PluginError) {
        tracing::warn!(error = %host_core::chain(&error), changes = steps.len(),
            "a transaction failed; its changes are tried one by one");
        for step in steps {
            self.in_doubt = true;
            match self.write(std::slice::from_ref(&step)).await {
                Ok(()) => self.commit(vec![step]),
                Err(error) => drop(step.done.send(Err(error))),
            }
        }
    }

    fn commit(&mut self, steps: Vec<Step>) {
        let mut datagrams = HashSet::new();
        let mut udp = |published: &Published| {
            if published.port.protocol == Protocol::Udp {
                datagrams.insert(published.port.host);
            }
        };
        for step in steps {
            match step.change {
                Prepared::Publish(bound) => {
                    bound.published().for_each(|one| udp(&one));
                    self.ports.commit(bound);
                }
                Prepared::Withdraw(address, published) => {
                    published.iter().for_each(&mut udp);
                    self.ports.forget(address);
                }
            }
            let _ = step.done.send(Ok(()));
        }
        if !datagrams.is_empty() {
            let _ = self.flows.send(datagrams);
        }
    }
}
