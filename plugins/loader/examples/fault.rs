//! A GPU plugin that does wrong, as its section says: where, and what.
#![allow(clippy::panic, reason = "the faults themselves")]

use std::{fmt, thread, time::Duration};

use async_trait::async_trait;
use host_core::gpu::{GpuDevice, GpuHealth, GpuStats, Result};
use host_plugin_sdk::{export_plugin, prelude::*};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    init: Fault,
    call: Fault,
    inner: Inner,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Inner {
    value: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    #[default]
    None,
    Panic,
    PanicAfterAwait,
    PanicInDrop,
    Never,
    Block,
    Segfault,
    Overflow,
    Exit,
    Abort,
}

impl Fault {
    async fn happen(self) {
        match self {
            Self::None => {}
            Self::Panic => panic!("on purpose"),
            Self::PanicAfterAwait => {
                tokio::task::yield_now().await;
                panic!("on purpose, later")
            }
            Self::PanicInDrop => drop(Bomb),
            Self::Never => std::future::pending().await,
            Self::Block => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            Self::Segfault => segfault(),
            Self::Overflow => {
                overflow(0);
            }
            Self::Exit => exit(),
            #[expect(clippy::disallowed_methods, reason = "the fault that is wanted")]
            Self::Abort => std::process::abort(),
        }
    }
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose, in drop")
    }
}

#[allow(unsafe_code, reason = "the fault itself")]
fn segfault() {
    // SAFETY: there is none; that is the fault.
    unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) }
}

#[allow(unconditional_recursion, reason = "the fault itself")]
#[inline(never)]
fn overflow(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 1024]);
    overflow(depth + 1) + room[usize::try_from(depth % 1024).unwrap_or(0)]
}

#[allow(clippy::exit, clippy::disallowed_methods, reason = "the fault itself")]
fn exit() {
    std::process::exit(3)
}

struct Faulty(Config);

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl Gpu for Faulty {
    async fn enumerate(&self) -> Result<Vec<GpuDevice>> {
        self.0.call.happen().await;
        Ok(Vec::new())
    }

    /// Works whatever is wrong elsewhere.
    async fn stats(&self) -> Result<Vec<GpuStats>> {
        Ok(Vec::new())
    }

    async fn health(&self) -> Result<Vec<(String, GpuHealth)>> {
        let error = std::io::Error::other("the driver is gone");
        Err(PluginError::new(ErrorKind::Denied, "not allowed").with_source(error))
    }
}

fn plugin() -> Plugin<dyn Gpu> {
    Plugin::new("fault", |config: Config, _context| async move {
        config.init.happen().await;
        let gpu: Arc<dyn Gpu> = Arc::new(Faulty(config));
        Ok(gpu)
    })
}

export_plugin!(gpu: plugin());
