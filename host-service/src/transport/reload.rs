//! A certificate that is renewed while it is in use: the files are looked at again and again, and a new pair that goes
//! together is shown to the next client. What cannot be used changes nothing but a record.
//!
//! Looking costs two `stat`s and works for every way of replacing files (in place, by rename, by a link to another
//! directory), which watching them does not.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::sleep;

use super::tls::{Certificate, Pair, warn_if_shared};

/// The certificate that clients see now.
#[derive(Debug)]
pub(super) struct Shown(pub(super) RwLock<Arc<CertifiedKey>>);

/// Two files as they were.
#[derive(Debug)]
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    seen: [Option<Stamp>; 2],
}

/// Device, inode, size, and when it was written, in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

/// Keeps [`Shown`] that of [`Files`].
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) files: Files,
    pub(super) shown: Arc<Shown>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Files {
    /// `None` for a certificate that is not from files.
    pub(super) fn of(certificate: &Certificate) -> Option<Self> {
        let Certificate::Files { certificate, key } = certificate else { return None };
        let mut files = Self { certificate: certificate.clone(), key: key.clone(), seen: [None; 2] };
        files.have_changed();
        Some(files)
    }

    fn have_changed(&mut self) -> bool {
        let now = [&self.certificate, &self.key].map(|path| {
            let of = fs::metadata(path).ok()?;
            Some((of.dev(), of.ino(), of.size(), of.mtime(), of.mtime_nsec()))
        });
        std::mem::replace(&mut self.seen, now) != now
    }
}

impl Reload {
    /// Until it is dropped.
    pub(super) async fn run(mut self, every: Duration) {
        loop {
            sleep(every).await;
            if self.files.have_changed() {
                self.reload();
            }
        }
    }

    /// Between two files that are replaced one after the other they do not go together; the second is a change again.
    fn reload(&self) {
        let Files { certificate, key, .. } = &self.files;
        let pair = Pair::read(("http.certificate", certificate), ("http.key", key));
        match pair.and_then(Pair::certified) {
            Ok(new) => {
                warn_if_shared(key);
                *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = new;
            }
            Err(error) => tracing::warn!(
                error = host_core::chain(&error),
                "the changed certificate cannot be used; clients see the last one"
            ),
        }
    }
}
