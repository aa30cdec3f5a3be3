//! Those who are connected to this supervisor: the service, usually.

use std::{
    io::{self, Read, Write},
    os::{
        fd::AsFd,
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
    /// What the socket did not take yet: the rest of a message, and at most one answer.
    unsent: Vec<u8>,
    /// How things are, not said yet: nobody needs to hear how they were before.
    news: Option<Status>,
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
            let mut all: Vec<_> = self.watches().collect();
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

    /// What to wait for, and in which way.
    pub(super) fn watches(&self) -> impl Iterator<Item = PollFd<'_>> {
        let links = self.links.iter().map(|link| PollFd::new(link.stream.as_fd(), link.waits_for()));
        std::iter::once(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)).chain(links)
    }

    /// Takes in who came, lets go who left. At most one question: the next is read when it is answered.
    pub(super) fn receive(&mut self, status: Status) -> Option<Asked> {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.links.len() < LINKS_MAX && stream.set_nonblocking(true).is_ok() {
                self.links.push(Link {
                    stream,
                    received: Vec::new(),
                    unsent: Vec::new(),
                    news: Some(status),
                    broken: false,
                });
            }
        }
        self.links.iter_mut().for_each(Link::flush);
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

    /// To who has asked. What happened before is told before.
    pub(super) fn answer(&mut self, said: &Said) {
        if let Some(link) = self.asking.take().and_then(|place| self.links.get_mut(place)) {
            if let Some(status) = link.news.take() {
                link.say(&Said::Now(status));
            }
            link.say(said);
            link.flush();
        }
    }

    /// To everybody.
    pub(super) fn tell(&mut self, status: Status) {
        for link in &mut self.links {
            link.news = Some(status);
            link.flush();
        }
    }
}

impl Link {
    /// Whoever does not take its answers is not asked for more questions.
    fn waits_for(&self) -> PollFlags {
        if self.unsent.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT }
    }

    /// The next whole message.
    fn receive(&mut self) -> Option<Asked> {
        let mut part = [0; 64 << 10];
        while self.unsent.is_empty() {
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
        None
    }

    fn say(&mut self, said: &Said) {
        if let Ok(line) = serde_json::to_vec(said) {
            self.unsent.extend_from_slice(&line);
            self.unsent.push(b'\n');
        }
    }

    /// Sends as much as the socket takes now. A service that is stopped for a while hears the rest when it goes on.
    fn flush(&mut self) {
        loop {
            if self.unsent.is_empty() {
                let Some(status) = self.news.take() else { return };
                self.say(&Said::Now(status));
            }
            match self.stream.write(&self.unsent) {
                Ok(length @ 1..) => drop(self.unsent.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {
                    self.broken = true;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use host_core::runtime::Exit;

    use super::*;
    use crate::protocol::Phase;

    #[test]
    fn who_listens_again_after_a_while_hears_how_things_are_and_its_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let mut links = Links::new(UnixListener::bind(&path).unwrap()).unwrap();
        let mut service = UnixStream::connect(&path).unwrap();
        service.write_all(&[&serde_json::to_vec(&Asked::Start).unwrap()[..], b"\n"].concat()).unwrap();
        assert!(matches!(links.receive(Status::default()), Some(Asked::Start)));
        // Much more than a socket holds.
        let mut status = Status { phase: Phase::Running { pid: 7 }, oom_kills: 0 };
        for kills in 1..=100_000 {
            status.oom_kills = kills;
            links.tell(status);
        }
        links.answer(&Said::Done);
        let last = Status { phase: Phase::Exited(Exit::default()), ..status };
        links.tell(last);

        let reader = std::thread::spawn(move || {
            let said =
                BufReader::new(service).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
            let mut heard: Vec<Said> = said.collect();
            heard.split_off(heard.len() - 3)
        });
        while links.links.iter().any(|link| !link.unsent.is_empty()) {
            let mut all: Vec<_> = links.watches().collect();
            poll(&mut all, PollTimeout::from(10_000_u16)).unwrap();
            assert!(links.receive(last).is_none());
        }
        drop(links);
        assert_eq!(reader.join().unwrap(), [Said::Now(status), Said::Done, Said::Now(last)]);
    }
}
