//! What a container writes.
//!
//! Two things are not the engine's here. It takes the pieces that it keeps of an unfinished line for lines when it is
//! asked for the last ones, and it ends a followed log when the container ends, which may be before it has sent what was
//! written last. So it is asked for all: before, to find where the last lines begin, and after, for what is missing.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use engine_http::{Doing, unframed};
use futures::{StreamExt, TryStreamExt, future, stream, stream::BoxStream};
use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerRef, LogChunk, LogOptions, Result},
};

use crate::{container::inspected, engine::Engine, error::nonsense};

const READING: Doing = Doing("read a container's log", "");

type Output = BoxStream<'static, Result<LogChunk>>;

/// Past podman-api, which has no stream that outlives its client, and takes a frame for what the network delivers at once.
pub(crate) async fn read(engine: &Engine, container: &ContainerRef, options: LogOptions) -> Result<Output> {
    let name = container.as_str();
    let doing = Doing("read the log of container", name);
    if inspected(engine, name).await?.is_none() {
        let text = format!("cannot {doing}: there is no such container");
        return Err(PluginError::new(ErrorKind::NotFound, text));
    }
    let skipped = match options.tail {
        Some(lines) => beginning_of_last(lines, output(engine, name, false).await?).await?,
        None => 0,
    };
    let output =
        if options.follow { followed(engine, name).await? } else { output(engine, name, false).await? };
    Ok(from(skipped, output))
}

/// What is written until the container ends, and then what the engine left out of it.
async fn followed(engine: &Engine, name: &str) -> Result<Output> {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = {
        let sent = Arc::clone(&sent);
        output(engine, name, true).await?.inspect(move |chunk| match chunk {
            Ok(chunk) => {
                sent.fetch_add(chunk.len(), Ordering::Relaxed);
            }
            Err(_) => sent.store(usize::MAX, Ordering::Relaxed),
        })
    };
    let (engine, name) = (engine.clone(), name.to_owned());
    let rest = async move {
        match sent.load(Ordering::Relaxed) {
            // It broke off.
            usize::MAX => Ok(stream::empty().boxed()),
            sent => Ok(from(sent, output(&engine, &name, false).await?)),
        }
    };
    // Somebody may have removed the container by now.
    let is_told =
        |item: &Result<LogChunk>| !matches!(item, Err(error) if error.kind() == ErrorKind::NotFound);
    let rest =
        future::TryFutureExt::try_flatten_stream(rest).filter(move |item| future::ready(is_told(item)));
    Ok(counted.chain(rest).boxed())
}

/// Libpod's API frames a terminal's output too, unlike Docker's.
async fn output(engine: &Engine, name: &str, follow: bool) -> Result<Output> {
    let path = format!("/containers/{name}/logs?stdout=true&stderr=true&follow={follow}");
    let answer = engine.begin(Doing("read the log of container", name), &path).await?;
    let explain = engine.explain.clone();
    let chunks = answer.into_stream().map_err(move |failure| explain.unanswered(READING, failure));
    Ok(unframed(chunks.boxed(), |cut| nonsense(READING, cut)).boxed())
}

async fn beginning_of_last(lines: u32, mut output: Output) -> Result<usize> {
    let mut beginnings = Beginnings::of_last(lines);
    while let Some(chunk) = output.try_next().await? {
        beginnings.take(&chunk);
    }
    Ok(beginnings.first())
}

/// Where the last lines begin, in bytes.
struct Beginnings {
    lines: usize,
    last: VecDeque<usize>,
    seen: usize,
    /// The next byte begins a line.
    at_beginning: bool,
}

impl Beginnings {
    fn of_last(lines: u32) -> Self {
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        Self { lines, last: VecDeque::new(), seen: 0, at_beginning: true }
    }

    fn take(&mut self, chunk: &[u8]) {
        for byte in chunk {
            if self.at_beginning {
                self.last.push_back(self.seen);
                if self.last.len() > self.lines {
                    self.last.pop_front();
                }
            }
            self.seen += 1;
            self.at_beginning = *byte == b'\n';
        }
    }

    fn first(&self) -> usize {
        self.last.front().copied().unwrap_or(self.seen)
    }
}

/// What comes after the first bytes.
fn from(mut skipped: usize, output: Output) -> Output {
    let rest = output.map_ok(move |mut chunk| {
        let rest = chunk.split_off(skipped.min(chunk.len()));
        skipped -= chunk.len();
        rest
    });
    rest.try_filter(|rest| future::ready(!rest.is_empty())).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn last(lines: u32, pieces: &[&str]) -> String {
        let written: Vec<_> = pieces.iter().map(|piece| piece.as_bytes().to_vec()).collect();
        let output = || stream::iter(written.clone().into_iter().map(Ok)).boxed();
        let skipped = beginning_of_last(lines, output()).await.unwrap();
        let rest = from(skipped, output());
        String::from_utf8(rest.try_collect::<Vec<_>>().await.unwrap().concat()).unwrap()
    }

    #[tokio::test]
    async fn the_last_lines_are_lines_however_they_were_written() {
        for pieces in [&["one\ntwo\nthree\n"][..], &["on", "e\nt", "wo", "\n", "th", "ree", "\n"]] {
            for (lines, expected) in [
                (0, ""),
                (1, "three\n"),
                (2, "two\nthree\n"),
                (3, "one\ntwo\nthree\n"),
                (9, "one\ntwo\nthree\n"),
            ] {
                assert_eq!(last(lines, pieces).await, expected, "{lines} of {pieces:?}");
            }
        }
        assert_eq!(last(1, &["one\n", "unfinished"]).await, "unfinished");
        assert_eq!(last(1, &[]).await, "");
    }
}
