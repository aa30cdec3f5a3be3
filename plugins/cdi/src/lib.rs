//! The host's device descriptions, as the [Container Device Interface] writes them: which names exist, and what a
//! container that asks for one is to be given.
//!
//! A vendor's tool (for example `nvidia-ctk cdi generate`) leaves JSON or YAML files in `/etc/cdi` and `/var/run/cdi`.
//! Each describes devices of one kind, and a container names them as `vendor/class=device`. This crate reads the
//! files and finds the edits; applying them is a runtime's part.
//!
//! The files choose programs that run as root on the host, so one that anybody may write, or that belongs to somebody
//! else than root and this process's user, is refused. What cannot be read costs only its own devices: it is
//! listed in [`Registry::unreadable`] and named in the error of whoever asks for a device that is then missing.
//!
//! No tasks, no state: [`Registry::read`] is a snapshot, and a new one is a new call.
//!
//! [Container Device Interface]: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md

mod edits;
mod file;
mod name;
mod registry;

pub use edits::{DeviceNode, Edits, Hook, HookPoint, IntelRdt, Mount, NetDevice};
pub use name::QualifiedName;
pub use registry::{DIRECTORIES, Error, Registry, Unreadable};
