//! A world's network namespace, seen from a test.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::thread::{self, ThreadId};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Handle, RuntimeFlavor};

/// The calling thread's stay in another network namespace; dropping it there leads home.
#[derive(Debug)]
pub(super) struct Visit {
    home: File,
    thread: ThreadId,
}

impl Visit {
    /// Moves the calling thread into a process's namespace. Sockets that the thread opens from now on, and processes
    /// that it starts, are in there; other threads are not, which is why [`check_runtime`] comes first.
    pub(super) fn to(process: u32) -> Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let there = File::open(format!("/proc/{process}/ns/net")).context("the world has ended")?;
        enter(&there).context("cannot enter the world's network")?;
        Ok(Self { home, thread: thread::current().id() })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if thread::current().id() == self.thread {
            // A thread that cannot go home has no network that matters any more.
            let _stays = enter(&self.home);
        }
    }
}

/// Fails on a runtime with threads that could not follow the caller into a network.
pub(super) fn check_runtime() -> Result<()> {
    let alone = matches!(Handle::current().runtime_flavor(), RuntimeFlavor::CurrentThread);
    ensure!(alone, "a world has its own network, which only one thread can enter: use plain #[tokio::test]");
    Ok(())
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}
