//! Running the binary with nothing of the machine's own around it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use tempfile::TempDir;

/// Ends a test that waits for what never comes.
const LONG: Duration = Duration::from_secs(30);

/// A directory that stands for the machine: sockets, state and files of one test.
pub(crate) struct Scratch(TempDir);

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("ended by a signal"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Where nobody else may write, as plugins want it.
    pub(crate) fn trusted() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("admin.sock")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-service"));
        command
            .env_clear()
            .env("HOST_SERVICE__ADMIN__SOCKET", self.socket())
            .env("HOST_SERVICE__PATHS__ROOT", self.path().join("root"))
            .env("HOST_SERVICE__PATHS__STATE", self.path().join("state"))
            .env("HOST_SERVICE__PATHS__LOGS", self.path().join("logs"))
            .env("HOST_SERVICE__PATHS__PLUGINS", self.path().join("plugins"))
            .env("HOST_SERVICE__HTTP__LISTEN", "127.0.0.1:0")
            .env("HOST_SERVICE__METRICS__LISTEN", "127.0.0.1:0")
            .args(arguments)
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, &[])
    }

    pub(crate) fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
        self.command(arguments).envs(variables.iter().copied()).output().unwrap().into()
    }

    /// With a standard output that nobody reads.
    pub(crate) fn unread(&self, arguments: &[&str]) -> Ran {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        self.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap().into()
    }
}

/// The service, on a simulated engine.
pub(crate) struct Service {
    pub(crate) scratch: Scratch,
    process: Child,
}

impl Service {
    /// Returns when it takes mandelboxes.
    pub(crate) fn start() -> Self {
        let scratch = Scratch::new();
        let mut command = scratch.command(&["run", "--set", "runtime.plugin=sim"]);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut records = BufReader::new(process.stderr.take().unwrap()).lines();
        let (told, hears) = mpsc::channel();
        // Reads on to the end, so that the service never waits for room to write in.
        std::thread::spawn(move || {
            let begun = |line: &String| line.contains("Entering event loop");
            let started = records.by_ref().map_while(Result::ok).any(|line| begun(&line));
            let _ = told.send(started);
            records.for_each(drop);
        });
        let service = Self { scratch, process };
        assert_eq!(hears.recv_timeout(LONG), Ok(true), "the service did not start");
        service
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.scratch.run(arguments)
    }

    /// Standard output of a command that succeeds.
    pub(crate) fn told(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}: {ran:?}");
        ran.out
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.told(arguments)).unwrap()
    }

    /// By itself, with success, and nothing of it is left.
    pub(crate) fn has_ended(mut self) {
        assert!(self.process.wait().unwrap().success());
        let left: Vec<_> =
            std::fs::read_dir(self.scratch.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It has ended already, or the test has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
