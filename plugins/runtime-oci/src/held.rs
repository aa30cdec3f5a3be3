//! One container as the service holds it: what it is, how it is, and the connection to its supervisor.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use host_core::{
    ErrorKind, PluginError,
    runtime::{Container, ContainerChange, ContainerId, ContainerState, Exit, PortMapping, Result},
};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest, unix::AsyncFd},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::Child,
    sync::{Mutex, mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cgroup::{Group, Layout},
    events::Hub,
    place::{self, Description, Root, name},
    protocol::{Asked, Phase, Said, Status},
};

/// How long a supervisor that was killed may take to be gone.
const KILLED: Duration = Duration::from_secs(5);

/// One container.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) id: ContainerId,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ports: Vec<PortMapping>,
    pub(crate) directory: PathBuf,
    /// What it has on disk.
    pub(crate) disk: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) group: Group,
    pub(crate) terminal: bool,
    /// Of a network of its own.
    pub(crate) address: OnceLock<Ipv4Addr>,
    /// What the image wants to be asked to end with.
    pub(crate) stop_signal: OnceLock<i32>,
    /// What changes it, one after another; what its supervisor is asked goes through here.
    pub(crate) gate: Mutex<Option<Link>>,
    /// Somebody removes it: whatever else is under way gives up.
    pub(crate) leaving: CancellationToken,
    /// It is removed.
    pub(crate) gone: AtomicBool,
    /// It need not have come so far as to take its lock.
    supervisor: OnceLock<(Pid, OwnedFd)>,
    view: watch::Sender<View>,
}

/// What is known of a container and its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) status: Status,
    /// Its supervisor is connected.
    pub(crate) supervised: bool,
}

impl Held {
    pub(crate) fn new(id: ContainerId, root: &Root, layout: &Layout, description: Description) -> Self {
        let Description { name, labels, address, ports, cgroup, terminal, stop_signal } = description;
        Self {
            directory: root.container(&id.0),
            disk: root.disk(&id.0),
            group: layout.group(&cgroup),
            id,
            name,
            labels,
            ports,
            cgroup,
            terminal,
            address: address.map(OnceLock::from).unwrap_or_default(),
            stop_signal: stop_signal.map(OnceLock::from).unwrap_or_default(),
            gate: Mutex::new(None),
            leaving: CancellationToken::new(),
            gone: AtomicBool::new(false),
            supervisor: OnceLock::new(),
            view: watch::Sender::new(View { status: Status::default(), supervised: false }),
        }
    }

    pub(crate) fn description(&self) -> Description {
        Description {
            name: self.name.clone(),
            labels: self.labels.clone(),
            address: self.address.get().copied(),
            ports: self.ports.clone(),
            cgroup: self.cgroup.clone(),
            terminal: self.terminal,
            stop_signal: self.stop_signal.get().copied(),
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(crate) fn phase(&self) -> Phase {
        self.view.borrow().status.phase
    }

    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    pub(crate) fn seen(&self) -> Container {
        seen(&self.id, &self.description(), self.phase())
    }

    /// Returns once its process has ended.
    pub(crate) async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.view().wait_for(|view| matches!(view.status.phase, Phase::Exited(_))).await;
    }

    /// Returns once its supervisor is gone, or was never there.
    pub(crate) async fn unsupervised(&self) {
        let _ = self.view().wait_for(|view| !view.supervised).await;
    }

    /// Its supervisor is gone and was the last to know: what runs without one is ended.
    pub(crate) fn lost(&self, hub: &Hub) {
        let on_disk = place::read_status(&self.directory);
        let phase = match on_disk.phase {
            Phase::Exited(exit) => Phase::Exited(exit),
            _ => Phase::Exited(Exit::default()),
        };
        self.learn(Status { phase, ..on_disk }, hub);
    }

    /// What its supervisor says, in order.
    fn learn(&self, status: Status, hub: &Hub) {
        let before = self.view.send_replace(View { status, supervised: true }).status;
        if status.oom_kills > before.oom_kills {
            hub.tell(self, ContainerChange::Oom);
        }
        match (before.phase, status.phase) {
            (Phase::Created { .. }, Phase::Running { .. }) => hub.tell(self, ContainerChange::Started),
            (Phase::Created { .. } | Phase::Running { .. }, Phase::Exited(exit)) => {
                hub.tell(self, ContainerChange::Exited(exit));
            }
            _ => {}
        }
    }

    /// What was so before this service came is no news.
    pub(crate) fn recall(&self, status: Status, supervised: bool) {
        self.view.send_replace(View { status, supervised });
    }

    /// Ends whatever of it still runs, its supervisor included, without asking. Blocks.
    pub(crate) fn destroy(&self) -> Result<()> {
        let fault = |what: &str| {
            let text = format!("container {}: {what}", self.name);
            move |error: io::Error| PluginError::new(ErrorKind::Internal, text).with_source(error)
        };
        let killed = match self.supervisor.get() {
            Some((pid, handle)) => kill_process(*pid, handle),
            None => kill_supervisor(&self.directory),
        };
        killed.map_err(fault("its supervisor cannot be killed"))?;
        self.group.destroy().map_err(fault("its processes cannot be killed"))
    }
}

/// A container as the trait tells it.
pub(crate) fn seen(id: &ContainerId, description: &Description, phase: Phase) -> Container {
    let (state, pid) = match phase {
        // Its process is there, and does nothing yet.
        Phase::Launching | Phase::Created { .. } => (ContainerState::Created, None),
        Phase::Running { pid } => (ContainerState::Running, Some(pid)),
        Phase::Exited(exit) => (ContainerState::Exited(exit), None),
    };
    Container {
        id: id.clone(),
        name: description.name.clone(),
        labels: description.labels.clone(),
        state,
        pid,
    }
}

/// What a supervisor is asked through.
#[derive(Debug)]
pub(crate) struct Link {
    asks: OwnedWriteHalf,
    answers: mpsc::Receiver<Said>,
}

impl Link {
    pub(crate) async fn ask(&mut self, asked: &Asked) -> Result<()> {
        let gone = || PluginError::new(ErrorKind::Unavailable, "the container's supervisor has ended");
        let mut line = serde_json::to_vec(asked).map_err(|error| {
            PluginError::new(ErrorKind::Internal, "a request cannot be written").with_source(error)
        })?;
        line.push(b'\n');
        self.asks.write_all(&line).await.map_err(|error| gone().with_source(error))?;
        match self.answers.recv().await {
            Some(Said::Done) => Ok(()),
            Some(Said::Refused { kind, message }) => Err(PluginError::new(kind.into(), message)),
            Some(Said::Now(_)) | None => Err(gone()),
        }
    }

