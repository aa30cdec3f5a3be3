//! The test's hand inside the simulation.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use host_core::{
    ContainerName, ErrorKind, ImageRef,
    runtime::{Container, ContainerId, ContainerSpec, Exit, PortMapping},
};

use crate::{
    faults::{Fault, Op, Rule, Which},
    model::{Lifetime, Model},
    shared::Shared,
};

/// Makes one simulation misbehave, and sees what the trait does not show. Clones are the same hand.
///
/// ```
/// # use host_core::ErrorKind;
/// # use runtime_sim::{Config, Op, Sim};
/// let sim = Sim::new(Config::default());
/// let script = sim.script();
/// script.on(Op::Start).nth(2).fails(ErrorKind::AddressInUse);
/// script.on(Op::Create).answer_is_lost(ErrorKind::Unavailable);
/// ```
#[derive(Debug, Clone)]
pub struct Script(pub(crate) Arc<Shared>);

/// Calls of one operation; every one unless narrowed down.
#[derive(Debug)]
#[must_use = "nothing happens to these calls until it is said what"]
pub struct Calls<'a> {
    script: &'a Script,
    op: Op,
    container: Option<ContainerName>,
    which: Which,
}

/// What becomes of containers when the engine restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containers {
    /// They run on, as with Docker's live restore.
    RunOn,
    /// Those that ran are killed; nobody is told.
    Die,
    /// They are gone without trace.
    Vanish,
}

impl Script {
    /// Chooses calls to strike, made from now on.
    pub fn on(&self, op: Op) -> Calls<'_> {
        Calls { script: self, op, container: None, which: Which::All }
    }

    /// Lets all calls be again.
    pub fn relent(&self) {
        self.0.change(|model| model.rules.clear());
    }

    /// How many calls of `op` were made.
    pub fn calls(&self, op: Op) -> u64 {
        self.0.see(|model| model.calls.get(&op).copied().unwrap_or(0))
    }

    /// Every container, in the order of creation.
    pub fn containers(&self) -> Vec<Container> {
        self.0.see(|model| model.all().map(|(id, found)| found.seen(id)).collect())
    }

    /// What a container was made of.
    pub fn spec(&self, name: &ContainerName) -> Option<ContainerSpec> {
        self.0.see(|model| Some(model.find(&name.clone().into())?.1.spec.clone()))
    }

    /// Ends a running container's first process, as by itself.
    pub fn exit(&self, name: &ContainerName, code: i32) {
        self.end(name, Exit { code: Some(code), oom: false });
    }

    /// The kernel kills a running container for memory.
    pub fn run_out_of_memory(&self, name: &ContainerName) {
        self.end(name, Exit { code: Some(137), oom: true });
    }

    fn end(&self, name: &ContainerName, exit: Exit) {
        self.change(name, |model, id| model.exit(id, exit));
    }

    /// Somebody else removes a container.
    pub fn remove(&self, name: &ContainerName) {
        self.change(name, Model::remove);
    }

    /// Does nothing when there is no such container.
    fn change(&self, name: &ContainerName, change: impl FnOnce(&mut Model, &ContainerId)) {
        self.0.change(|model| {
            let found = model.find(&name.clone().into()).map(|(id, _)| id.clone());
            if let Some(id) = found {
                change(model, &id);
            }
        });
    }

    /// Every container started from now on ends with `code` after a time.
    pub fn all_exit_after(&self, after: Duration, code: i32) {
        self.limit_life(None, after, code);
    }

    /// The container of that name, once started from now on, ends with `code` after a time.
    pub fn exits_after(&self, name: &ContainerName, after: Duration, code: i32) {
        self.limit_life(Some(name.clone()), after, code);
    }

    fn limit_life(&self, container: Option<ContainerName>, after: Duration, code: i32) {
        let exit = Exit { code: Some(code), oom: false };
        self.0.change(|model| model.lifetimes.push(Lifetime { container, after, exit }));
    }

    /// The image is present.
    pub fn add_image(&self, image: &ImageRef) {
        self.0.change(|model| model.images.add(image.clone()));
    }

    /// The image is not present.
    pub fn remove_image(&self, image: &ImageRef) {
        self.0.change(|model| model.images.remove(image));
    }

    /// The image can be pulled.
    pub fn publish_image(&self, image: &ImageRef) {
        self.0.change(|model| model.images.publish(image.clone()));
    }

    /// Somebody else has this host port, at all its addresses.
    pub fn take_port(&self, port: &PortMapping) {
        self.0.change(|model| model.taken_ports.insert((port.protocol, port.host)));
    }

    /// Ends every event stream with an error.
    pub fn cut_events(&self) {
        self.0.change(|model| model.disconnect());
    }

    /// Tells every event stream that something may be missing.
    pub fn tell_gap(&self) {
        self.0.change(|model| model.tell_gap());
    }

    /// The engine does not answer any more; event streams end.
    pub fn go_down(&self) {
        self.0.change(|model| {
            model.is_up = false;
            model.disconnect();
        });
    }

    /// The engine answers again, as a new process.
    pub fn come_up(&self, containers: Containers) {
        self.0.change(|model| {
            match containers {
                Containers::RunOn => {}
                Containers::Die => model.kill_all(),
                Containers::Vanish => model.forget_all(),
            }
            model.is_up = true;
            model.started_at = SystemTime::now();
        });
    }

    /// [`Script::go_down`], then [`Script::come_up`].
    pub fn restart(&self, containers: Containers) {
        self.go_down();
        self.come_up(containers);
    }
}

impl Calls<'_> {
    /// Only those that concern this container.
    pub fn of(mut self, name: &ContainerName) -> Self {
        self.container = Some(name.clone());
        self
    }

    /// Only the n-th of them, counted from 1.
    pub fn nth(mut self, nth: u64) -> Self {
        self.which = Which::Nth(nth);
        self
    }

    /// They fail, and have no effect.
    pub fn fails(self, kind: ErrorKind) {
        self.suffers(Fault::Fail(kind));
    }

    /// They take effect, and fail nevertheless.
    pub fn answer_is_lost(self, kind: ErrorKind) {
        self.suffers(Fault::LoseAnswer(kind));
    }

    /// They take this much longer.
    pub fn takes(self, delay: Duration) {
        self.suffers(Fault::Delay(delay));
    }

    /// They never end, and have no effect.
    pub fn hangs(self) {
        self.suffers(Fault::Hang);
    }

    /// They panic, as a plugin with a fault of its own does.
    pub fn panics(self) {
        self.suffers(Fault::Panic);
    }

    /// They take effect, and never end.
    pub fn hangs_after_effect(self) {
        self.suffers(Fault::HangAfter);
    }

    fn suffers(self, fault: Fault) {
        let rule = Rule { op: self.op, container: self.container, which: self.which, fault, met: 0 };
        self.script.0.change(|model| model.rules.push(rule));
    }
}
