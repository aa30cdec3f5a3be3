//! What containers tell: their events and their output.

use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use host_core::runtime::{
    ContainerChange, Exit, LogChunk, LogOptions, Result, Runtime, RuntimeEvent, Selector,
};
use runtime_oci::OciRuntime;

use crate::world::{LONG, named, within};

pub(crate) type Events = BoxStream<'static, Result<RuntimeEvent>>;
pub(crate) type Output = BoxStream<'static, Result<LogChunk>>;

/// Of all containers.
pub(crate) async fn events(runtime: &OciRuntime) -> Events {
    runtime.events(&Selector::default()).await.unwrap()
}

pub(crate) async fn next(events: &mut Events) -> ContainerChange {
    match within(LONG, "the next event", events.next()).await {
        Some(Ok(RuntimeEvent::Container(event))) => event.change,
        other => panic!("{other:?} is no change"),
    }
}

/// The next end, and what was told before.
pub(crate) async fn next_exit(events: &mut Events) -> (Exit, Vec<ContainerChange>) {
    let mut before = Vec::new();
    loop {
        match next(events).await {
            ContainerChange::Exited(exit) => return (exit, before),
            other => before.push(other),
        }
    }
}

pub(crate) async fn log(runtime: &OciRuntime, name: &str) -> String {
    text(read(runtime, name, LogOptions::default()).await).await
}

pub(crate) async fn tail(runtime: &OciRuntime, name: &str, lines: u32) -> String {
    text(read(runtime, name, LogOptions { follow: false, tail: Some(lines) }).await).await
}

pub(crate) async fn follow(runtime: &OciRuntime, name: &str) -> Output {
    read(runtime, name, LogOptions { follow: true, tail: None }).await
}

async fn read(runtime: &OciRuntime, name: &str, options: LogOptions) -> Output {
    runtime.logs(&named(name), options).await.unwrap()
}

pub(crate) async fn bytes(output: Output) -> Vec<u8> {
    let chunks: Vec<_> = within(LONG, "the end of the log", output.try_collect()).await.unwrap();
    chunks.concat()
}

pub(crate) async fn text(output: Output) -> String {
    String::from_utf8(bytes(output).await).unwrap()
}

/// What is said up to and with `part`.
pub(crate) async fn until(output: &mut Output, part: &str) -> String {
    let mut said = String::new();
    while !said.contains(part) {
        let chunk = within(LONG, &format!("{part:?} in the log, after {said:?}"), output.try_next()).await;
        let chunk = chunk.unwrap().unwrap_or_else(|| panic!("the log ended without {part:?}: {said:?}"));
        said.push_str(&String::from_utf8_lossy(&chunk));
    }
    said
}
