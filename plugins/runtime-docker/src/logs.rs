//! What a container writes.

use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerRef, LogChunk, LogOptions, Result},
};
use hyper::body::Bytes;

use crate::{
    container::inspected,
    engine::Engine,
    error::{Doing, nonsense},
    wire::Broken,
};

const READING: Doing = Doing("read a container's log", "");
const HEADER_BYTES: usize = 8;

pub(crate) async fn read(
    engine: &Engine,
    container: &ContainerRef,
    options: LogOptions,
) -> Result<BoxStream<'static, Result<LogChunk>>> {
    let name = container.as_str();
    let doing = Doing("read the log of container", name);
    let Some(inspected) = inspected(engine, name).await? else {
        let text = format!("cannot {doing}: there is no such container");
        return Err(PluginError::new(ErrorKind::NotFound, text));
    };
    let is_terminal = inspected.config.and_then(|config| config.tty).unwrap_or(false);
    let answer = engine.get(doing, &path(name, options)).await?;
    let explain = engine.explain.clone();
    let broken = move |error: Broken| explain.disconnected(READING, error.as_ref());
    let chunks = answer.into_stream().map_err(broken);
    Ok(if is_terminal {
        chunks.map_ok(|chunk| chunk.to_vec()).boxed()
    } else {
        unframed(chunks.boxed()).boxed()
    })
}

fn path(name: &str, options: LogOptions) -> String {
    let tail = options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let follow = options.follow;
    format!("/containers/{name}/logs?stdout=true&stderr=true&follow={follow}&tail={tail}")
}

/// Without a terminal the engine sends frames: one byte of stream, three of nothing, four of length, the bytes.
fn unframed(
    chunks: BoxStream<'static, Result<Bytes>>,
) -> impl futures::Stream<Item = Result<LogChunk>> + Send {
    stream::try_unfold((chunks, Frames::default()), |(mut chunks, mut frames)| async move {
        while let Some(chunk) = chunks.try_next().await? {
            let output = frames.take(&chunk);
            if !output.is_empty() {
                return Ok(Some((output, (chunks, frames))));
            }
        }
        if frames.is_whole() { Ok(None) } else { Err(nonsense(READING, "it ends within a frame")) }
    })
}

/// Takes the headers out.
#[derive(Debug, Default)]
struct Frames {
    /// The part of a header that has come.
    header: Vec<u8>,
    /// How much of the frame is still to come.
    left: usize,
}

impl Frames {
    /// The output in `bytes`.
    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            if self.left > 0 {
                let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
                output.extend_from_slice(piece);
                self.left -= piece.len();
                bytes = rest;
                continue;
            }
            let lacking = HEADER_BYTES - self.header.len();
            let (piece, rest) = bytes.split_at(lacking.min(bytes.len()));
            self.header.extend_from_slice(piece);
            bytes = rest;
            if let [_, _, _, _, length @ ..] = self.header.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.header.clear();
            }
        }
        output
    }

    fn is_whole(&self) -> bool {
        self.left == 0 && self.header.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&[stream, 0, 0, 0], &length[..], text.as_bytes()].concat()
    }

    #[test]
    fn output_is_whole_however_it_is_cut() {
        let framed = [frame(1, "out\n"), frame(2, ""), frame(2, "err \u{1}\n"), frame(1, "end")].concat();
        for size in 1..=framed.len() {
            let mut frames = Frames::default();
            let output: Vec<u8> = framed.chunks(size).flat_map(|chunk| frames.take(chunk)).collect();
            assert_eq!(String::from_utf8(output).unwrap(), "out\nerr \u{1}\nend");
            assert!(frames.is_whole());
        }
    }

    #[tokio::test]
    async fn a_frame_cut_short_is_an_error() {
        let cut = frame(1, "gone")[..10].to_vec();
        let chunks = stream::iter([Ok(Bytes::from(cut))]).boxed();
        let items: Vec<_> = unframed(chunks).collect().await;
        assert_eq!(items[0].as_ref().unwrap(), b"go");
        assert!(items[1].is_err());
    }
}
