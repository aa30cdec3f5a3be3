//! Netlink, synchronously: a socket, requests with their acknowledgement, dumps.
//!
//! A socket belongs to the namespace its thread was in when it was opened, for ever; so one thread can speak with
//! two namespaces. Every wait has a deadline.

use std::{
    fmt::Debug,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
    },
    time::TimeVal,
};

/// The kernel answers in microseconds; this bounds a wait on its locks.
const DEADLINE_S: i64 = 5;

/// No answer of the kernel's is larger.
const BUFFER_BYTES: usize = 64 * 1024;

/// Of messages, in bytes.
const ALIGNMENT: usize = 4;

#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Speaks about links, addresses and routes of this thread's namespace.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Speaks about conntrack entries of this thread's namespace.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(DEADLINE_S, 0))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Has one thing done; returns once the kernel did it. `flags` as in `NLM_F_CREATE`.
    pub(crate) fn ask<M>(&mut self, message: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug + Into<NetlinkPayload<M>>,
    {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.answers::<M>().map(drop)
    }

    /// Everything that matches. What cannot be read, because the kernel is newer, is left out.
    pub(crate) fn dump<M>(&mut self, message: M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug + Into<NetlinkPayload<M>>,
    {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.answers()
    }

    /// What the kernel has of one thing.
    pub(crate) fn get<M>(&mut self, message: M) -> io::Result<Option<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug + Into<NetlinkPayload<M>>,
    {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        Ok(self.answers()?.pop())
    }

    /// Has all of it done or nothing; returns once the kernel did it. Each message comes with its flags; at least one
    /// has `NLM_F_ACK`.
    pub(crate) fn transact<M>(&mut self, messages: Vec<(M, u16)>) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Debug + Into<NetlinkPayload<M>>,
    {
        let first = self.sequence + 1;
        let mut acknowledgements = messages.iter().filter(|(_, flags)| flags & NLM_F_ACK != 0).count();
        let bytes: Vec<_> = messages
            .into_iter()
            .flat_map(|(message, flags)| self.bytes(message, NLM_F_REQUEST | flags))
            .collect();
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        while acknowledgements > 0 {
            self.receive::<M>(first, |payload| {
                acknowledgements -= match payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => 1,
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => 0,
                };
                Ok(())
            })?;
        }
        Ok(())
    }

    fn send<M>(&mut self, message: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        let bytes = self.bytes(message, flags);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    fn bytes<M>(&mut self, message: M, flags: u16) -> Vec<u8>
    where
        M: NetlinkSerializable + Into<NetlinkPayload<M>>,
    {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let length = message.buffer_len();
        let mut bytes = vec![0; length.next_multiple_of(ALIGNMENT)];
        message.serialize(&mut bytes[..length]);
        bytes
    }

    /// Reads up to the acknowledgement or the end of the dump.
    fn answers<M: NetlinkDeserializable>(&mut self) -> io::Result<Vec<M>> {
        let (mut answers, mut done) = (Vec::new(), false);
        while !done {
            self.receive(self.sequence, |payload| {
                match payload {
                    NetlinkPayload::Done(_) => done = true,
                    NetlinkPayload::Error(error) if error.code.is_none() => done = true,
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(answers)
    }

    /// Takes one datagram, and shows the messages in it that answer a request from number `first` on; others are
    /// of requests whose answer was given up.
    fn receive<M: NetlinkDeserializable>(
        &mut self,
        first: u32,
        mut show: impl FnMut(NetlinkPayload<M>) -> io::Result<()>,
    ) -> io::Result<()> {
        let received = loop {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                other => break other?,
            }
        };
        let mut rest = &self.buffer[..received];
        while let Some((length, sequence)) = frame(rest) {
            let message = &rest[..length];
            rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
            if sequence < first {
                continue;
            }
            match NetlinkMessage::<M>::deserialize(message) {
                Ok(message) => show(message.payload)?,
                Err(error) => tracing::debug!(%error, "a netlink message cannot be read"),
            }
        }
        Ok(())
    }
}

/// Length and sequence number of the message at the start of `bytes`, if a whole one is there.
fn frame(bytes: &[u8]) -> Option<(usize, u32)> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let length = usize::try_from(word(0)?).ok()?;
    (16..=bytes.len()).contains(&length).then_some(())?;
    Some((length, word(8)?))
}
