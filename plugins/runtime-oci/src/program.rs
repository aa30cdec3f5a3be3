//! The program that supervisors are: this one, in a copy that no container can write to.
//!
//! A container's first process is this program until it becomes the container's own, and an image may ask to have it
//! executed again, as `/proc/self/exe`. Root inside could then open the file it came from for writing. The copy is in
//! memory and sealed: there is nothing to write to, and the host's own file is never within reach.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use tokio::{
    process::{Child, Command},
    sync::Notify,
};
use tokio_util::task::TaskTracker;

use crate::{cgroup::Group, protocol::ARGUMENT};

/// The socket to listen on, the log, the network namespace.
const DESCRIPTORS_MAX: usize = 3;
/// As long as the kernel takes.
const PATH_BYTES_MAX: usize = 4096;
/// Between the use of a spare supervisor and the making of the next.
const LULL: Duration = Duration::from_millis(100);

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

    /// A supervisor that waits to be told for which container it is.
    pub(crate) fn supervisor(&self) -> io::Result<Spare> {
        let path = match &self.0 {
            Source::Sealed(memory) => PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd())),
            Source::At(path) => path.clone(),
        };
        let (orders, theirs) = UnixStream::pair()?;
        let child = Command::new(path)
            .arg0("host-service")
            .arg(ARGUMENT)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Spare { child, orders })
    }
}

/// A supervisor without a container. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Spare {
    child: Child,
    orders: UnixStream,
}

impl Spare {
    /// Gives it the container in `directory`, where to listen, where to complain, and the container's network namespace.
    pub(crate) fn assign(
        self,
        directory: &Path,
        listener: &OwnedFd,
        log: &File,
        network: Option<&OwnedFd>,
    ) -> io::Result<Child> {
        let descriptors: Vec<_> =
            [listener.as_fd(), log.as_fd()].into_iter().chain(network.map(AsFd::as_fd)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let text = [IoSlice::new(directory.as_os_str().as_bytes())];
        sendmsg(&self.orders, &text, &mut control, SendFlags::NOSIGNAL)?;
        Ok(self.child)
    }
}

/// What [`Spare::assign`] sends, as the supervisor takes it; `None` when the service has ended without.
pub(crate) fn assigned(orders: BorrowedFd<'_>) -> io::Result<Option<(PathBuf, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; PATH_BYTES_MAX];
    let received = recvmsg(orders, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let directory = PathBuf::from(OsStr::from_bytes(&text[..received.bytes]));
    Ok((received.bytes > 0).then_some((directory, descriptors)))
}

/// Supervisors made ahead, because executing one takes as long as many a step of a container's start.
#[derive(Debug)]
pub(crate) struct Spares {
    wanted: usize,
    maker: Arc<Maker>,
    /// Those that are being made.
    making: TaskTracker,
    taken: Notify,
}

#[derive(Debug)]
struct Maker {
    program: Program,
    /// Not the service's, with which a service manager would end them.
    group: Group,
    ready: Mutex<Vec<Spare>>,
}

impl Spares {
    pub(crate) fn new(program: Program, group: Group, wanted: usize) -> Self {
        let maker = Arc::new(Maker { program, group, ready: Mutex::default() });
        Self { wanted, maker, making: TaskTracker::new(), taken: Notify::new() }
    }

    /// How many to try, of which each may have been killed meanwhile but the last.
    pub(crate) fn tries(&self) -> usize {
        self.wanted + 1
    }

    /// One that is ready, or one made now.
    pub(crate) async fn take(&self) -> io::Result<Spare> {
        self.taken.notify_one();
        loop {
            let ready = self.maker.ready().pop();
            match ready {
                Some(spare) => return Ok(spare),
                // Somebody else may be faster to take it, who then makes none.
                None => self.make().await?,
            }
        }
    }

    /// Makes one ready, whatever becomes of who asks.
    async fn make(&self) -> io::Result<()> {
        let maker = self.maker.clone();
        self.making.spawn_blocking(move || maker.make()).await?
    }

    /// Keeps as many ready as are wanted. Runs until it is dropped.
    pub(crate) async fn fill(&self) {
        loop {
            while self.maker.ready().len() < self.wanted {
                if let Err(error) = self.make().await {
                    tracing::warn!(%error, "no supervisor can be made ahead");
                    break;
                }
            }
            self.taken.notified().await;
            // Whoever took it has better use for the processors now.
            tokio::time::sleep(LULL).await;
        }
    }

    /// Ends those that are not needed, once nobody asks for any more.
    pub(crate) async fn dismiss(&self) {
        self.making.close();
        self.making.wait().await;
        let spares: Vec<Spare> = self.maker.ready().drain(..).collect();
        for Spare { mut child, orders } in spares {
            drop(orders);
            let _ = child.wait().await;
        }
        self.maker.group.remove_if_empty();
    }
}

impl Maker {
    fn make(&self) -> io::Result<()> {
        let spare = self.program.supervisor()?;
        let process = spare.child.id().ok_or(io::ErrorKind::NotFound)?;
        if let Err(error) = self.group.take_in(process) {
            tracing::warn!(%error, "a supervisor stays in the service's control group, and may be ended with it");
        }
        self.ready().push(spare);
        Ok(())
    }

    fn ready(&self) -> MutexGuard<'_, Vec<Spare>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
