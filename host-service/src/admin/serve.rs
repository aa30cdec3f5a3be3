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
use tracing::Instrument;

/// What one server may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of the server, for records.
    pub(crate) name: &'static str,
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
            let held = async move {
                served.await;
                drop(permit);
            };
            connections.spawn(held.instrument(tracing::info_span!("connection", server = limits.name)));
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        sync::Notify,
        task::JoinSet,
    };

    use super::*;

    const LIMITS: Limits = Limits {
        name: "test",
        connections: 1,
        header: Duration::from_millis(50),
        drain: Duration::from_secs(30),
    };
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    async fn server(router: Router) -> (JoinSet<()>, std::net::SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, router, LIMITS, stop.clone()));
        (server, address, stop)
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn who_says_nothing_makes_room_for_others() {
        let (_server, address, _stop) = server(Router::new().route("/", get("fine"))).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(REQUEST).await.unwrap();
        assert!(answer(&mut other).await.ends_with("fine"));
        assert!(!answer(&mut silent).await.contains("200"));
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_at_the_end() {
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (begun.clone(), go_on.clone());
        let slow = move || async move {
            tell.notify_one();
            wait.notified().await;
            "done"
        };
        let (mut server, address, stop) = server(Router::new().route("/", get(slow))).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        begun.notified().await;
        stop.cancel();
        assert!(server.try_join_next().is_none(), "it waits for the request");
        go_on.notify_one();
        assert!(answer(&mut stream).await.ends_with("done"));
        server.join_next().await.unwrap().unwrap();
    }
}
