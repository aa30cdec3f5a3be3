//! The simulated engine's state, and every change of it. Nothing here waits.
//!
//! ```text
//!  create ──▶ Created ──start──▶ Running ──exit──▶ Exited ──start──▶ Running
//!                │                  │                 │
//!                └─────remove───────┴──(killed)───────┴──▶ gone
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use host_core::{
    ContainerName, ErrorKind, PluginError,
    runtime::{
        Container, ContainerChange, ContainerEvent, ContainerId, ContainerRef, ContainerSpec, ContainerState,
        Exit, Network, PortMapping, Protocol, Result, RuntimeEvent, Selector,
    },
};
use tokio::task::AbortHandle;

use crate::{
    application::Behaviour,
    config::Config,
    faults::{Op, Rule, Struck},
    images::Images,
};

/// 128 + SIGKILL.
pub(crate) const KILLED: Exit = Exit { code: Some(137), oom: false };

/// The application has heeded SIGTERM.
const GOODBYE: Exit = Exit { code: Some(0), oom: false };

/// Everything the engine knows, and what the script wants of it.
#[derive(Debug)]
pub(crate) struct Model {
    /// In the order of their creation.
    containers: BTreeMap<ContainerId, Simulated>,
    created: u64,
    pub(crate) images: Images,
    subscribers: Vec<Subscriber>,
    pub(crate) taken_ports: BTreeSet<(Protocol, u16)>,
    pub(crate) is_up: bool,
    pub(crate) started_at: SystemTime,
    delays: BTreeMap<Op, Duration>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) calls: BTreeMap<Op, u64>,
    pub(crate) lifetimes: Vec<Lifetime>,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Simulated {
    pub(crate) spec: ContainerSpec,
    pub(crate) state: ContainerState,
    pub(crate) log: Vec<u8>,
    /// What runs in it, while it runs.
    program: Option<AbortHandle>,
}

/// How long containers run.
#[derive(Debug)]
pub(crate) struct Lifetime {
    pub(crate) container: Option<ContainerName>,
    pub(crate) after: Duration,
    pub(crate) exit: Exit,
}

#[derive(Debug)]
struct Subscriber {
    selector: Selector,
    events: UnboundedSender<Result<RuntimeEvent>>,
}

