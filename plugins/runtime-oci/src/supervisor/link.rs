//! Those who are connected to this supervisor: the service, usually.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Refusal;
use crate::protocol::{Asked, Launch, MESSAGE_BYTES_MAX, Reason, Said, Status};

/// A service, and one that takes over from it; nobody else has business here.
const LINKS_MAX: usize = 8;

/// Connections, and where they come from.
pub(super) struct Links {
    listener: UnixListener,
    links: Vec<Link>,
    /// Whose question is being answered.
    asking: Option<usize>,
}

struct Link {
    stream: UnixStream,
    received: Vec<u8>,
    broken: bool,
}

impl Links {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, links: Vec::new(), asking: None })
    }

    /// What the service has to say first; `None` when it is gone.
    pub(super) fn first_words(&mut self, patience: Duration) -> Result<Option<Box<Launch>>, Refusal> {
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        loop {
            let mut all: Vec<_> = self.descriptors().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            if poll(&mut all, patience).map_err(Refusal::of("waiting for the service"))? == 0 {
                return Ok(None);
            }
            match self.receive(Status::default()) {
                Some(Asked::Launch(launch)) => return Ok(Some(launch)),
                Some(_) => return Err(Refusal::new(Reason::Invalid, "asked something before the launch")),
                None if self.links.is_empty() => return Ok(None),
                None => {}
            }
        }
    }

    /// What to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.listener.as_fd()).chain(self.links.iter().map(|link| link.stream.as_fd()))
    }

    /// Takes in who came, lets go who left. At most one question: the next is read when it is answered.
    pub(super) fn receive(&mut self, status: Status) -> Option<Asked> {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.links.len() < LINKS_MAX && stream.set_nonblocking(true).is_ok() {
                self.links.push(Link { stream, received: Vec::new(), broken: false });
                let newest = self.links.len() - 1;
                self.links[newest].send(&Said::Now(status));
            }
        }
        self.links.retain(|link| !link.broken);
        for (place, link) in self.links.iter_mut().enumerate() {
            if let Some(asked) = link.receive() {
                self.asking = Some(place);
                return Some(asked);
            }
        }
        self.links.retain(|link| !link.broken);
        None
    }

    /// To who has asked.
    pub(super) fn answer(&mut self, said: &Said) {
        if let Some(link) = self.asking.take().and_then(|place| self.links.get_mut(place)) {
            link.send(said);
        }
    }

    /// To everybody.
    pub(super) fn tell(&mut self, said: &Said) {
        for link in &mut self.links {
            link.send(said);
        }
    }
}

impl Link {
    /// The next whole message.
    fn receive(&mut self) -> Option<Asked> {
        let mut part = [0; 64 << 10];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                let asked = serde_json::from_slice(&line).ok();
                self.broken |= asked.is_none();
                return asked;
            }
            match self.stream.read(&mut part) {
                Ok(length @ 1..) if self.received.len() + length <= MESSAGE_BYTES_MAX => {
                    self.received.extend_from_slice(&part[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                _ => {
                    self.broken = true;
                    return None;
                }
            }
        }
    }

    /// Messages are small; who does not take them from the socket is let go, and finds the rest on disk.
    fn send(&mut self, said: &Said) {
        let Ok(mut line) = serde_json::to_vec(said) else { return };
        line.push(b'\n');
        self.broken |= self.stream.write_all(&line).is_err();
    }
}
