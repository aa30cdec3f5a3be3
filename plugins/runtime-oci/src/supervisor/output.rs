//! The container's output: its pipes or its terminal, and the log that both end in.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{Uid, fchown, pipe2},
};
use oci_spec::runtime::Spec;
use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    pty::{OpenptFlags, ioctl_tiocgptpeer},
};

use crate::place::{self, name};

/// As much as a pipe holds.
const PART: usize = 64 << 10;
/// At most this much is read before something else has its turn.
const PARTS: usize = 16;
/// A pipe can be made larger, by default up to 1 MiB; a terminal gives away some 4 KiB at a time.
const PARTS_LEFT: usize = 256;
/// Where the engine sends the terminal's other side, in the container's directory.
pub(super) const CONSOLE: &str = "bundle/console.sock";

/// The supervisor's side.
pub(super) struct Output {
    sources: Vec<OwnedFd>,
    console: Option<UnixListener>,
    /// The container's side of its terminal. As long as somebody has it, the terminal does not end: a program that has
    /// closed it may open it again.
    terminal: Option<OwnedFd>,
    log: Log,
}

/// The container's side.
pub(super) enum Ends {
    /// The engine makes a terminal and sends its other side to [`CONSOLE`].
    Terminal,
    /// Standard output and standard error, each a pipe.
    Pipes { stdout: OwnedFd, stderr: OwnedFd },
}

impl Ends {
    /// Somebody else than root must be able to open `/dev/stdout` again. A terminal is theirs from the beginning.
    pub(super) fn give_to(&self, spec: &Spec) -> io::Result<()> {
        let Self::Pipes { stdout, stderr } = self else { return Ok(()) };
        let user = spec.process().as_ref().map(|process| Uid::from_raw(process.user().uid()));
        [stdout, stderr].into_iter().try_for_each(|end| fchown(end, user, None)).map_err(io::Error::from)
    }
}

impl Output {
    pub(super) fn open(terminal: bool, disk: &Path, log_bytes: u64) -> io::Result<(Self, Ends)> {
        let log = Log::open(disk, log_bytes)?;
        if terminal {
            let console = UnixListener::bind(CONSOLE)?;
            return Ok((
                Self { sources: Vec::new(), console: Some(console), terminal: None, log },
                Ends::Terminal,
            ));
        }
        let ((out_of, stdout), (err_of, stderr)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        let sources = vec![out_of, err_of];
        sources.iter().try_for_each(nonblocking)?;
        Ok((Self { sources, console: None, terminal: None, log }, Ends::Pipes { stdout, stderr }))
    }

    /// Takes the terminal's other side, which the engine has sent by now.
    pub(super) fn take_terminal(&mut self) -> io::Result<()> {
        let Some(console) = self.console.take() else { return Ok(()) };
        console.set_nonblocking(true)?;
        let (stream, _) = console.accept()?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 4096];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let rights = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let terminal = rights.ok_or_else(|| io::Error::other("the engine sent no terminal"))?;
        nonblocking(&terminal)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        // One that only another runtime's sandbox understands has no side that could be had here.
        self.terminal = ioctl_tiocgptpeer(&terminal, flags).ok();
        self.sources.push(terminal);
        Ok(())
    }

    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.sources.iter().map(AsFd::as_fd).collect()
    }

    /// Moves what is there to the log; lets go of a source that has ended.
    pub(super) fn relay(&mut self) {
        let Self { sources, log, .. } = self;
        sources.retain(|source| relay(source, log));
    }

    /// Moves what is left, if not more than pipes and terminals hold: a process that could not be killed, or that the
    /// container has passed its output to, may write for ever.
    pub(super) fn drain(&mut self) {
        for source in std::mem::take(&mut self.sources) {
            for _ in 0..PARTS_LEFT {
                if !matches!(part(&source, &mut self.log), Part::Some) {
                    break;
                }
            }
        }
    }
}

enum Part {
    Some,
    NotYet,
    End,
}

/// `false` once it has ended.
fn relay(source: &OwnedFd, log: &mut Log) -> bool {
    for _ in 0..PARTS {
        match part(source, log) {
            Part::Some => {}
            Part::NotYet => return true,
            Part::End => return false,
        }
    }
    true
}

fn part(source: &OwnedFd, log: &mut Log) -> Part {
    let mut part = [0; PART];
    match nix::unistd::read(source, &mut part) {
        Ok(0) => Part::End,
        Ok(length) => {
            log.write(&part[..length]);
            Part::Some
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Part::NotYet,
        // A terminal whose other side is closed says EIO.
        Err(_) => Part::End,
    }
}

fn nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFL)?);
    fcntl(descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Two files: when the newer is full it becomes the older one.
struct Log {
    disk: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl Log {
    fn open(disk: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self { file: place::create(&disk.join(name::LOG))?, disk: disk.to_owned(), written: 0, limit })
    }

    /// A full disk loses output, not the container.
    fn write(&mut self, part: &[u8]) {
        if self.written > 0 && self.written + part.len() as u64 > self.limit {
            self.rotate();
        }
        if self.file.write_all(part).is_ok() {
            self.written += part.len() as u64;
        }
    }

    fn rotate(&mut self) {
        let newer = self.disk.join(name::LOG);
        if fs::rename(&newer, self.disk.join(name::OLDER_LOG)).is_ok()
            && let Ok(file) = place::create(&newer)
        {
            (self.file, self.written) = (file, 0);
        }
    }
}
