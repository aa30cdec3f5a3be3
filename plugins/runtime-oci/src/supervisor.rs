//! The process that stands beside each container: it makes it, starts it, keeps its output, sees its end.
//!
//! It is this same program, executed again (see [`crate::protocol::ARGUMENT`]), with a single thread and no tokio: what it
//! embeds forks. It outlives the service; whoever owns the container later finds its socket in the container's
//! directory. It ends with the container.
//!
//! ```text
//!   Launching ──made──▶ Created ──Start──▶ Running ──the process ends──▶ Exited, and the supervisor ends
//!       │                  └──── killed ──────────────────────────────────▲
//!       └── refused: the supervisor undoes everything and ends
//! ```
//!
//! All that it mounts is in its own mount namespace, and the container's network namespace is held by a descriptor: when
//! it is killed half-way, the kernel takes those back. The control group is left to the service, which finds it by its
//! path.

mod application;
mod engine;
mod link;
mod oom;
mod output;
mod rootfs;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use host_core::runtime::Exit;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, chdir, setsid},
};
use rustix::process::{PidfdFlags, getpid, pidfd_open, set_child_subreaper};

use self::{engine::Engine, link::Links, oom::OomWatch, output::Output};
use crate::{
    cgroup::{Group, Layout},
    place::{self, name},
    program::assigned,
    protocol::{ARGUMENT, Asked, Launch, Phase, Reason, Said, Status},
};

/// A service that has just made a supervisor speaks to it at once.
const FIRST_WORDS: Duration = Duration::from_secs(30);

/// What cannot be, in words for people, and what kind of failure it is.
#[derive(Debug)]
pub(crate) struct Refusal {
    kind: Reason,
    message: String,
}

impl Refusal {
    fn new(kind: Reason, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// A failed step, by what it does.
    fn of<E: Into<io::Error>>(doing: &str) -> impl FnOnce(E) -> Self {
        let doing = doing.to_owned();
        move |error| {
            let error = error.into();
            let kind = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
                    Reason::Exhausted
                }
                _ => Reason::Internal,
            };
            Self::new(kind, format!("{doing}: {error}"))
        }
    }
}

impl From<Refusal> for Said {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { kind: refusal.kind, message: refusal.message }
    }
}

/// If this process was executed to be a supervisor: is one, to its end. To be called before anything else.
pub fn dispatch(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.nth(1)? != ARGUMENT {
        return None;
    }
    let Err(refusal) = supervise() else {
        return Some(ExitCode::SUCCESS);
    };
    // It goes to the container's directory, for people.
    let _ = writeln!(io::stderr(), "{}", refusal.message);
    Some(ExitCode::FAILURE)
}

/// From the first words of the service to the end of the container.
fn supervise() -> Result<(), Refusal> {
    // Its name in a list of processes; without it the descriptor's number it was executed from stands there.
    let _ = rustix::thread::set_name(c"host-service:su");
    // What is typed at the service's terminal is not for this process, nor for the container.
    setsid().map_err(Refusal::of("leaving the service's session"))?;
    set_child_subreaper(Some(getpid()))
        .map_err(Refusal::of("becoming the reaper of the container's processes"))?;
    let Some(Assignment { directory, listener, network }) =
        assignment().map_err(Refusal::of("taking over a container"))?
    else {
        return Ok(());
    };
    let directory = directory.as_path();
    chdir(directory).map_err(Refusal::of("entering the container's directory"))?;
    let _lock = lock()?;
    let mut links = Links::new(listener).map_err(Refusal::of("listening"))?;
    let Some(launch) = links.first_words(FIRST_WORDS)? else {
        // The service died before it could say anything: there is nothing to undo.
        return Ok(());
    };
    match Supervisor::launch(directory, *launch, &network) {
        Ok(mut supervisor) => {
            drop(network);
            // Who hears that it is there has heard of it already, even if this process ends now.
            supervisor.announce(&mut links);
            links.answer(&Said::Done);
            supervisor.run(&mut links)
        }
        Err(refusal) => {
            links.answer(&refusal.into());
            Ok(())
        }
    }
}

