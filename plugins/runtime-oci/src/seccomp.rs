//! The system call filter: a profile in Docker's format, and what it comes to for one container on this machine.
//!
//! Ours, `seccomp/default.json`, follows Docker's: it allows what that allows but io_uring, and of sockets all families
//! but `AF_ALG` and `AF_VSOCK`. On i386 that does not hold: there `socketcall` makes sockets too, with its arguments
//! behind a pointer, and no filter of ours or of the engines can look there. Unlike Docker's it answers "no such call"
//! (`ENOSYS`) to what it does not know, because libraries fall back from that and not from "not permitted"; Docker
//! leaves that to runc, and libcontainer does not do it. What is known and denied is not permitted (`EPERM`). Programs for
//! x32 are not filtered but killed: nobody has any, and with them installing a filter would take half as long again.
//!
//! Names that the installed libseccomp does not know are left in: libcontainer and the others skip them, and the default
//! action then holds for them.

use std::{collections::BTreeSet, env::consts::ARCH, fs, sync::LazyLock};

use host_core::{
    ErrorKind, PluginError,
    runtime::{Capability, Seccomp},
};
use oci_spec::runtime::LinuxSeccomp;

mod profile;
mod translate;

use profile::Profile;
use translate::translate;

const DEFAULT: &str = include_str!("seccomp/default.json");

/// Parsed once per process.
static PARSED_DEFAULT: LazyLock<Result<Profile, String>> =
    LazyLock::new(|| Profile::parse(DEFAULT).map_err(|error| error.to_string()));
static MACHINE: LazyLock<Machine> = LazyLock::new(Machine::this);

/// What a profile's conditions ask of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    /// As profiles name it in conditions: `amd64`.
    architecture: String,
    /// As they name it in their table of architectures: `SCMP_ARCH_X86_64`.
    filter_architecture: String,
    /// Major and minor version of the kernel.
    kernel: (u32, u32),
}

impl Machine {
    fn this() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self::new(ARCH, profile::kernel(&release).unwrap_or((0, 0)))
    }

    /// From Rust's name of an architecture; 64 bit ones that Rust calls otherwise than Go are told apart.
    fn new(architecture: &str, kernel: (u32, u32)) -> Self {
        let (architecture, filter_architecture) = match architecture {
            "x86_64" => ("amd64", "SCMP_ARCH_X86_64".to_owned()),
            "aarch64" => ("arm64", "SCMP_ARCH_AARCH64".to_owned()),
            "powerpc64" => ("ppc64le", "SCMP_ARCH_PPC64LE".to_owned()),
            other => (other, format!("SCMP_ARCH_{}", other.to_uppercase())),
        };
        Self { architecture: architecture.to_owned(), filter_architecture, kernel }
    }
}

/// The filter of a container with these capabilities; `None` is no filter.
///
/// # Errors
/// `Invalid` when a given profile is no such profile, `Unsupported` when it asks for an agent.
pub(crate) fn filter(
    wanted: &Seccomp,
    capabilities: &BTreeSet<Capability>,
) -> Result<Option<LinuxSeccomp>, PluginError> {
    match wanted {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Profile(json) => translate(&Profile::parse(json)?, capabilities, &MACHINE).map(Some),
        Seccomp::Default => match &*PARSED_DEFAULT {
            Ok(profile) => translate(profile, capabilities, &MACHINE).map(Some),
            Err(error) => Err(PluginError::new(ErrorKind::Internal, error)),
        },
    }
}

fn invalid(what: impl std::fmt::Display) -> PluginError {
    PluginError::new(ErrorKind::Invalid, format!("the seccomp profile is wrong: {what}"))
}

#[cfg(test)]
mod tests;
