//! A plugin in a process of its own.
//!
//! ```text
//!            ┌──────────── starts again, after a pause ───────────┐
//!            ▼                                                    │
//!   Down ─ start ─▶ Up ─ the process ends: its calls fail ─▶ Down ┤
//!                                                                 └ too often: Broken, for a while
//! ```
//!
//! One thread owns the process: it starts it, reads its frames, and notices its end. Who calls meanwhile is told at
//! once why it cannot be.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, BufReader},
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use host_core::{ErrorKind, PluginError};
use host_plugin_protocol::{Encoding, decode_error, frame::Frame};
use tokio::sync::oneshot;

use crate::{
    backend::Backend,
    calls::{Calls, Sink, count},
    library::Description,
    outbox::Outbox,
    runner::{self, Load},
};

/// Between a crash and the next start, doubled with each.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// So many crashes within this time, and it is left alone for as long.
const CRASHES: usize = 5;
const BREAK: Duration = Duration::from_secs(60);
/// Loading a library.
const LOAD: Duration = Duration::from_secs(10);
/// From the closed socket to a kill.
const END: Duration = Duration::from_secs(12);
/// Of the host's variables, what a program cannot do without.
const VARIABLES: &[&str] = &["PATH", "HOME", "LANG", "TMPDIR", "RUST_BACKTRACE", "LD_LIBRARY_PATH"];

/// How a runner is started.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) load: Load,
    pub(crate) config: Vec<u8>,
}

/// One instance in a process.
#[derive(Debug)]
pub(crate) struct Process {
    calls: Arc<Calls>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    Up(Arc<Outbox>),
    /// Why, in words.
    Down(String),
    Closed,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unless it is closed.
    fn set(&self, state: State) -> bool {
        let mut now = self.lock();
        if matches!(*now, State::Closed) {
            return false;
        }
        *now = state;
        true
    }

    /// False when it was closed meanwhile.
    fn pause(&self, pause: Duration) -> bool {
        let wait = |state: &mut State| !matches!(state, State::Closed);
        let waited = self.changed.wait_timeout_while(self.lock(), pause, wait);
        waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Process {
    /// Starts it; returns when the plugin is ready.
    pub(crate) async fn start(start: Start, calls: Arc<Calls>) -> Result<Self, PluginError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Down("it starts".to_owned())),
            changed: Condvar::new(),
        });
        let process = Self { calls: Arc::clone(&calls), shared: Arc::clone(&shared) };
        let (ready, is_ready) = oneshot::channel();
        let supervisor = Supervisor { start, calls, shared, crashes: VecDeque::new() };
        thread::Builder::new()
            .name("plugin-runner".to_owned())
            .spawn(move || supervisor.run(ready))
            .map_err(|error| exhausted("the plugin's supervisor gets no thread", error))?;
        let lost = |_| Err(PluginError::new(ErrorKind::Internal, "the plugin's supervisor is gone"));
        is_ready.await.unwrap_or_else(lost).map(|()| process)
    }

    fn send(&self, frame: &Frame) -> Result<(), String> {
        match &*self.shared.lock() {
            State::Up(outbox) if outbox.send(frame) => Ok(()),
            State::Up(_) => Err("its process does not read any more".to_owned()),
            State::Down(why) => Err(why.clone()),
            State::Closed => Err("it was shut down".to_owned()),
        }
    }
}

fn exhausted(text: &str, error: io::Error) -> PluginError {
    PluginError::new(ErrorKind::Exhausted, text).with_source(error)
}

impl Backend for Process {
    fn call(&self, call: u64, method: u32, request: Vec<u8>, window: u32) {
        if let Err(why) = self.send(&Frame::Call { call, method, window, request }) {
            let text = format!("the plugin {} cannot be called: {why}", self.calls.plugin());
            self.calls.end(call, Err(PluginError::new(ErrorKind::Unavailable, text)));
        }
    }

    fn cancel(&self, call: u64) {
        // A process that is gone has no calls.
        self.send(&Frame::Cancel { call }).ok();
    }

    fn grant(&self, call: u64, credits: u32) {
        self.send(&Frame::Grant { call, credits }).ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut *self.shared.lock(), State::Closed);
        if let State::Up(outbox) = before {
            outbox.close();
        }
        self.shared.changed.notify_all();
    }
}

