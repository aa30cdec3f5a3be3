//! The model, shared by the runtime, its tasks and its scripts.

use std::sync::{Mutex, PoisonError};

use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerRef, Result},
};
use tokio::sync::watch;

use crate::{
    faults::{Instead, Op},
    model::Model,
};

#[derive(Debug)]
pub(crate) struct Shared {
    model: Mutex<Model>,
    /// Sent to after every change, so that a condition on the model can be waited for.
    changed: watch::Sender<()>,
}

impl Shared {
    pub(crate) fn new(model: Model) -> Self {
        Self { model: Mutex::new(model), changed: watch::Sender::new(()) }
    }

    /// Looks at the model.
    pub(crate) fn see<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.model.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the model, whatever the engine's state: for the script and for what runs in containers.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let outcome = change(&mut self.model.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
        outcome
    }

    /// A call with one effect.
    pub(crate) async fn call<T>(
        &self,
        op: Op,
        container: Option<&ContainerRef>,
        effect: impl FnOnce(&mut Model) -> Result<T>,
    ) -> Result<T> {
        let call = self.begin(op, container).await?;
        let answer = self.act(effect)?;
        call.end().await?;
        Ok(answer)
    }

    /// The part of a call before its effect.
    pub(crate) async fn begin(&self, op: Op, container: Option<&ContainerRef>) -> Result<Call> {
        let struck = self.change(|model| model.strike(op, container.map(ContainerRef::as_str)));
        if !struck.delay.is_zero() {
            tokio::time::sleep(struck.delay).await;
        }
        instead(struck.before, op).await?;
        Ok(Call { op, after: struck.after })
    }

    /// What a call does in the engine.
    pub(crate) fn act<T>(&self, effect: impl FnOnce(&mut Model) -> Result<T>) -> Result<T> {
        self.change(|model| {
            if model.is_up {
                effect(model)
            } else {
                let text = "the simulated engine is down";
                Err(PluginError::new(ErrorKind::Unavailable, text))
            }
        })
    }

    /// The answer of `look` once it has one, looked for now and after every change.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut(&Model) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(answer) = self.see(&mut look) {
                return answer;
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }
}

/// A call whose effect is still to come, or has just come.
#[derive(Debug)]
pub(crate) struct Call {
    op: Op,
    after: Option<Instead>,
}

impl Call {
    /// The part of a call after its effect.
    pub(crate) async fn end(self) -> Result<()> {
        instead(self.after, self.op).await
    }
}

#[expect(clippy::panic, reason = "a script asked for it")]
async fn instead(instead: Option<Instead>, op: Op) -> Result<()> {
    match instead {
        None => Ok(()),
        Some(Instead::Fail(kind)) => Err(PluginError::new(kind, format!("{op:?} was made to fail"))),
        Some(Instead::Hang) => std::future::pending().await,
        Some(Instead::Panic) => panic!("{op:?} was made to panic"),
    }
}
