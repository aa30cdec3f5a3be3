//! What makes the container from its bundle: libcontainer in this process, or another OCI runtime's program.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use host_core::chain;
use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    error::LibcontainerError,
    syscall::syscall::SyscallType,
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use oci_spec::runtime::Spec;

use super::{
    Refusal,
    application::{Application, UNFIT},
    output::{CONSOLE, Ends},
};
use crate::{
    place::name,
    protocol::{Launch, Reason},
};

/// The engine's own records, in the bundle's memory file system.
const STATE: &str = "bundle/state";
const CONFIG: &str = "bundle/config.json";
/// What another runtime has to say of itself.
const COMPLAINTS: &str = "bundle/engine.log";
const PROCESS: &str = "bundle/pid";
/// How readily the kernel kills this process when memory is short.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// One container's engine.
pub(super) enum Engine {
    /// libcontainer.
    Embedded { id: String, container: Option<Box<Container>> },
    /// A program that takes the commands of an OCI runtime.
    External { id: String, program: Program },
}

impl Engine {
    pub(super) fn of(directory: &Path, launch: &Launch) -> Self {
        let id = launch.id.clone();
        match &launch.binary {
            Some(path) => Self::External {
                id,
                program: Program { path: path.clone(), directory: directory.to_owned() },
            },
            None => Self::Embedded { id, container: None },
        }
    }

    /// Makes the container; its process waits to be started. The specification, which holds secrets, is gone afterwards.
    pub(super) fn create(&mut self, directory: &Path, spec: &Spec, ends: Ends) -> Result<Pid, Refusal> {
        fs::create_dir(STATE).map_err(Refusal::of("preparing the engine"))?;
        spec.save(CONFIG).map_err(|error| {
            Refusal::new(Reason::Internal, format!("writing the specification: {}", chain(&error)))
        })?;
        let created = match self {
            Self::Embedded { id, container } => embedded(id, directory, ends).and_then(|made| {
                let pid = made.pid();
                *container = Some(Box::new(made));
                pid.map(|pid| Pid::from_raw(pid.as_raw()))
                    .ok_or_else(|| Refusal::new(Reason::Internal, "libcontainer made no process"))
            }),
            Self::External { id, program } => external(program, id, ends),
        };
        let removed = fs::remove_file(CONFIG);
        let pid = created?;
        removed.map_err(Refusal::of("removing the specification"))?;
        Ok(pid)
    }

    /// Lets the process begin.
    pub(super) fn start(&mut self) -> Result<(), Refusal> {
        match self {
            Self::Embedded { container, .. } => {
                let container =
                    container.as_mut().ok_or_else(|| Refusal::new(Reason::Conflict, "not created"))?;
                container.start().map_err(|error| failed("starting the container", &error))
            }
            Self::External { id, program } => program.run(program.command("start").arg(id)),
        }
    }

    /// Sends a signal to the container's process.
    pub(super) fn signal(&self, process: Pid, signal: Signal) -> nix::Result<()> {
        match self {
            Self::Embedded { .. } => kill(process, signal),
            Self::External { id, program } => {
                // Of a sandbox, only its own runtime knows where a signal has to go.
                let name = (signal as i32).to_string();
                let sent = program.run(program.command("kill").arg(id).arg(name));
                if sent.is_ok() { Ok(()) } else { kill(process, signal) }
            }
        }
    }

    /// Forgets a container that has ended. What it leaves goes with the mount namespace and the control group.
    pub(super) fn delete(&mut self) {
        if let Self::External { id, program } = self {
            // What it leaves is found by the control group's name and with the namespaces.
            let _ = program.run(program.command("delete").arg("--force").arg(id));
        }
    }
}

fn embedded(id: &str, directory: &Path, ends: Ends) -> Result<Container, Refusal> {
    // Rust programs ignore it, and what is ignored stays so when another program is executed.
    sigpipe::reset();
    let prepare = || -> Result<Container, LibcontainerError> {
        let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
            .with_root_path(directory.join(STATE))?;
        match ends {
            Ends::Terminal => builder = builder.with_console_socket(Some(directory.join(CONSOLE))),
            Ends::Pipes { stdout, stderr } => {
                let null = File::open("/dev/null").map_err(LibcontainerError::OtherIO)?;
                builder = builder.with_stdin(null).with_stdout(stdout).with_stderr(stderr);
            }
        }
        let bundle = directory.join(name::BUNDLE);
        builder.with_executor(Application).as_init(bundle).with_systemd(false).with_detach(true).build()
    };
    // libcontainer sets the container's here, so that its process inherits it.
    let own = fs::read(OOM_SCORE);
    let made = prepare().map_err(|error| failed("making the container", &error));
    // Only more than it began with would need a right.
    let _ = own.and_then(|own| fs::write(OOM_SCORE, own));
    made
}

/// What a failure of libcontainer means: that the image's program cannot be run is the request's fault.
fn failed(doing: &str, error: &LibcontainerError) -> Refusal {
    let text = chain(error);
    let kind = if text.contains(UNFIT) {
        Reason::Invalid
    } else if text.contains("No space left") || text.contains("ENOSPC") {
        Reason::Exhausted
    } else {
        Reason::Internal
    };
    Refusal::new(kind, format!("{doing}: {text}"))
}

fn external(program: &Program, id: &str, ends: Ends) -> Result<Pid, Refusal> {
    let process = program.directory.join(PROCESS);
    let mut command = program.command("create");
    command.arg("--bundle").arg(program.directory.join(name::BUNDLE)).arg("--pid-file").arg(&process);
    match ends {
        Ends::Terminal => {
            command.arg("--console-socket").arg(program.directory.join(CONSOLE));
        }
        Ends::Pipes { stdout, stderr } => {
            command.stdout(stdout).stderr(stderr);
        }
    }
    program.run(command.arg(id))?;
    let pid = fs::read_to_string(process).ok().and_then(|text| text.trim().parse().ok());
    // Whoever is no child of this process's is a stranger, whose end it would never learn.
    pid.map(Pid::from_raw).filter(|pid| pid.as_raw() > 0 && is_child(*pid)).ok_or_else(|| {
        Refusal::new(Reason::Internal, format!("{} named no process of its own", program.path.display()))
    })
}

fn is_child(process: Pid) -> bool {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(process), look).is_ok()
}

/// Another runtime's program. Paths are absolute: some go to the bundle before they look at any.
pub(super) struct Program {
    path: PathBuf,
    directory: PathBuf,
}

impl Program {
    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.path);
        command
            .arg("--root")
            .arg(self.directory.join(STATE))
            .arg("--log")
            .arg(self.directory.join(COMPLAINTS));
        command.arg(what).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, command: &mut Command) -> Result<(), Refusal> {
        let program = self.path.display();
        let status = command.status().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Refusal::new(Reason::Invalid, format!("{program} is not installed; see runtime.oci.binary"))
            }
            _ => Refusal::of(&program.to_string())(error),
        })?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(self.directory.join(COMPLAINTS)).unwrap_or_default();
        let said = said.lines().next_back().unwrap_or("it does not say why");
        Err(Refusal::new(unfit(said), format!("{program}: {status}: {said}")))
    }
}

/// That the image's program cannot be run is the request's fault.
fn unfit(said: &str) -> Reason {
    let said = said.to_ascii_lowercase();
    let signs = [
        "executable file",
        "open executable",
        "not found in $path",
        "no such file or directory",
        "permission denied",
    ];
    if signs.iter().any(|sign| said.contains(sign)) { Reason::Invalid } else { Reason::Internal }
}