/// Held as long as this process lives, with its number inside.
fn lock() -> Result<File, Refusal> {
    let mut lock = place::create(name::LOCK.as_ref()).map_err(Refusal::of("creating the lock"))?;
    place::hold(&lock)
        .map_err(|error| Refusal::new(Reason::Conflict, format!("taking the lock: {error}")))?;
    write!(lock, "{}", std::process::id()).map_err(Refusal::of("writing the lock"))?;
    Ok(lock)
}

/// Which container it is, and what belongs to it.
struct Assignment {
    directory: PathBuf,
    listener: UnixListener,
    /// Nothing of use where the container has the host's network.
    network: OwnedFd,
}

/// Waits for it on standard input; `None` when the service has ended first.
fn assignment() -> io::Result<Option<Assignment>> {
    let Some((directory, descriptors)) = assigned(io::stdin().as_fd())? else {
        return Ok(None);
    };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let mut descriptors = descriptors.into_iter();
    let (Some(listener), Some(log)) = (descriptors.next(), descriptors.next()) else {
        return Err(io::Error::other("descriptors are missing"));
    };
    rustix::stdio::dup2_stderr(&log)?;
    let network = descriptors.next().unwrap_or_else(|| null.into());
    Ok(Some(Assignment { directory, listener: UnixListener::from(listener), network }))
}

/// A container and what is known of it.
struct Supervisor {
    engine: Engine,
    group: Group,
    process: Pid,
    /// Readable once the process has ended.
    ended: OwnedFd,
    output: Output,
    oom: OomWatch,
    status: Status,
    /// Somebody asked for its death.
    killed: bool,
}

impl Supervisor {
    fn launch(directory: &Path, launch: Launch, network: &OwnedFd) -> Result<Self, Refusal> {
        let layout = Layout::detect().map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?;
        rootfs::mount(directory, &launch, &layout)?;
        let layout = if launch.binary.is_some() { layout.without_unified() } else { layout };
        let group = layout.group(&launch.cgroup);
        let made = Self::make(directory, &launch, network, &group);
        if made.is_err() {
            // Nothing of a container half made stays, its processes least of all.
            let _ = group.destroy_reaping(reap_others);
        }
        made
    }

    fn make(directory: &Path, launch: &Launch, network: &OwnedFd, group: &Group) -> Result<Self, Refusal> {
        let terminal =
            launch.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or_default();
        let (mut output, ends) =
            Output::open(terminal, &launch.disk, launch.log_bytes).map_err(Refusal::of("opening the log"))?;
        let (spec, propagate) = rootfs::complete(directory, launch, network.as_raw_fd())?;
        ends.give_to(&spec).map_err(Refusal::of("giving the output to the image's user"))?;
        let mut engine = Engine::of(directory, launch);
        let process = engine.create(directory, &spec, ends)?;
        rootfs::propagate(process, &propagate, directory)?;
        if terminal {
            output.take_terminal().map_err(Refusal::of("taking the terminal"))?;
        }
        let ended = rustix::process::Pid::from_raw(process.as_raw())
            .ok_or(Errno::ESRCH)
            .map_err(Refusal::of("looking at the container's process"))?;
        let ended = pidfd_open(ended, PidfdFlags::empty())
            .map_err(Refusal::of("watching the container's process"))?;
        let pid = process.as_raw().unsigned_abs();
        Ok(Self {
            engine,
            process,
            ended,
            output,
            oom: OomWatch::of(group),
            group: group.clone(),
            status: Status { phase: Phase::Created { pid }, oom_kills: 0 },
            killed: false,
        })
    }

