//! Reading bodies, bounded in size, in time, and all together.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, header::EXPECT},
};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::reply::Refusal;

/// So many of the largest bodies may be in memory at once. Ordinary ones are a hundredth of that, and thousands fit.
const LARGEST_AT_ONCE: usize = 64;

/// A client that is still sending does not read. So much of what it sends is thrown away before it is refused, so
/// that it finds an answer and not a reset connection…
const THROWN_AWAY_BYTES: usize = 8 << 20;
/// …if it sends that within this time.
const THROWN_AWAY_WITHIN: Duration = Duration::from_secs(2);

/// The limits, and the room that is left.
#[derive(Debug)]
pub(super) struct Bodies {
    limit_bytes: usize,
    timeout: Duration,
    /// In bytes.
    room: Arc<Semaphore>,
}

/// A body and the room it takes.
#[derive(Debug)]
pub(super) struct Read {
    pub bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(super) fn new(limit_bytes: usize, timeout: Duration) -> Self {
        let room = limit_bytes.saturating_mul(LARGEST_AT_ONCE).min(Semaphore::MAX_PERMITS);
        Self { limit_bytes, timeout, room: Arc::new(Semaphore::new(room)) }
    }

    /// What the header says of the length is within the limit.
    pub(super) fn check_length(&self, body: &Body) -> Result<(), Refusal> {
        let least = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if least > self.limit_bytes { Err(self.too_large()) } else { Ok(()) }
    }

    /// All of it, or why not.
    pub(super) async fn read(&self, body: &mut Body) -> Result<Read, Refusal> {
        match timeout(self.timeout, self.collect(body)).await {
            Ok(result) => result,
            Err(_) => Err(Refusal::SlowBody(self.timeout)),
        }
    }

    async fn collect(&self, body: &mut Body) -> Result<Read, Refusal> {
        let mut read = Read { bytes: Vec::new(), room: None };
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Refusal::BrokenBody)?.into_data() else {
                continue;
            };
            if read.bytes.len() + data.len() > self.limit_bytes {
                return Err(self.too_large());
            }
            let room = u32::try_from(data.len()).map_err(|_| self.too_large())?;
            let room = self.room.clone().try_acquire_many_owned(room).map_err(|_| Refusal::Busy)?;
            match &mut read.room {
                Some(held) => held.merge(room),
                none => *none = Some(room),
            }
            read.bytes.extend_from_slice(&data);
        }
        Ok(read)
    }

    fn too_large(&self) -> Refusal {
        Refusal::TooLarge { limit_bytes: self.limit_bytes }
    }
}

/// Reads on after a refusal, within bounds. Not from a client that waits for leave to send: reading is leave.
pub(super) async fn throw_away(headers: &HeaderMap, mut body: Body) {
    if body.is_end_stream() || headers.contains_key(EXPECT) {
        return;
    }
    let read = async {
        let mut left = THROWN_AWAY_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len()));
            if left == 0 {
                break;
            }
        }
    };
    // A client that is slower than that is cut off.
    let _ = timeout(THROWN_AWAY_WITHIN, read).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Bytes;
    use futures::{StreamExt, stream};

    use super::*;

    fn chunks(chunks: &[usize]) -> Body {
        let chunks: Vec<_> =
            chunks.iter().map(|&length| Ok::<_, Infallible>(Bytes::from(vec![b'x'; length]))).collect();
        Body::from_stream(stream::iter(chunks))
    }

    fn bodies() -> Bodies {
        Bodies::new(100, Duration::from_secs(10))
    }

    #[tokio::test]
    async fn the_limit_is_the_last_byte_that_fits() {
        let bodies = bodies();
        assert_eq!(bodies.read(&mut chunks(&[60, 40])).await.unwrap().bytes.len(), 100);
        assert_eq!(bodies.read(&mut chunks(&[60, 41])).await.unwrap_err().code(), "too_large");
        assert_eq!(bodies.check_length(&Body::from(vec![0; 101])).unwrap_err().code(), "too_large");
        assert!(bodies.check_length(&Body::from(vec![0; 100])).is_ok());
        assert_eq!(bodies.room.available_permits(), 100 * LARGEST_AT_ONCE, "all room came back");
    }

    #[tokio::test]
    async fn all_together_take_a_bounded_room() {
        let bodies = bodies();
        let mut held = Vec::new();
        for _ in 0..LARGEST_AT_ONCE {
            held.push(bodies.read(&mut chunks(&[50, 50])).await.unwrap());
        }
        assert_eq!(bodies.read(&mut chunks(&[1])).await.unwrap_err().code(), "too_many");
        held.pop();
        assert!(bodies.read(&mut chunks(&[100])).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_given_up() {
        let bodies = bodies();
        let stops = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"x"))]).chain(stream::pending());
        let began = tokio::time::Instant::now();
        assert_eq!(bodies.read(&mut Body::from_stream(stops)).await.unwrap_err().code(), "too_slow");
        assert_eq!(began.elapsed(), bodies.timeout);
        assert_eq!(bodies.room.available_permits(), 100 * LARGEST_AT_ONCE, "all room came back");
    }
}
