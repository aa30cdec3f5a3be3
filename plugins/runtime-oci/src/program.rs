//! The program that supervisors are: this one, in a copy that no container can write to.
//!
//! A container's first process is this program until it becomes the container's own, and an image may ask to have it
//! executed again, as `/proc/self/exe`. Root inside could then open the file it came from for writing. The copy is in
//! memory and sealed: there is nothing to write to, and the host's own file is never within reach.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tokio::process::{Child, Command};

use crate::protocol::ARGUMENT;

/// What to execute.
#[derive(Debug)]
pub struct Program(Source);

#[derive(Debug)]
enum Source {
    Sealed(OwnedFd),
    At(PathBuf),
}

impl Program {
    /// This program. Its `main` has to begin with [`crate::dispatch`].
    ///
    /// # Errors
    /// It cannot be copied into memory, or programs in memory may not be executed here.
    pub fn this() -> io::Result<Self> {
        Self::sealed(Path::new("/proc/self/exe"))
    }

    /// Another program that begins with [`crate::dispatch`]; for trials.
    ///
    /// # Errors
    /// As [`Program::this`].
    pub fn sealed(path: &Path) -> io::Result<Self> {
        let memory =
            memfd_create("host-service", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::EXEC)
                // Kernels before 6.3 do not know the last one, and need not.
                .or_else(|_| memfd_create("host-service", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING))?;
        let mut memory = File::from(memory);
        io::copy(&mut File::open(path)?, &mut memory)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&memory, seals)?;
        Ok(Self(Source::Sealed(memory.into())))
    }

    /// Another program as it lies on disk; for trials with programs too large to be copied for each.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Source::At(path.into()))
    }

    /// A supervisor for the container in `directory`.
    pub(crate) fn supervise(
        &self,
        directory: &Path,
        listener: OwnedFd,
        network: Option<OwnedFd>,
        log: File,
    ) -> io::Result<Child> {
        let path = match &self.0 {
            Source::Sealed(memory) => PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd())),
            Source::At(path) => path.clone(),
        };
        Command::new(path)
            .arg0("host-service")
            .arg(ARGUMENT)
            .arg(directory)
            .env_clear()
            .stdin(listener)
            .stdout(network.map_or_else(Stdio::null, Stdio::from))
            .stderr(log)
            .spawn()
    }
}
