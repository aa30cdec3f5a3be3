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
    /// To be told: each line is an error of its own.
    Told { code: u8, text: String },
    /// The command has told already.
    Shown,
}

impl Failure {
    /// The usual failure.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self::Told {
            code: FAILED,
            text: text.into(),
        }
    }

    fn of(code: u8, error: &(dyn Error + 'static)) -> Self {
        Self::Told {
            code,
            text: chain(error),
        }
    }

    /// Tells it on standard error.
    pub(crate) fn report(self) -> ExitCode {
        let (code, text) = match self {
            Self::Unread => return ExitCode::SUCCESS,
            Self::Shown => return ExitCode::from(FAILED),
            Self::Told { code, text } => (code, text),
        };
        for line in text.lines() {
            // There is nowhere left to say that even this cannot be written.
            let _ = writeln!(stderr(), "{RED}error:{RED:#} {line}");
        }
        ExitCode::from(code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            // Whether the socket is missing or dead makes no difference to the remedy.
            ClientError::NoService { .. } => Self::Told {
                code: NO_SERVICE,
                text: error.to_string(),
            },
            _ => Self::of(FAILED, &error),
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::of(BAD_CONFIGURATION, &errors)
    }
}

impl From<PluginError> for Failure {
    fn from(error: PluginError) -> Self {
        Self::of(FAILED, &error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::of(FAILED, &error),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}