    /// Until the container has ended and everything about it is said.
    fn run(&mut self, links: &mut Links) -> Result<(), Refusal> {
        loop {
            let ready = self.wait(links).map_err(Refusal::of("waiting"))?;
            if ready.output {
                self.output.relay();
            }
            if ready.oom {
                self.oom.consume();
            }
            if self.oom.is_due() {
                self.count_oom(links);
            }
            while let Some(asked) = links.receive(self.status) {
                let answer = self.obey(asked, links);
                links.answer(&answer);
            }
            if ready.ended {
                return self.end(links);
            }
        }
    }

    fn wait(&self, links: &Links) -> nix::Result<Ready> {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let own: Vec<BorrowedFd<'_>> =
            std::iter::once(self.ended.as_fd()).chain(self.oom.descriptor()).collect();
        let output = self.output.descriptors();
        let mut all: Vec<PollFd<'_>> =
            own.iter().copied().chain(output.iter().copied()).map(watch).chain(links.watches()).collect();
        match poll(&mut all, self.oom.patience()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
        let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        Ok(Ready {
            ended: all.first().is_some_and(is_ready),
            oom: all.get(1..own.len()).unwrap_or_default().iter().any(is_ready),
            output: all.iter().skip(own.len()).take(output.len()).any(is_ready),
        })
    }

    fn obey(&mut self, asked: Asked, links: &mut Links) -> Said {
        let done = match asked {
            Asked::Launch(_) => Err(Refusal::new(Reason::Conflict, "the container is there already")),
            Asked::Start => self.start(links),
            Asked::Signal(number) => self.signal(number),
        };
        done.map_or_else(Said::from, |()| Said::Done)
    }

    fn start(&mut self, links: &mut Links) -> Result<(), Refusal> {
        let Phase::Created { pid } = self.status.phase else {
            return Ok(());
        };
        self.engine.start()?;
        self.status.phase = Phase::Running { pid };
        self.announce(links);
        Ok(())
    }

    fn signal(&mut self, number: i32) -> Result<(), Refusal> {
        let signal = Signal::try_from(number).map_err(Refusal::of("sending a signal"))?;
        self.killed |= signal == Signal::SIGKILL;
        match self.engine.signal(self.process, signal) {
            // It has ended meanwhile.
            Err(Errno::ESRCH) | Ok(()) => Ok(()),
            Err(error) => Err(Refusal::of("sending a signal")(error)),
        }
    }

    fn count_oom(&mut self, links: &mut Links) {
        let kills = self.group.oom_kills();
        if kills > self.status.oom_kills {
            self.status.oom_kills = kills;
            self.announce(links);
        }
    }

    /// The process has ended: whatever else is in its group ends too.
    fn end(&mut self, links: &mut Links) -> Result<(), Refusal> {
        let code = reap(self.process);
        let kills = self.group.oom_kills();
        self.engine.delete();
        let destroyed = self.group.destroy_reaping(reap_others);
        // Once nobody is there to write more.
        self.output.drain();
        // The kernel says how many it has killed, not whom: of a child, this one may have gone on without.
        let oom = code == Some(128 + Signal::SIGKILL as i32) && kills > 0 && !self.killed;
        self.status = Status { phase: Phase::Exited(Exit { code, oom }), oom_kills: kills };
        self.announce(links);
        destroyed.map_err(Refusal::of("emptying the control group"))
    }

    /// On disk first: whoever was told finds it there.
    fn announce(&self, links: &mut Links) {
        // Without room for it, those who are connected know all the same.
        let _ = place::write_json(name::STATUS.as_ref(), &self.status);
        links.tell(self.status);
    }
}

/// What there is to do.
struct Ready {
    ended: bool,
    oom: bool,
    output: bool,
}

/// The end of `process`.
fn reap(process: Pid) -> Option<i32> {
    loop {
        match waitpid(process, None) {
            Ok(WaitStatus::Exited(_, code)) => return Some(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// What the container's processes and another runtime's program leave to this process.
fn reap_others() {
    while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
        waitpid(None, Some(WaitPidFlag::WNOHANG))
    {}
}
