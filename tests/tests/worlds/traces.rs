//! What there is of a world on this machine, and processes that hold one.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use host_tests::wait::until;
use rustix::process::Pid;

const DEADLINE: Duration = Duration::from_secs(20);

/// What the host has of the world in a directory: files, control groups, mounts, processes.
pub(crate) fn traces(directory: &Path) -> Vec<String> {
    let name = directory.file_name().map(Path::new).unwrap_or(directory);
    let mut roots = entries("/sys/fs/cgroup");
    roots.push("/sys/fs/cgroup".into());
    let groups = roots.iter().map(|root| root.join(name));
    let places = groups.chain([directory.to_owned(), directory.with_extension("gone")]);
    let mut found: Vec<_> =
        places.filter(|path| path.exists()).map(|path| path.display().to_string()).collect();

    let text = directory.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&*text)).map(str::to_owned));
    found.extend(processes_of(directory).into_iter().map(|(_, command_line)| command_line));
    found
}

/// The processes that have the directory in their command line.
pub(crate) fn processes_of(directory: &Path) -> Vec<(Pid, String)> {
    let text = directory.to_string_lossy();
    let processes = entries("/proc").into_iter().filter_map(|path| {
        let number = path.file_name()?.to_str()?.parse().ok()?;
        let command_line = fs::read(path.join("cmdline")).ok()?;
        let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
        command_line.contains(&*text).then_some((Pid::from_raw(number)?, command_line))
    });
    processes.collect()
}

fn entries(directory: &str) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

pub(crate) async fn no_trace(directory: &Path) -> Result<()> {
    let gone = async || traces(directory).is_empty().then_some(());
    until("end of all traces", DEADLINE, gone).await.with_context(|| traces(directory).join("\n"))
}

/// Another process, which holds an engine or runs one that does; dropping it kills it.
pub(crate) struct Holder {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Holder {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(process.stdout.take().context("its output is not piped")?);
        Ok(Self { process, output })
    }

    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "it ended");
        Ok(line.trim_end().to_owned())
    }

    /// Ends its input, and so itself.
    pub(crate) fn end(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        ensure!(self.process.wait()?.success(), "it failed");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _already_dead = self.process.kill();
        let _already_reaped = self.process.wait();
    }
}

/// A process that holds a world of that kind: its own, or the one that all processes with this `TMPDIR` share.
pub(crate) fn test_engine(kind: &str, temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_test-engine"));
    command.arg(kind).env("TMPDIR", temporary).env_remove("NEXTEST").env_remove("CARGO");
    command
}
