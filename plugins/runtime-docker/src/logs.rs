//! What a container writes.

use engine_http::{Broken, Doing, unframed};
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use host_core::{
    ErrorKind, PluginError,
    runtime::{ContainerRef, LogChunk, LogOptions, Result},
};

use crate::{engine::Engine, error::nonsense, seen::inspected};

const READING: Doing = Doing("read a container's log", "");

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
    let answer = engine.get(doing, &path(name, options)).await?;
    let explain = engine.explain.clone();
    let broken = move |error: Broken| explain.disconnected(READING, error.as_ref());
    let chunks = answer.into_stream().map_err(broken);
    Ok(if inspected.has_terminal() {
        chunks.map_ok(|chunk| chunk.to_vec()).boxed()
    } else {
        unframed(chunks.boxed(), |cut| nonsense(READING, cut)).boxed()
    })
}

fn path(name: &str, options: LogOptions) -> String {
    let tail = options.tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    let follow = options.follow;
    format!("/containers/{name}/logs?stdout=true&stderr=true&follow={follow}&tail={tail}")
}
