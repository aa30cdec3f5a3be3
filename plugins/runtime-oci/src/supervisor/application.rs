//! The container's own program, as libcontainer is to check and execute it.

use std::{
    ffi::CString,
    fs,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::exit,
};

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::{
    errno::Errno,
    unistd::{AccessFlags, access, execv},
};
use oci_spec::runtime::Spec;

/// Begins what is said of a program that cannot be executed: its errors reach the supervisor as text.
pub(super) const UNFIT: &str = "the program cannot be executed";
/// Where a program without a path lies, if the environment does not say; as the C library has it.
const USUAL_PATH: &str = "/bin:/usr/bin";
/// What shells answer in place of a program that cannot be executed, or is not there.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Tells before the container is made what executing it would fail on, as the user that it will be; what only that can
/// tell is said in the container's log.
#[derive(Debug, Clone)]
pub(super) struct Application;

impl Executor for Application {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let program = arguments(spec).first().map(String::as_str).unwrap_or_default();
        match find(program, path(spec)) {
            Ok(_) => Ok(()),
            Err(error) => {
                let text = format!("{UNFIT}: {program:?}: {}", error.desc());
                Err(ExecutorValidationError::ArgValidationError(text))
            }
        }
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let terminated = |text: &[u8]| CString::new(text).map_err(|_| ExecutorError::InvalidArg);
        let arguments = arguments(spec);
        let program = arguments.first().ok_or(ExecutorError::InvalidArg)?;
        let arguments: Vec<_> =
            arguments.iter().map(|argument| terminated(argument.as_bytes())).collect::<Result<_, _>>()?;
        let error = match find(program, path(spec)) {
            // Not execvp, which takes for a shell script what is no program.
            Ok(file) => {
                let Err(error) = execv(&terminated(file.as_os_str().as_bytes())?, &arguments);
                error
            }
            Err(error) => error,
        };
        // Nobody waits for it any more but whoever reads the log.
        let _ = writeln!(io::stderr(), "{UNFIT}: {program:?}: {}", error.desc());
        #[expect(
            clippy::disallowed_methods,
            reason = "this is a forked child: what it would drop is its parent's"
        )]
        exit(if error == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE })
    }
}

fn arguments(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or_default()
}

fn path(spec: &Spec) -> &str {
    let variables = spec.process().as_ref().and_then(|process| process.env().as_deref()).unwrap_or_default();
    variables.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(USUAL_PATH)
}

/// The program for this process, looked for as shells do.
fn find(program: &str, path: &str) -> Result<PathBuf, Errno> {
    if program.contains('/') {
        return executable(Path::new(program)).map(|()| program.into());
    }
    let places = path.split(':').map(|directory| PathBuf::from(directory).join(program));
    let mut failure = Errno::ENOENT;
    for place in places.filter(|_| !program.is_empty()) {
        match executable(&place) {
            Ok(()) => return Ok(place),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn executable(file: &Path) -> Result<(), Errno> {
    match access(file, AccessFlags::X_OK) {
        Ok(()) if fs::metadata(file).is_ok_and(|known| known.is_dir()) => Err(Errno::EACCES),
        // A filter of system calls may not let this process look.
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        looked => looked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_shells_find_it() {
        for (program, path, found) in [
            ("sh", "/nowhere:/bin", Ok("/bin/sh")),
            ("/bin/sh", "", Ok("/bin/sh")),
            ("sh", "/nowhere", Err(Errno::ENOENT)),
            ("", "/bin", Err(Errno::ENOENT)),
            ("/bin", "/", Err(Errno::EACCES)),
            ("/etc/passwd", "/bin", Err(Errno::EACCES)),
            ("passwd", "/etc:/nowhere", Err(Errno::EACCES)),
            ("/etc/passwd/x", "/bin", Err(Errno::ENOTDIR)),
        ] {
            assert_eq!(find(program, path), found.map(PathBuf::from), "{program} in {path}");
        }
    }
}
