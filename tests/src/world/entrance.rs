//! The way into a world for processes.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::fd::AsFd,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{find, place::search_path};

/// Starts processes in a world. Their network is that of the thread which starts them.
#[derive(Debug, Clone)]
pub struct Entrance {
    first: u32,
    processes: Arc<File>,
    home: Arc<File>,
}

impl Entrance {
    pub(super) fn to(first: u32) -> Result<Self> {
        let processes = File::open(format!("/proc/{first}/ns/pid")).context("the world has ended")?;
        let home = File::open("/proc/self/ns/pid")?;
        Ok(Self { first, processes: processes.into(), home: home.into() })
    }

    /// A program with the world's mounts, for [`Entrance::spawn`] and [`Entrance::output`].
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        // A thread of a process with several can change its mounts only for itself and with much ado.
        // By its path, because the program may be given another PATH, which would be this one's too.
        let mut command = Command::new(find("nsenter").unwrap_or_else(|| "nsenter".into()));
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.first)).arg("--").arg(program);
        command.env("PATH", search_path());
        command
    }

    /// Starts a command as this process's child, but in the world's PID namespace: it ends with the world at the latest,
    /// and whatever it has started too.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // A thread that stayed could not make other threads, so it is only for this one child.
        enter(&self.processes)?;
        let child = command.spawn();
        enter(&self.home)?;
        child
    }

    /// Runs a command to its end and returns what it said.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, command: &mut Command) -> io::Result<Output> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)?.wait_with_output()
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))?)
}
