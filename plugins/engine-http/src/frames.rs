//! Output out of an engine's log: without a terminal it comes in frames.

use std::fmt;

use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream, stream::BoxStream};

const HEADER_BYTES: usize = 8;

/// A log that ends within a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutShort;

impl fmt::Display for CutShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it ends within a frame")
    }
}

/// Takes the frames out: one byte of stream, three of nothing, four of length, the bytes. `cut_short` makes the error of
/// a log that ends within one.
pub fn unframed<E: Send + 'static>(
    chunks: BoxStream<'static, Result<Bytes, E>>,
    cut_short: impl Fn(CutShort) -> E + Send + 'static,
) -> impl Stream<Item = Result<Vec<u8>, E>> + Send {
    let beginning = (chunks, Frames::default(), cut_short);
    stream::try_unfold(beginning, |(mut chunks, mut frames, cut_short)| async move {
        while let Some(chunk) = chunks.try_next().await? {
            let output = frames.take(&chunk);
            if !output.is_empty() {
                return Ok(Some((output, (chunks, frames, cut_short))));
            }
        }
        if frames.is_whole() { Ok(None) } else { Err(cut_short(CutShort)) }
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
    use futures::StreamExt;

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
        let chunks = stream::iter([Ok::<_, CutShort>(Bytes::from(cut))]).boxed();
        let items: Vec<_> = unframed(chunks, |error| error).collect().await;
        assert_eq!(items[0].as_ref().unwrap(), b"go");
        assert!(items[1].is_err());
    }
}
