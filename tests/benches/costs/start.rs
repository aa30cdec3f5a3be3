//! From the start of the process to readiness, with an engine that runs already.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Child,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use host_tests::{
    engine::Engine,
    service::{Builder, Service},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::figures::{FEW, Samples, goal, head, row, title};

const STARTS: usize = 10;
const GOAL_MS: f64 = 100.0;
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(500);

pub(crate) fn measure(engine: &Engine) -> Result<()> {
    title("Start of the process until /readyz says 200")?;
    let [mut docker, mut sim, mut nothing] = <[Samples; 3]>::default();
    for _ in 0..STARTS {
        docker.add(start(Service::on(engine))?);
        sim.add(start(Service::with("[runtime]\nplugin = \"sim\"\n"))?);
        nothing.add(version()?);
    }
    head(FEW)?;
    row("runtime docker", &docker, FEW)?;
    row("runtime sim", &sim, FEW)?;
    row("`host-service version`, for comparison", &nothing, FEW)?;
    goal("below 100 ms", docker.percentile(0.95) < GOAL_MS)
}

/// The time of one start. The service is ended again.
fn start(builder: Builder) -> Result<Duration> {
    let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let builder = builder.set(format!("metrics.listen={metrics}"));
    let begun = Instant::now();
    let mut child = builder.spawn()?;
    let ready = wait_until_ready(&mut child, metrics);
    let took = begun.elapsed();
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let status = child.wait()?;
    ready.with_context(|| builder.log())?;
    ensure!(status.success(), "{status}\n{}", builder.log());
    Ok(took)
}

fn wait_until_ready(child: &mut Child, metrics: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    while !is_ready(metrics).unwrap_or(false) {
        ensure!(child.try_wait()?.is_none(), "it ended");
        ensure!(begun.elapsed() < DEADLINE, "it is not ready after {DEADLINE:?}");
        sleep(PAUSE);
    }
    Ok(())
}

fn is_ready(metrics: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(metrics)?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

/// The least that starting the program takes.
fn version() -> Result<Duration> {
    let builder = Service::with("");
    let begun = Instant::now();
    let output = builder.cli(&["version"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(begun.elapsed())
}