impl Model {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            containers: BTreeMap::new(),
            created: 0,
            images: Images::new(config.images),
            subscribers: Vec::new(),
            taken_ports: BTreeSet::new(),
            is_up: true,
            started_at: SystemTime::now(),
            delays: config.delays,
            rules: Vec::new(),
            calls: BTreeMap::new(),
            lifetimes: Vec::new(),
        }
    }

    /// Counts a call and tells what strikes it.
    pub(crate) fn strike(&mut self, op: Op, container: Option<&str>) -> Struck {
        *self.calls.entry(op).or_default() += 1;
        let name = container.map(|container| match self.by_text(container) {
            Some((_, found)) => found.spec.name.to_string(),
            None => container.to_owned(),
        });
        let mut struck =
            Struck { delay: self.delays.get(&op).copied().unwrap_or_default(), ..Struck::default() };
        for rule in &mut self.rules {
            if rule.strikes(op, name.as_deref()) {
                struck.add(rule.fault);
            }
        }
        struck
    }

    /// The container that an id or a name says.
    pub(crate) fn find(&self, container: &ContainerRef) -> Option<(&ContainerId, &Simulated)> {
        self.by_text(container.as_str())
    }

    fn by_text(&self, text: &str) -> Option<(&ContainerId, &Simulated)> {
        self.containers.iter().find(|(id, found)| id.0 == text || found.spec.name.as_str() == text)
    }

    fn found(&self, container: &ContainerRef) -> Result<ContainerId> {
        let found = self.find(container).map(|(id, _)| id.clone());
        found.ok_or_else(|| {
            let text = format!("there is no container {}", container.as_str());
            PluginError::new(ErrorKind::NotFound, text)
        })
    }

    pub(crate) fn get(&self, id: &ContainerId) -> Option<&Simulated> {
        self.containers.get(id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&ContainerId, &Simulated)> {
        self.containers.iter()
    }

    pub(crate) fn create(&mut self, spec: &ContainerSpec) -> Result<ContainerId> {
        if self.by_text(spec.name.as_str()).is_some() {
            let text = format!("the name {} is taken", spec.name);
            return Err(PluginError::new(ErrorKind::Conflict, text));
        }
        if !self.images.has(&spec.image) {
            let text = format!("there is no image {}", spec.image);
            return Err(PluginError::new(ErrorKind::NotFound, text));
        }
        if spec.network != Network::Bridge && !spec.ports.is_empty() {
            let text = "ports can only be published with network = \"bridge\"";
            return Err(PluginError::new(ErrorKind::Invalid, text));
        }
        self.created += 1;
        let id = ContainerId(format!("{:064x}", self.created));
        let container =
            Simulated { spec: spec.clone(), state: ContainerState::Created, log: Vec::new(), program: None };
        self.containers.insert(id.clone(), container);
        self.tell(&id, ContainerChange::Created);
        Ok(id)
    }

    /// `None` when it runs already.
    pub(crate) fn start(&mut self, container: &ContainerRef) -> Result<Option<ContainerId>> {
        let id = self.found(container)?;
        let Some(starting) = self.containers.get(&id) else {
            return Ok(None);
        };
        if starting.state == ContainerState::Running {
            return Ok(None);
        }
        if let Some(port) = starting.spec.ports.iter().find(|port| self.is_taken(port)) {
            let text = format!("{}:{}/{} is taken", port.host_ip, port.host, port.protocol);
            return Err(PluginError::new(ErrorKind::AddressInUse, text));
        }
        self.with(&id, |starting| starting.state = ContainerState::Running);
        self.tell(&id, ContainerChange::Started);
        Ok(Some(id))
    }

    fn is_taken(&self, port: &PortMapping) -> bool {
        let clashes = |other: &PortMapping| {
            let same = (other.protocol, other.host) == (port.protocol, port.host);
            let both = other.host_ip.is_unspecified() || port.host_ip.is_unspecified();
            same && (both || other.host_ip == port.host_ip)
        };
        let running = self.containers.values().filter(|other| other.state == ContainerState::Running);
        self.taken_ports.contains(&(port.protocol, port.host))
            || running.flat_map(|other| &other.spec.ports).any(clashes)
    }

    /// What runs in it from now on; ends with it.
    pub(crate) fn set_program(&mut self, id: &ContainerId, program: AbortHandle) {
        let is_running = self.get(id).is_some_and(|found| found.state == ContainerState::Running);
        if is_running {
            self.with(id, |found| found.program = Some(program));
        } else {
            program.abort();
        }
    }

    /// Nothing happens to one that does not run.
    pub(crate) fn exit(&mut self, id: &ContainerId, exit: Exit) {
        let Some(ending) = self.containers.get_mut(id) else {
            return;
        };
        if ending.state != ContainerState::Running {
            return;
        }
        ending.state = ContainerState::Exited(exit);
        if let Some(program) = ending.program.take() {
            program.abort();
        }
        if exit.oom {
            self.tell(id, ContainerChange::Oom);
        }
        self.tell(id, ContainerChange::Exited(exit));
    }

    pub(crate) fn remove(&mut self, id: &ContainerId) {
        self.exit(id, KILLED);
        self.tell(id, ContainerChange::Removed);
        self.containers.remove(id);
    }

    /// Asks a container to end. Its id is returned if it runs on.
    pub(crate) fn terminate(&mut self, container: &ContainerRef) -> Option<ContainerId> {
        let (id, found) = self.find(container)?;
        if found.state != ContainerState::Running {
            return None;
        }
        let (id, heeds) = (id.clone(), Behaviour::of(&found.spec.command).heeds_sigterm);
        if !heeds {
            return Some(id);
        }
        self.exit(&id, GOODBYE);
        None
    }

    /// Without anybody being told.
    pub(crate) fn kill_all(&mut self) {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            self.exit(&id, KILLED);
        }
    }

    /// Without any event, as when the engine lost its own records.
    pub(crate) fn forget_all(&mut self) {
        for container in std::mem::take(&mut self.containers).into_values() {
            if let Some(program) = container.program {
                program.abort();
            }
        }
    }

    pub(crate) fn write(&mut self, id: &ContainerId, line: &str) {
        self.with(id, |found| {
            found.log.extend_from_slice(line.as_bytes());
            found.log.push(b'\n');
        });
    }

    /// Which log to read, and from which byte on.
    pub(crate) fn log_from(
        &self,
        container: &ContainerRef,
        tail: Option<u32>,
    ) -> Result<(ContainerId, usize)> {
        let id = self.found(container)?;
        let log = self.get(&id).map(|found| found.log.as_slice()).unwrap_or_default();
        let from = tail.map_or(0, |lines| start_of_last_lines(log, lines));
        Ok((id, from))
    }

    fn with(&mut self, id: &ContainerId, change: impl FnOnce(&mut Simulated)) {
        if let Some(found) = self.containers.get_mut(id) {
            change(found);
        }
    }

    pub(crate) fn subscribe(&mut self, selector: &Selector) -> UnboundedReceiver<Result<RuntimeEvent>> {
        let (events, receiver) = unbounded();
        self.subscribers.push(Subscriber { selector: selector.clone(), events });
        receiver
    }

    fn tell(&mut self, id: &ContainerId, change: ContainerChange) {
        let Some(changed) = self.containers.get(id) else {
            return;
        };
        let labels = &changed.spec.labels;
        self.subscribers.retain(|subscriber| {
            if !subscriber.selector.matches(labels) {
                return !subscriber.events.is_closed();
            }
            let event = ContainerEvent { id: id.clone(), labels: labels.clone(), change };
            let event = Ok(RuntimeEvent::Container(event));
            subscriber.events.unbounded_send(event).is_ok()
        });
    }

    pub(crate) fn tell_gap(&mut self) {
        self.subscribers.retain(|subscriber| subscriber.events.unbounded_send(Ok(RuntimeEvent::Gap)).is_ok());
    }

    /// Ends every event stream with an error.
    pub(crate) fn disconnect(&mut self) {
        for subscriber in self.subscribers.drain(..) {
            let error = PluginError::new(ErrorKind::Unavailable, "the stream of events was cut");
            // A stream that nobody reads any more needs no end.
            let _ = subscriber.events.unbounded_send(Err(error));
        }
    }

    /// How long this container runs, and how it ends, if that is decided.
    pub(crate) fn lifetime(&self, id: &ContainerId) -> Option<(Duration, Exit)> {
        let name = &self.get(id)?.spec.name;
        let applies = |lifetime: &&Lifetime| lifetime.container.as_ref().is_none_or(|named| named == name);
        let lifetime = self.lifetimes.iter().rev().find(applies)?;
        Some((lifetime.after, lifetime.exit))
    }
}

impl Simulated {
    pub(crate) fn seen(&self, id: &ContainerId) -> Container {
        Container {
            id: id.clone(),
            name: self.spec.name.to_string(),
            labels: self.spec.labels.clone(),
            state: self.state.clone(),
            pid: None,
        }
    }
}

fn start_of_last_lines(log: &[u8], lines: u32) -> usize {
    let wanted: usize =
        log.rsplit(|byte| *byte == b'\n').skip(1).take(lines as usize).map(|line| line.len() + 1).sum();
    log.len() - wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_counted_from_the_end() {
        let log = b"one\ntwo\nthree\n";
        for (lines, start) in [(0, 14), (1, 8), (2, 4), (3, 0), (9, 0)] {
            assert_eq!(start_of_last_lines(log, lines), start, "{lines} lines");
        }
        assert_eq!(start_of_last_lines(b"", 3), 0);
    }
}
