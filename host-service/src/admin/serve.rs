//! Serving HTTP/1.1 on a listener: bounded in connections and time, and ended in order.

use std::{sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What one server may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Open connections; more wait in the kernel's queue.
    pub(crate) connections: usize,
    /// From the first byte of a request, or the end of the one before, to the end of its header.
    pub(crate) header: Duration,
    /// What requests in flight have at the end, before they are cut off.
    pub(crate) drain: Duration,
}

/// Serves until `stop`, then lets requests in flight end. When it returns, nothing of it runs any more.
pub(crate) async fn serve<L>(mut listener: L, router: Router, limits: Limits, stop: CancellationToken)
where
    L: Listener,
{
    let room = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let accept = async {
        // Nobody closes the semaphore; if it were, there would be no more connections to serve.
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            let (io, _) = listener.accept().await;
            let served = connection(io, router.clone(), limits, stop.clone());
            connections.spawn(async move {
                served.await;
                drop(permit);
            });
        }
    };
    stop.run_until_cancelled(accept).await;
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection<I>(io: I, router: Router, limits: Limits, stop: CancellationToken)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.drain, served).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        // A client that goes away or is slow concerns nobody else.
        Ok(Err(error)) => tracing::debug!(error = %host_core::chain(&error), "a connection ended early"),
        Err(_) => tracing::debug!("a connection was cut off at the end of the service"),
    }
}
