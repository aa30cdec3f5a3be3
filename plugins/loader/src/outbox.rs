//! Frames on their way out. Whoever sends writes at once what the socket takes; only when it is full, a thread waits
//! for it. So nobody blocks, and a call costs no change of threads on its way.

use std::{
    collections::VecDeque,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use host_plugin_protocol::frame::Frame;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{SendFlags, send},
};

/// What may wait: more than a plugin that works is ever behind.
const LIMIT: usize = 128 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Outbox {
    socket: UnixStream,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// Of the first, written already.
    written: usize,
    bytes: usize,
    closed: bool,
}

impl Outbox {
    /// With the thread that waits, which ends with [`Outbox::close`] or the socket.
    pub(crate) fn new(socket: UnixStream) -> std::io::Result<Arc<Self>> {
        let outbox = Arc::new(Self { socket, queue: Mutex::default(), changed: Condvar::new() });
        let waiter = Arc::clone(&outbox);
        thread::Builder::new().name("plugin-out".to_owned()).spawn(move || waiter.wait())?;
        Ok(outbox)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when nobody reads any more, or too much waits.
    pub(crate) fn send(&self, frame: &Frame) -> bool {
        let bytes = frame.encode();
        let mut queue = self.lock();
        if queue.closed || queue.bytes + bytes.len() > LIMIT {
            return false;
        }
        queue.bytes += bytes.len();
        queue.waiting.push_back(bytes);
        if queue.waiting.len() == 1 {
            self.write(&mut queue);
            if !queue.waiting.is_empty() {
                self.changed.notify_one();
            }
        }
        !queue.closed
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
        // It may be closed already.
        self.socket.shutdown(std::net::Shutdown::Both).ok();
    }

    /// As much as the socket takes.
    fn write(&self, queue: &mut Queue) {
        while let Some(first) = queue.waiting.front() {
            let rest = first.get(queue.written..).unwrap_or_default();
            match send(&self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) if count == rest.len() => {
                    queue.bytes -= first.len();
                    queue.written = 0;
                    queue.waiting.pop_front();
                }
                Ok(count) => queue.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    queue.closed = true;
                    return;
                }
            }
        }
    }

    fn wait(&self) {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return;
            }
            if queue.waiting.is_empty() {
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(queue);
            let mut room = [PollFd::new(&self.socket, PollFlags::OUT)];
            // Whatever it says, the next write finds out.
            poll(&mut room, None).ok();
            queue = self.lock();
            self.write(&mut queue);
        }
    }
}