struct Supervisor {
    start: Start,
    calls: Arc<Calls>,
    shared: Arc<Shared>,
    /// Within the last [`BREAK`].
    crashes: VecDeque<Instant>,
}

type Ready = oneshot::Sender<Result<(), PluginError>>;

/// A runner whose plugin is ready.
struct Up {
    child: Running,
    frames: BufReader<UnixStream>,
}

impl Supervisor {
    fn run(mut self, ready: Ready) {
        let mut ready = Some(ready);
        loop {
            match self.bring_up() {
                Ok(up) => {
                    if let Some(ready) = ready.take() {
                        // Whoever wanted it may have given up, and then drops it.
                        ready.send(Ok(())).ok();
                    }
                    let why = self.read(up);
                    self.calls.fail_all(&why);
                    tracing::error!(plugin = self.calls.plugin(), reason = why, "plugin's process ended");
                }
                Err(error) => {
                    if let Some(ready) = ready.take() {
                        ready.send(Err(error)).ok();
                        return;
                    }
                    let why = host_core::chain(&error);
                    self.shared.set(State::Down(why.clone()));
                    tracing::error!(
                        plugin = self.calls.plugin(),
                        reason = why,
                        "plugin cannot be started again"
                    );
                }
            }
            let pause = self.pause();
            if !self.shared.pause(pause) {
                return;
            }
            count(&self.calls.counts.restarts);
        }
    }

    /// How long until the next start.
    fn pause(&mut self) -> Duration {
        let now = Instant::now();
        self.crashes.push_back(now);
        while self.crashes.front().is_some_and(|crash| now.duration_since(*crash) > BREAK) {
            self.crashes.pop_front();
        }
        if self.crashes.len() < CRASHES {
            let doubled = u32::try_from(self.crashes.len() - 1).unwrap_or(u32::MAX).min(16);
            return (PAUSE * 2_u32.pow(doubled)).min(LONGEST_PAUSE);
        }
        self.crashes.clear();
        let why = format!("it ended {CRASHES} times within {BREAK:?} and is left alone for as long");
        self.shared.set(State::Down(why));
        BREAK
    }

    fn bring_up(&self) -> Result<Up, PluginError> {
        let up =
            spawn(&self.start).map_err(|error| exhausted("the plugin's process cannot be started", error))?;
        let (mut child, socket) = up;
        let outbox = socket.try_clone().and_then(Outbox::new);
        let outbox = outbox.map_err(|error| exhausted("the plugin's process has no way out", error))?;
        let mut frames = BufReader::new(socket);
        match self.shake_hands(&outbox, &mut frames) {
            Ok(()) => {}
            Err(Some(error)) => return Err(error),
            Err(None) => {
                outbox.close();
                let text = format!("the plugin's process {} before it was ready", child.end());
                return Err(PluginError::new(ErrorKind::Unavailable, text));
            }
        }
        if self.shared.set(State::Up(Arc::clone(&outbox))) {
            Ok(Up { child, frames })
        } else {
            outbox.close();
            Err(PluginError::new(ErrorKind::Unavailable, "it was shut down"))
        }
    }

    /// `None` as the error when the process went away without a word.
    fn shake_hands(
        &self,
        outbox: &Outbox,
        frames: &mut BufReader<UnixStream>,
    ) -> Result<(), Option<PluginError>> {
        let load = &self.start.load;
        let call = self.calls.unawaited();
        let json = serde_json::to_vec(load).map_err(|_| None)?;
        outbox.send(&Frame::Load { json });
        frames.get_ref().set_read_timeout(Some(LOAD)).map_err(|_| None)?;
        match runner::read(frames) {
            Ok(Some(Frame::Load { .. })) => {}
            Ok(Some(Frame::Refused { message })) => {
                return Err(Some(PluginError::new(ErrorKind::Invalid, String::from_utf8_lossy(&message))));
            }
            _ => return Err(None),
        }
        outbox.send(&Frame::Create { call, config: self.start.config.clone() });
        let deadline = Duration::from_millis(load.create_ms) + LOAD;
        frames.get_ref().set_read_timeout(Some(deadline)).map_err(|_| None)?;
        let encoding = Encoding::best(load.encoding).unwrap_or(Encoding::Json);
        loop {
            match runner::read(frames) {
                Ok(Some(Frame::Complete { call: of, status, body })) if of == call => {
                    frames.get_ref().set_read_timeout(None).map_err(|_| None)?;
                    return if status == 0 {
                        Ok(())
                    } else {
                        Err(Some(decode_error(encoding, status, &body)))
                    };
                }
                Ok(Some(frame)) => self.take(frame),
                _ => return Err(None),
            }
        }
    }

