//! One instance: its runtime, its implementation, its calls.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use host_core::{
    ErrorKind, PluginError,
    gpu::Gpu,
    pubsub::PubSub,
    registry::{Context, Plugin, Role},
    runtime::Runtime,
    telemetry::Telemetry,
};
use host_plugin_abi as abi;
use host_plugin_protocol::{Interface, Outcome, Served, serve};
use serde::Deserialize;
use tokio::{runtime, sync::Semaphore, task::AbortHandle};
use tokio_util::task::TaskTracker;

use crate::{
    host::{Completion, Host},
    stream::Credits,
};

/// How long the end waits for calls that are under way.
const END: Duration = Duration::from_secs(5);

/// What a library exports.
#[derive(Debug, Default)]
pub struct Implementations {
    /// Calls run on the host's threads up to the first time they wait.
    pub inline: bool,
    /// A container runtime.
    pub runtime: Option<Plugin<dyn Runtime>>,
    /// Access to GPUs.
    pub gpu: Option<Plugin<dyn Gpu>>,
    /// A control plane.
    pub pubsub: Option<Plugin<dyn PubSub>>,
    /// A destination of records.
    pub telemetry: Option<Plugin<dyn Telemetry>>,
}

impl Implementations {
    pub(crate) fn interfaces(&self) -> Vec<Interface> {
        let there = [
            self.runtime.is_some().then_some(Interface::Runtime),
            self.gpu.is_some().then_some(Interface::Gpu),
            self.pubsub.is_some().then_some(Interface::PubSub),
            self.telemetry.is_some().then_some(Interface::Telemetry),
        ];
        there.into_iter().flatten().collect()
    }

    pub(crate) fn name(&self) -> &'static str {
        let names = [
            self.runtime.as_ref().map(Plugin::name),
            self.gpu.as_ref().map(Plugin::name),
            self.pubsub.as_ref().map(Plugin::name),
            self.telemetry.as_ref().map(Plugin::name),
        ];
        names.into_iter().flatten().next().unwrap_or_default()
    }

    async fn build(self, config: Config) -> Result<Implementation, PluginError> {
        let (section, interface) = (&config.section, config.interface);
        let context = Context {
            state_dir: config.state_dir,
            local: config.local,
            role: match config.role {
                RoleWord::Service => Role::Service,
                RoleWord::Tool => Role::Tool,
            },
        };
        match Interface::of(interface) {
            Some(Interface::Runtime) => {
                Ok(Implementation::Runtime(built(self.runtime, section, context).await?))
            }
            Some(Interface::Gpu) => Ok(Implementation::Gpu(built(self.gpu, section, context).await?)),
            Some(Interface::PubSub) => {
                Ok(Implementation::PubSub(built(self.pubsub, section, context).await?))
            }
            Some(Interface::Telemetry) => {
                Ok(Implementation::Telemetry(built(self.telemetry, section, context).await?))
            }
            None => Err(lacking(interface)),
        }
    }
}

async fn built<P: ?Sized + 'static>(
    plugin: Option<Plugin<P>>,
    section: &serde_json::Value,
    context: Context,
) -> Result<Arc<P>, PluginError> {
    let plugin = plugin.ok_or_else(|| lacking(0))?;
    plugin.build(section, context).await
}

fn lacking(interface: u16) -> PluginError {
    PluginError::new(ErrorKind::Unsupported, format!("the plugin has no interface {interface}"))
}

/// What the host says when it wants an instance.
#[derive(Debug, Deserialize)]
struct Config {
    interface: u16,
    #[serde(default)]
    section: serde_json::Value,
    #[serde(default)]
    state_dir: PathBuf,
    #[serde(default)]
    local: bool,
    role: RoleWord,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleWord {
    Service,
    Tool,
}

#[derive(Debug, Clone)]
enum Implementation {
    Runtime(Arc<dyn Runtime>),
    Gpu(Arc<dyn Gpu>),
    PubSub(Arc<dyn PubSub>),
    Telemetry(Arc<dyn Telemetry>),
}

impl Implementation {
    fn serve(&self, host: Host, method: u32, request: &[u8], items: Arc<Credits>) -> Served {
        let encoding = host.encoding;
        let [high, low] = [method >> 16, method & 0xffff].map(|half| u16::try_from(half).unwrap_or(u16::MAX));
        match (self, Interface::of(high)) {
            (Self::Runtime(it), Some(Interface::Runtime)) => {
                serve::runtime(it, low, encoding, request, items)
            }
            (Self::Gpu(it), Some(Interface::Gpu)) => serve::gpu(it, low, encoding, request, items),
            (Self::PubSub(it), Some(Interface::PubSub)) => serve::pubsub(it, low, encoding, request, items),
            (Self::Telemetry(it), Some(Interface::Telemetry)) => {
                serve::telemetry(it, low, encoding, request, items)
            }
            _ => Served::Unknown,
        }
    }
}

/// Calls that are under way, to be cancelled and granted to.
#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<HashMap<u64, Call>>);

#[derive(Debug)]
struct Call {
    task: Option<AbortHandle>,
    credits: Arc<Semaphore>,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, call: u64, credits: Arc<Semaphore>) {
        self.lock().insert(call, Call { task: None, credits });
    }

