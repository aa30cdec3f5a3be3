//! Blocking work that ends soon after nobody waits for it any more.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use host_core::{ErrorKind, PluginError};
use tokio::task;
use tokio_util::sync::CancellationToken;

use crate::error::{Result, carried, invalid};

/// Told when nobody waits for the work any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(CancellationToken);

impl Stop {
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.is_cancelled() {
            return Err(PluginError::new(ErrorKind::Internal, "nobody waits for this any more"));
        }
        Ok(())
    }

    /// Ends the work.
    pub(crate) fn now(&self) {
        self.0.cancel();
    }

    /// Returns when the work must end.
    pub(crate) async fn told(&self) {
        self.0.cancelled().await;
    }

    /// What is read through it ends with an error once nobody waits.
    pub(crate) fn reader<R: Read>(&self, inner: R) -> Stoppable<R> {
        Stoppable { inner, stop: self.clone() }
    }
}

/// Ends the work when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct StopOnDrop(Stop);

impl StopOnDrop {
    pub(crate) fn stop(&self) -> Stop {
        self.0.clone()
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.now();
    }
}

/// Runs `work` on a thread that may block. Dropping the future makes `work` fail at its next check.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Stop) -> Result<T> + Send + 'static,
) -> Result<T> {
    let guard = StopOnDrop::default();
    blocking_until(&guard.0, work).await
}

/// The same for work that others end too.
pub(crate) async fn blocking_until<T: Send + 'static>(
    stop: &Stop,
    work: impl FnOnce(&Stop) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = stop.clone();
    let done = task::spawn_blocking(move || work(&stop)).await;
    done.unwrap_or_else(|error| {
        Err(PluginError::new(ErrorKind::Internal, "work on the image store ended early").with_source(error))
    })
}

pub(crate) struct Stoppable<R> {
    inner: R,
    stop: Stop,
}

impl<R> Stoppable<R> {
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check().map_err(carried)?;
        self.inner.read(buffer)
    }
}

/// What one image may still take when unpacked; its layers share it.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: Left,
    entries: Left,
}

impl Budget {
    pub(crate) fn new(bytes: u64, entries: u64) -> Self {
        Self {
            bytes: Left::new(bytes, "bytes", "unpacked_bytes_max"),
            entries: Left::new(entries, "entries", "entries_max"),
        }
    }

    pub(crate) fn take_bytes(&self, count: u64) -> Result<()> {
        self.bytes.take(count)
    }

    pub(crate) fn take_entry(&self) -> Result<()> {
        self.entries.take(1)
    }

    /// What is read through it is paid from here.
    pub(crate) fn reader<R: Read>(self: &Arc<Self>, inner: R) -> Paid<R> {
        Paid { inner, budget: Arc::clone(self) }
    }
}

#[derive(Debug)]
struct Left {
    max: u64,
    left: AtomicU64,
    unit: &'static str,
    key: &'static str,
}

impl Left {
    fn new(max: u64, unit: &'static str, key: &'static str) -> Self {
        Self { max, left: max.into(), unit, key }
    }

    fn take(&self, count: u64) -> Result<()> {
        let enough = |left: u64| left.checked_sub(count);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough);
        taken.map(drop).map_err(|_| {
            let Self { max, unit, key, .. } = self;
            invalid(format!(
                "unpacked, the image has more than {max} {unit}; the limit is {key} in [runtime.oci.images]"
            ))
        })
    }
}

pub(crate) struct Paid<R> {
    inner: R,
    budget: Arc<Budget>,
}

impl<R: Read> Read for Paid<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget.take_bytes(count as u64).map_err(carried)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc,
        time::{Duration, Instant},
    };

    use host_core::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends() {
        let (started, began) = tokio::sync::oneshot::channel();
        let (ended, end) = mpsc::channel();
        let work = blocking(move |stop| {
            let _ = started.send(());
            let mut zeros = stop.reader(io::repeat(0));
            let deadline = Instant::now() + Duration::from_secs(10);
            let is_told = || zeros.read(&mut [0; 1024]).is_err();
            let told = std::iter::repeat_with(is_told).find(|told| *told || Instant::now() > deadline);
            let _ = ended.send(told);
            Ok(())
        });
        tokio::select! {
            biased;
            _ = work => panic!("it ended by itself"),
            _ = began => {}
        }
        assert_eq!(end.recv().unwrap(), Some(true));
    }

    #[test]
    fn layers_share_what_an_image_may_take() {
        let budget = Arc::new(Budget::new(10, 2));
        io::copy(&mut budget.reader(&[0; 6][..]), &mut io::sink()).unwrap();
        let error = io::copy(&mut budget.reader(&[0; 6][..]), &mut io::sink()).unwrap_err();
        let error = crate::error::unreadable("layer", error);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("10 bytes"), "{error}");
        budget.take_entry().unwrap();
        budget.take_entry().unwrap();
        assert!(budget.take_entry().unwrap_err().to_string().contains("entries_max"));
    }
}