    /// To its end; why it ended.
    fn read(&self, mut up: Up) -> String {
        let broken = loop {
            match runner::read(&mut up.frames) {
                Ok(Some(frame)) => self.take(frame),
                Ok(None) => break None,
                Err(error) => break Some(error.to_string()),
            }
        };
        // Closed first: a process that goes on talking nonsense is to end.
        let ending = State::Down("its process is ending".to_owned());
        let before = std::mem::replace(&mut *self.shared.lock(), ending);
        match before {
            State::Up(outbox) => outbox.close(),
            State::Closed => *self.shared.lock() = State::Closed,
            State::Down(_) => {}
        }
        let ended = up.child.end();
        let plugin = self.calls.plugin();
        let why = match broken {
            Some(error) => {
                format!("the process of the plugin {plugin} broke the protocol ({error}) and {ended}")
            }
            None => format!("the process of the plugin {plugin} {ended}"),
        };
        self.shared.set(State::Down(why.clone()));
        why
    }

    fn take(&self, frame: Frame) {
        match frame {
            Frame::Complete { call, status, body } => {
                if status != 0 {
                    self.calls.counts.failures.fetch_add(1, Ordering::Relaxed);
                }
                self.calls.end(call, Ok((status, body)));
            }
            Frame::Emit { call, item } => drop(self.calls.emit(call, &item)),
            Frame::Log { json } => {
                if let Ok(log) = serde_json::from_slice(&json) {
                    self.calls.log(log);
                }
            }
            // The rest is the host's to say.
            _ => {}
        }
    }
}

fn spawn(start: &Start) -> io::Result<(Running, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let variables = VARIABLES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let child = Command::new(&start.program)
        .args(&start.arguments)
        .env_clear()
        .envs(variables)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok((Running(child), ours))
}

/// A process that is waited for, and killed if need be.
struct Running(Child);

impl Running {
    /// Waits for its end, which the closed socket makes it come to; what became of it, in words.
    fn end(&mut self) -> String {
        let deadline = Instant::now() + END;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return told(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(2)),
                _ => {
                    // It may have ended just now.
                    self.0.kill().ok();
                    self.0.wait().ok();
                    return "did not end and was killed".to_owned();
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(Some(_))) {
            return;
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn told(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(libc::SIGSEGV), _) => "was killed by signal 11 (segmentation fault)".to_owned(),
        (Some(libc::SIGABRT), _) => "was killed by signal 6 (abort)".to_owned(),
        (Some(libc::SIGBUS), _) => "was killed by signal 7 (bus error)".to_owned(),
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, Some(code)) => format!("exited with status {code}"),
        (None, None) => "ended".to_owned(),
    }
}

/// What a plugin says of itself, asked for in a process of its own.
pub(crate) fn describe(start: &Start) -> Result<Description, PluginError> {
    let cannot = |error| exhausted("the plugin's process cannot be started", error);
    let (mut child, socket) = spawn(start).map_err(cannot)?;
    let outbox = Outbox::new(socket.try_clone().map_err(cannot)?).map_err(cannot)?;
    socket.set_read_timeout(Some(LOAD)).map_err(cannot)?;
    let json = serde_json::to_vec(&start.load).unwrap_or_default();
    outbox.send(&Frame::Load { json });
    let answer = runner::read(&mut BufReader::new(socket));
    outbox.close();
    match answer {
        Ok(Some(Frame::Load { json })) => serde_json::from_slice(&json).map_err(|error| {
            PluginError::new(ErrorKind::Internal, "the plugin describes itself oddly").with_source(error)
        }),
        Ok(Some(Frame::Refused { message })) => {
            Err(PluginError::new(ErrorKind::Invalid, String::from_utf8_lossy(&message)))
        }
        _ => {
            let text = format!("the plugin's process {} while the plugin was loaded", child.end());
            Err(PluginError::new(ErrorKind::Unavailable, text))
        }
    }
}