    pub(crate) async fn signal(&mut self, signal: Signal) -> Result<()> {
        self.ask(&Asked::Signal(signal as i32)).await
    }
}

/// What listens to a supervisor until it ends.
pub(crate) struct Ear {
    held: Arc<Held>,
    /// Readable once the supervisor has ended; a container that waits for its start keeps the connection open.
    ended: AsyncFd<OwnedFd>,
    hears: OwnedReadHalf,
    answers: mpsc::Sender<Said>,
    child: Option<Child>,
}

/// Connects to the supervisor of `held`. The connection's other half has to be run.
pub(crate) async fn connect(held: &Arc<Held>, child: Option<Child>) -> io::Result<(Link, Ear)> {
    // Through the directory's descriptor, because a socket's path must be short.
    let directory = File::open(&held.directory)?;
    let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name::SOCKET);
    let supervisor = match &child {
        Some(child) => child.id().and_then(|id| Pid::from_raw(id.cast_signed())),
        None => place::supervisor(&held.directory)?,
    };
    let supervisor = supervisor.ok_or(io::ErrorKind::NotFound)?;
    let ended = pidfd_open(supervisor, PidfdFlags::empty())?;
    // Each container has one only.
    let _ = held.supervisor.set((supervisor, ended.try_clone()?));
    #[expect(
        deprecated,
        reason = "unsound with what does not own its descriptor only, and the replacement is unsafe"
    )]
    let ended = AsyncFd::with_interest(ended, Interest::READABLE)?;
    let (hears, asks) = UnixStream::connect(path).await?.into_split();
    let (answers, answered) = mpsc::channel(1);
    held.view.send_modify(|view| view.supervised = true);
    Ok((Link { asks, answers: answered }, Ear { held: held.clone(), ended, hears, answers, child }))
}

/// Where the supervisor of the container in `directory` will listen.
pub(crate) fn listen(directory: &Path) -> io::Result<OwnedFd> {
    let handle = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), name::SOCKET);
    Ok(StdListener::bind(path)?.into())
}

impl Ear {
    /// Until the supervisor has ended.
    pub(crate) async fn listen(mut self, hub: Arc<Hub>) {
        let mut lines = BufReader::new(&mut self.hears).lines();
        loop {
            let line = tokio::select! {
                // What it has said before its end is heard first.
                biased;
                line = lines.next_line() => line,
                _ = self.ended.readable() => break,
            };
            let Ok(Some(line)) = line else { break };
            match serde_json::from_str(&line) {
                Ok(Said::Now(status)) => self.held.learn(status, &hub),
                Ok(said) => {
                    // Nobody waits for an answer after having given up.
                    let _ = self.answers.try_send(said);
                }
                Err(error) => {
                    tracing::error!(container = self.held.name, %error, "a supervisor speaks another language");
                    break;
                }
            }
        }
        if let Some(mut child) = self.child.take() {
            if !matches!(self.held.phase(), Phase::Exited(_)) {
                // What it has executed is in no control group yet. Until it is waited for, its number is nobody else's.
                let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
                let _ = group.map(|group| kill_process_group(group, rustix::process::Signal::KILL));
            }
            let _ = child.wait().await;
        }
        let held = self.held.clone();
        if !matches!(held.phase(), Phase::Exited(_)) {
            tracing::warn!(
                container = held.name,
                "a container lost its supervisor; what is left of it is ended"
            );
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || held.destroy()).await {
                tracing::error!(error = %host_core::chain(&error), "a container without a supervisor cannot be ended");
            }
            self.held.lost(&hub);
        }
        self.held.view.send_modify(|view| view.supervised = false);
    }
}

/// Kills the supervisor of the container in `directory`, if it lives, and waits until it is gone. Blocks.
pub(crate) fn kill_supervisor(directory: &Path) -> io::Result<()> {
    let Some(pid) = place::supervisor(directory)? else {
        return Ok(());
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    // Who holds the lock now has this number, and the handle is of nobody else.
    if place::supervisor(directory)? != Some(pid) {
        return Ok(());
    }
    kill_process(pid, &handle)
}

/// The same by its handle, with whatever it has executed, whose session it leads.
fn kill_process(pid: Pid, handle: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(handle, rustix::process::Signal::KILL) {
        // It was seen to its end, and its number may be another's.
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        sent => sent?,
    }
    let _ = kill_process_group(pid, rustix::process::Signal::KILL);
    let mut ended = [nix::poll::PollFd::new(handle.as_fd(), nix::poll::PollFlags::POLLIN)];
    let patience = nix::poll::PollTimeout::try_from(KILLED).unwrap_or(nix::poll::PollTimeout::MAX);
    match nix::poll::poll(&mut ended, patience) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {pid:?} does not end"))),
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
