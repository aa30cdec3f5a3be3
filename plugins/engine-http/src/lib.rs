//! What plugins for container engines have in common.
//!
//! | part | is for |
//! |---|---|
//! | [`Endpoint`] | where an engine listens, in a section of the configuration |
//! | [`Wire`] | requests that a client library cannot make: it hides heads, sends late or never cancels |
//! | [`Lines`], [`unframed`] | events and logs out of the bytes of an answer |
//! | [`Creates`] | creations that go on when their caller has given up |
//! | [`Doing`], [`io_cause`] | texts and causes of errors |
//!
//! A request owns its connection and no task. The only tasks are those of [`Creates`].

mod creates;
mod doing;
mod endpoint;
mod frames;
mod lines;
mod wire;

pub use creates::Creates;
pub use doing::{Doing, invalid, io_cause};
pub use endpoint::{Endpoint, InvalidEndpoint, duration};
pub use frames::{CutShort, unframed};
pub use lines::{Endless, Lines};
pub use wire::{Answer, Body, Broken, Failure, Pending, Wire, empty, file};
