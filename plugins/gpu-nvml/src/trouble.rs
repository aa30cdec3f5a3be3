//! What keeps NVML from being used at all, as opposed to what is wrong with one GPU.

use std::path::Path;

use host_core::{ErrorKind, PluginError};
use nvml_wrapper::error::NvmlError;

/// Told to everybody who waits, so it can be cloned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Trouble {
    kind: ErrorKind,
    message: String,
}

impl Trouble {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// NVML could not be loaded or does not begin.
    pub(crate) fn opening(library: &Path, error: &NvmlError) -> Self {
        let library = library.display();
        let (kind, message) = match error {
            NvmlError::LibloadingError(error) => (
                ErrorKind::Unavailable,
                format!("NVML cannot be loaded ({error}): install NVIDIA's driver, or set gpu.nvml.library"),
            ),
            NvmlError::FailedToLoadSymbol(_) => {
                (ErrorKind::Unsupported, format!("{library} is not NVML, or one that is too old: {error}"))
            }
            NvmlError::DriverNotLoaded => (
                ErrorKind::Unavailable,
                format!(
                    "{library} finds no driver in the kernel: modprobe nvidia, or see dmesg for why it is not there"
                ),
            ),
            NvmlError::LibRmVersionMismatch => (
                ErrorKind::Unavailable,
                format!(
                    "{library} and the kernel's driver are of different versions: restart the machine after an update"
                ),
            ),
            NvmlError::NoPermission => (
                ErrorKind::Denied,
                format!("{library} may not use the driver: run as root, or see /dev/nvidiactl"),
            ),
            _ => (ErrorKind::Unavailable, format!("{library} cannot be used: {error}")),
        };
        Self { kind, message }
    }

    /// What a call says; `None` when it concerns one GPU only.
    pub(crate) fn of_all(error: &NvmlError) -> Option<Self> {
        match error {
            NvmlError::FailedToLoadSymbol(what) => Some(Self::new(
                ErrorKind::Unsupported,
                format!("NVIDIA's driver is too old, 510 or later is needed: NVML lacks a function ({what})"),
            )),
            NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch => {
                Some(Self::new(ErrorKind::Unavailable, format!("NVIDIA's driver went away: {error}")))
            }
            _ => None,
        }
    }
}

impl From<Trouble> for PluginError {
    fn from(trouble: Trouble) -> Self {
        Self::new(trouble.kind, trouble.message)
    }
}