    /// Unless it has ended meanwhile.
    fn set_task(&self, call: u64, task: AbortHandle) {
        if let Some(call) = self.lock().get_mut(&call) {
            call.task = Some(task);
        }
    }

    pub(crate) fn remove(&self, call: u64) {
        self.lock().remove(&call);
    }

    pub(crate) fn cancel(&self, call: u64) {
        let task = self.lock().get(&call).and_then(|call| call.task.clone());
        if let Some(task) = task {
            task.abort();
        }
    }

    pub(crate) fn grant(&self, call: u64, credits: u32) {
        let all = self.lock().get(&call).map(|call| Arc::clone(&call.credits));
        if let Some(all) = all {
            let room = Semaphore::MAX_PERMITS - all.available_permits();
            all.add_permits((credits as usize).min(room));
        }
    }
}

/// Records of a telemetry's own threads are not recorded: they would be sent, and sending them recorded.
fn thread_name(interface: u16) -> String {
    let kind = Interface::of(interface).map_or("plugin", Interface::as_str);
    format!("{kind}-plugin")
}

/// What `create` makes.
#[derive(Debug)]
pub(crate) struct Instance {
    host: Host,
    inline: bool,
    /// `None` once it has been shut down.
    runtime: Mutex<Option<runtime::Runtime>>,
    handle: runtime::Handle,
    tasks: TaskTracker,
    implementation: Arc<OnceLock<Implementation>>,
    calls: Arc<Calls>,
}

impl Instance {
    /// Begins to build what `config` says; `call` completes with it.
    pub(crate) fn create(
        host: Host,
        call: u64,
        config: &[u8],
        implementations: Implementations,
    ) -> Result<Self, PluginError> {
        let config: Config = serde_json::from_slice(config).map_err(|error| {
            PluginError::new(ErrorKind::Invalid, format!("what the host says of itself: {error}"))
        })?;
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name(thread_name(config.interface))
            .enable_all()
            .build()
            .map_err(|error| {
                PluginError::new(ErrorKind::Exhausted, "the plugin gets no threads").with_source(error)
            })?;
        let instance = Self {
            host,
            inline: implementations.inline,
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            tasks: TaskTracker::new(),
            implementation: Arc::default(),
            calls: Arc::default(),
        };
        let slot = Arc::clone(&instance.implementation);
        instance.calls.insert(call, Arc::new(Semaphore::new(0)));
        instance.spawn(
            call,
            async move {
                let built = implementations.build(config).await?;
                slot.set(built).ok();
                Ok(Vec::new())
            }
            .boxed(),
        );
        Ok(instance)
    }

    pub(crate) fn call(&self, call: u64, method: u32, request: &[u8], window: u32) {
        let credits = Arc::new(Semaphore::new(window as usize));
        let Some(implementation) = self.implementation.get() else {
            let error = PluginError::new(ErrorKind::Unavailable, "the plugin is not ready");
            return self.host.fail(call, &error);
        };
        let items = Arc::new(Credits::new(self.host, call, Arc::clone(&credits)));
        // An implementation may spawn tasks also where it only answers.
        let entered = self.handle.enter();
        let served = implementation.serve(self.host, method, request, items);
        drop(entered);
        match served {
            Served::Now(outcome) => self.host.complete(call, outcome),
            Served::Unknown => self.host.answer(call, abi::UNIMPLEMENTED, b""),
            Served::Later(work) => {
                self.calls.insert(call, credits);
                self.work(call, work);
            }
        }
    }

    fn work(&self, call: u64, mut work: BoxFuture<'static, Outcome>) {
        if self.inline {
            let entered = self.handle.enter();
            let polled = AssertUnwindSafe(&mut work).catch_unwind().now_or_never();
            drop(entered);
            if let Some(outcome) = polled {
                let done = Completion::new(self.host, call, Some(Arc::clone(&self.calls)));
                return done.with(outcome.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
            }
        }
        self.spawn(call, work);
    }

    fn spawn(&self, call: u64, work: BoxFuture<'static, Outcome>) {
        let done = Completion::new(self.host, call, Some(Arc::clone(&self.calls)));
        let task = self.tasks.spawn_on(
            async move {
                // Inside, so that a panic while the future is dropped is caught as well.
                let outcome = AssertUnwindSafe(work).catch_unwind().await;
                done.with(outcome.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))));
            },
            &self.handle,
        );
        self.calls.set_task(call, task.abort_handle());
    }

    /// What panicked before it had a task.
    pub(crate) fn fail(&self, call: u64, error: &PluginError) {
        self.calls.remove(call);
        self.host.fail(call, error);
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Lets what is under way end, for a while, then completes `call`.
    pub(crate) fn shutdown(&self, call: u64) {
        self.tasks.close();
        let (tasks, done) = (self.tasks.clone(), Completion::new(self.host, call, None));
        // On the runtime, not tracked: it waits for all that are.
        #[allow(clippy::disallowed_methods, reason = "owned by the runtime, which ends with the instance")]
        self.handle.spawn(async move {
            tokio::time::timeout(END, tasks.wait()).await.ok();
            done.with(Ok(Vec::new()));
        });
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> PluginError {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    PluginError::new(ErrorKind::Internal, format!("the plugin panicked: {text}"))
}
