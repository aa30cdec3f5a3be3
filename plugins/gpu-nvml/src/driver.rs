//! The thread that asks the driver.
//!
//! A request is where to send the answer; a round answers everybody who asked before it began. `Progress` is what can
//! be seen of a round from outside.

use std::{
    io, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use host_core::{ErrorKind, PluginError, gpu::GpuHealth};
use nvml_wrapper::Nvml;
use tokio::sync::oneshot;

use crate::{
    attach::Attacher,
    config::Config,
    health::Memory,
    survey::{Session, Survey},
    trouble::Trouble,
};

/// Who may wait for a driver at once; more are told that it is silent.
const QUEUE: usize = 64;

/// How often NVML is begun anew while a GPU is lost: it does not see a GPU that was reset before.
const REOPEN: Duration = Duration::from_secs(30);

type Answer = Result<Arc<Survey>, Trouble>;
type Request = oneshot::Sender<Answer>;

/// Asks on behalf of everybody. Its thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    requests: SyncSender<Request>,
    opening: Duration,
    progress: Arc<Progress>,
}

/// What came of a question.
#[derive(Debug)]
pub(crate) enum Reply {
    Told(Answer),
    Silent(Silence),
}

/// The driver does not answer.
#[derive(Debug)]
pub(crate) struct Silence {
    lasting: Duration,
    /// It is being begun, and may take so long.
    opening: Option<Duration>,
    /// The GPU that it was asked about.
    about: Option<String>,
    /// What it told last.
    pub(crate) last: Option<Arc<Survey>>,
}

/// What the thread does, for those who wait. No lock is held over a call.
#[derive(Debug, Default)]
pub(crate) struct Progress(Mutex<Round>);

#[derive(Debug, Default)]
struct Round {
    /// When it last made progress; `None` while nothing is asked.
    since: Option<Instant>,
    /// NVML is being begun for it.
    is_opening: bool,
    about: Option<String>,
    last: Option<Arc<Survey>>,
}

impl Driver {
    pub(crate) fn start(config: Arc<Config>) -> io::Result<Self> {
        let (requests, asked) = sync_channel(QUEUE);
        let (progress, opening) = (Arc::new(Progress::default()), config.opening);
        let thread = Thread { config, asked, waiting: Vec::new(), progress: Arc::clone(&progress) };
        thread::Builder::new().name("nvml".to_owned()).spawn(move || thread.run())?;
        Ok(Self { requests, opening, progress })
    }

    pub(crate) fn has_ever_told(&self) -> bool {
        self.progress.round().last.is_some()
    }

    /// What a round tells that begins after this call. Waits while the driver makes progress, and for `patience` where
    /// it makes none.
    pub(crate) async fn survey(&self, patience: Duration) -> Reply {
        let (request, mut answer) = oneshot::channel();
        match self.requests.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Reply::Silent(self.silence()),
            Err(TrySendError::Disconnected(_)) => return Reply::Told(Err(gone())),
        }
        loop {
            let since = self.progress.round().since.unwrap_or_else(Instant::now);
            match tokio::time::timeout_at((since + patience).into(), &mut answer).await {
                Ok(Ok(answer)) => return Reply::Told(answer),
                Ok(Err(_)) => return Reply::Told(Err(gone())),
                Err(_) if self.progress.round().since.is_some_and(|since| since.elapsed() >= patience) => {
                    return Reply::Silent(self.silence());
                }
                Err(_) => {}
            }
        }
    }

    fn silence(&self) -> Silence {
        let round = self.progress.round();
        Silence {
            lasting: round.since.map(|since| since.elapsed()).unwrap_or_default(),
            opening: round.is_opening.then_some(self.opening),
            about: round.about.clone(),
            last: round.last.clone(),
        }
    }
}

/// It panicked, which is a fault of this plugin's.
fn gone() -> Trouble {
    Trouble::new(ErrorKind::Internal, "the thread that asks NVIDIA's driver has ended")
}

impl Silence {
    /// As told last, but for the GPU that the driver is silent about; where that is none, for all of them. One that is
    /// only being begun anew has not failed.
    pub(crate) fn health(&self, last: &Survey) -> Vec<(String, GpuHealth)> {
        if self.opening.is_some_and(|opening| self.lasting < opening) {
            return last.health.clone();
        }
        let hung = GpuHealth::Unhealthy(self.text());
        let health = |(uuid, told): &(String, GpuHealth)| {
            let is_hung = self.about.as_ref().is_none_or(|about| last.is_of(uuid, about));
            (uuid.clone(), if is_hung { hung.clone() } else { told.clone() })
        };
        last.health.iter().map(health).collect()
    }

    fn text(&self) -> String {
        let about = self.about.as_ref().map(|about| format!(", asked about {about}")).unwrap_or_default();
        format!("NVIDIA's driver has not answered for {:.1} s{about}", self.lasting.as_secs_f32())
    }
}

impl From<Silence> for PluginError {
    fn from(silence: Silence) -> Self {
        Self::new(ErrorKind::Timeout, silence.text())
    }
}

impl Progress {
    /// The next calls concern this GPU.
    pub(crate) fn about(&self, gpu: Option<&str>) {
        let mut round = self.round();
        round.since = Some(Instant::now());
        round.about = gpu.map(str::to_owned);
    }

    /// A round begins, or NVML for one.
    fn begin(&self, is_opening: bool) {
        self.about(None);
        self.round().is_opening = is_opening;
    }

    fn end(&self, answer: &Answer) {
        let mut round = self.round();
        round.since = None;
        if let Ok(survey) = answer {
            round.last = Some(Arc::clone(survey));
        }
    }

    /// No code that can panic runs under this lock.
    fn round(&self) -> MutexGuard<'_, Round> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread owns.
struct Thread {
    config: Arc<Config>,
    asked: Receiver<Request>,
    waiting: Vec<Request>,
    progress: Arc<Progress>,
}

impl Thread {
    fn run(mut self) {
        let mut memory = Memory::default();
        let mut attacher = Attacher::new(&self.config);
        // Begun for the first who asks, not before: a tool that asks nothing loads no library.
        while self.next() {
            self.progress.begin(true);
            match Nvml::builder().lib_path(self.config.library.as_os_str()).init() {
                Ok(nvml) => self.session(&nvml, &mut memory, &mut attacher),
                Err(error) => self.answer(Err(Trouble::opening(&self.config.library, &error))),
            }
        }
    }

    /// Rounds until nobody asks any more, or NVML must be begun anew. Somebody waits.
    fn session(&mut self, nvml: &Nvml, memory: &mut Memory, attacher: &mut Attacher) {
        let opened = Instant::now();
        let mut session = Session::new(nvml, Arc::clone(&self.config));
        loop {
            self.progress.begin(false);
            let told = session.round(memory, attacher, &self.progress);
            let is_over = match &told {
                Ok(survey) => survey.misses_any && opened.elapsed() >= REOPEN,
                Err(_) => true,
            };
            self.answer(told.map(Arc::new));
            if is_over || !self.next() {
                return;
            }
        }
    }

    /// Waits until somebody asks; false when nobody ever will.
    fn next(&mut self) -> bool {
        if self.waiting.is_empty() {
            match self.asked.recv() {
                Ok(request) => self.waiting.push(request),
                Err(_) => return false,
            }
        }
        self.waiting.extend(self.asked.try_iter());
        true
    }

    fn answer(&mut self, answer: Answer) {
        self.progress.end(&answer);
        for request in mem::take(&mut self.waiting) {
            // Whoever has given up needs no answer.
            let _ = request.send(answer.clone());
        }
    }
}
