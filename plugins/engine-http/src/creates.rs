//! Creations under way.
//!
//! An engine that has begun to create a container goes on when its client hangs up, and until it is done says that
//! there is no container of that name. Somebody who gave up on a creation and then removes the name would remove
//! nothing, and the container would appear afterwards. So a creation, once begun, is seen through in a task of its
//! own, and everything that names the container waits for it.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use host_core::{ContainerName, ErrorKind, PluginError, runtime::ContainerRef};
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
};
use tracing::Instrument;

/// The creations of one runtime; dropping it abandons them.
#[derive(Debug, Default)]
pub struct Creates {
    under_way: Arc<watch::Sender<Vec<ContainerName>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Creates {
    /// Runs `create` to its end, even if this future is dropped.
    pub async fn see_through<T: Send + 'static>(
        &self,
        name: &ContainerName,
        create: impl Future<Output = Result<T, PluginError>> + Send + 'static,
    ) -> Result<T, PluginError> {
        let (answer, answered) = oneshot::channel();
        let entry = Entry::new(&self.under_way, name);
        let task = async move {
            let outcome = create.await;
            drop(entry);
            // Nobody listens any more when the caller gave up.
            let _ = answer.send(outcome);
        };
        {
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task.in_current_span());
        }
        answered.await.unwrap_or_else(|_| {
            let text = format!("the creation of {name} was abandoned");
            Err(PluginError::new(ErrorKind::Internal, text))
        })
    }

    /// Returns once no container of that name is being created.
    pub async fn settled(&self, container: &ContainerRef) {
        let ContainerRef::Name(name) = container else {
            return;
        };
        let mut under_way = self.under_way.subscribe();
        // The sender lives as long as `self`, so this only returns by the condition.
        let _ = under_way.wait_for(|names| !names.contains(name)).await;
    }
}

/// A name among those under way.
struct Entry {
    under_way: Arc<watch::Sender<Vec<ContainerName>>>,
    name: ContainerName,
}

impl Entry {
    fn new(under_way: &Arc<watch::Sender<Vec<ContainerName>>>, name: &ContainerName) -> Self {
        under_way.send_modify(|names| names.push(name.clone()));
        Self { under_way: Arc::clone(under_way), name: name.clone() }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.under_way.send_modify(|names| {
            if let Some(place) = names.iter().position(|name| *name == self.name) {
                names.swap_remove(place);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_creation_given_up_goes_on_and_its_name_is_waited_for() {
        let creates = Creates::default();
        let name: ContainerName = "given-up".parse().unwrap();
        let (done, mut seen) = watch::channel(false);
        let slow = async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            done.send_replace(true);
            Ok(())
        };
        let patience = Duration::from_secs(1);
        let gave_up = tokio::time::timeout(patience, creates.see_through(&name, slow)).await;
        assert!(gave_up.is_err());
        assert!(!*seen.borrow_and_update());

        let other: ContainerName = "another".parse().unwrap();
        assert!(creates.settled(&other.into()).now_or_never().is_some());
        creates.settled(&name.into()).await;
        assert!(*seen.borrow_and_update());
    }

    #[tokio::test]
    async fn a_creation_answers_and_leaves_nothing() {
        let creates = Creates::default();
        let name: ContainerName = "one".parse().unwrap();
        assert_eq!(creates.see_through(&name, async { Ok(7) }).await.unwrap(), 7);
        assert!(creates.under_way.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_creation_that_panics_is_an_error_and_leaves_nothing() {
        let creates = Creates::default();
        let name: ContainerName = "one".parse().unwrap();
        let answer =
            creates.see_through(&name, async { if true { panic!("at the disco") } else { Ok(()) } }).await;
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Internal);
        assert!(creates.under_way.borrow().is_empty());
    }
}
