//! The other side of `isolation = "process"`: a process that holds one plugin and speaks [`Frame`]s over its standard
//! input, which is one end of a pair of sockets. It may gain no privileges, and ends when the socket does.
#![allow(unsafe_code, reason = "the end of the process, which must run no destructors of libraries")]

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use host_core::chain;
use host_plugin_abi::{EMITTED, GONE, NO_CREDIT};
use host_plugin_protocol::{Encoding, frame::Frame};
use serde::{Deserialize, Serialize};

use crate::{
    backend::{Backend, InProcess},
    calls::{Log, Sink},
    library::{Description, Library, LoadError},
    outbox::Outbox,
    trust::Trusted,
};

/// What a runner is to load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) path: PathBuf,
    pub(crate) sha256: Option<String>,
    /// The encoding's bit.
    pub(crate) encoding: u32,
    pub(crate) log_level: u32,
    pub(crate) create_ms: u64,
}

/// Is the runner, to its end. To be called before anything else of a program that was started as one.
pub fn main() -> ! {
    let code = match run() {
        Ok(()) => 0,
        Err(error) => {
            // Standard error is the host's.
            io::Write::write_fmt(&mut io::stderr(), format_args!("plugin runner: {error}\n")).ok();
            1
        }
    };
    // SAFETY: ends the process. Destructors of libraries must not race the plugin's threads.
    unsafe { libc::_exit(code) }
}

fn run() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let mut socket = take_socket()?;
    let outbox = Outbox::new(socket.try_clone()?)?;
    let Some(Frame::Load { json }) = read(&mut socket)? else { return Ok(()) };
    let load: Load = serde_json::from_slice(&json)?;
    let sink =
        Arc::new(Remote { outbox: Arc::clone(&outbox), streams: Mutex::default(), level: load.log_level });
    match open(&load) {
        Ok((library, description)) => {
            outbox.send(&Frame::Load { json: serde_json::to_vec(&description)? });
            serve(&mut socket, library, &load, &sink)
        }
        Err(error) => {
            outbox.send(&Frame::Refused { message: chain(&error).into_bytes() });
            // Until the host has read it.
            read(&mut socket).map(drop)
        }
    }
}

/// Standard input, which the plugin finds empty.
fn take_socket() -> io::Result<UnixStream> {
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(UnixStream::from(socket))
}

fn open(load: &Load) -> Result<(Library, Description), LoadError> {
    Library::load(&Trusted::read(&load.path, load.sha256.as_deref())?)
}

fn serve(socket: &mut UnixStream, library: Library, load: &Load, sink: &Arc<Remote>) -> io::Result<()> {
    let mut instance: Option<InProcess> = None;
    while let Some(frame) = read(socket)? {
        match (frame, &instance) {
            (Frame::Create { call, config }, None) => {
                let encoding = Encoding::best(load.encoding).unwrap_or(Encoding::Json);
                let deadline = Duration::from_millis(load.create_ms);
                let made =
                    InProcess::create(library, encoding, &config, Arc::<Remote>::clone(sink), deadline);
                let (status, body) = match made {
                    Ok(made) => {
                        instance = Some(made);
                        (0, Vec::new())
                    }
                    Err(failed) => failed,
                };
                sink.outbox.send(&Frame::Complete { call, status, body });
            }
            (Frame::Call { call, method, window, request }, Some(instance)) => {
                if window > 0 {
                    sink.lock().insert(call, window);
                }
                instance.call(call, method, request, window);
            }
            (Frame::Cancel { call }, Some(instance)) => {
                sink.lock().remove(&call);
                instance.cancel(call);
            }
            (Frame::Grant { call, credits }, Some(instance)) => {
                if let Some(all) = sink.lock().get_mut(&call) {
                    *all = all.saturating_add(credits);
                }
                instance.grant(call, credits);
            }
            (Frame::Shutdown { .. }, Some(_)) => break,
            _ => return Err(io::Error::other("the host sent a frame that makes no sense here")),
        }
    }
    if let Some(instance) = instance {
        instance.close();
    }
    Ok(())
}

/// The next frame; `None` at the end.
pub(crate) fn read(socket: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut prefix = [0; 4];
    match socket.read_exact(&mut prefix) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = Frame::length(prefix).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    socket.by_ref().take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Ok(None);
    }
    Frame::decode(&bytes).map(Some).map_err(io::Error::other)
}

/// The host, from here.
#[derive(Debug)]
struct Remote {
    outbox: Arc<Outbox>,
    /// Credits of the calls that are streams.
    streams: Mutex<HashMap<u64, u32>>,
    level: u32,
}

impl Remote {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Remote {
    fn complete(&self, call: u64, status: i32, body: &[u8]) {
        self.lock().remove(&call);
        self.outbox.send(&Frame::Complete { call, status, body: body.to_vec() });
    }

    fn emit(&self, call: u64, item: &[u8]) -> i32 {
        match self.lock().get_mut(&call) {
            None => GONE,
            Some(0) => NO_CREDIT,
            Some(credits) => {
                *credits -= 1;
                // Under the lock: a completion must not overtake it.
                if self.outbox.send(&Frame::Emit { call, item: item.to_vec() }) { EMITTED } else { GONE }
            }
        }
    }

    fn log(&self, log: Log) {
        if let Ok(json) = serde_json::to_vec(&log) {
            self.outbox.send(&Frame::Log { json });
        }
    }

    fn log_level(&self) -> u32 {
        self.level
    }
}
