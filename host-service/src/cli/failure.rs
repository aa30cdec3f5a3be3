//! Why a command failed, and its exit code.

use std::{error::Error, io, process::ExitCode};

use anstream::stderr;
use anstyle::{AnsiColor, Style};
use host_config::ConfigErrors;
use host_core::{PluginError, chain};
use std::io::Write as _;

use crate::client::ClientError;

const FAILED: u8 = 1;
/// The command line was wrong; `EX_USAGE` of `sysexits.h`, as the next two.
pub(crate) const USAGE: u8 = 64;
const NO_SERVICE: u8 = 69;
const BAD_CONFIGURATION: u8 = 78;

const RED: Style = AnsiColor::Red.on_default().bold();

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody reads any more: `… | head` is no failure.
    Unread,
    /// To be told.
    Told { code: u8, errors: Vec<String> },
    /// The command has told already.
    Shown,
}

impl Failure {
    /// The usual failure.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::Told { code: FAILED, errors: vec![text.into()] }
    }

    fn of(error: &(dyn Error + 'static)) -> Self {
        Self::new(chain(error))
    }

    /// Tells it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        let (code, errors) = match self {
            Self::Unread => return ExitCode::SUCCESS,
            Self::Shown => return ExitCode::from(FAILED),
            Self::Told { code, errors } => (code, errors),
        };
        for error in errors {
            // There is nowhere left to say that even this cannot be written.
            let _ = writeln!(stderr(), "{RED}error:{RED:#} {error}");
        }
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            // Whether the socket is missing or dead makes no difference to the remedy.
            ClientError::NoService { .. } => Self::Told { code: NO_SERVICE, errors: vec![error.to_string()] },
            _ => Self::of(&error),
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::Told { code: BAD_CONFIGURATION, errors: errors.iter().map(ToString::to_string).collect() }
    }
}

impl From<PluginError> for Failure {
    fn from(error: PluginError) -> Self {
        Self::of(&error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::of(&error),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}
