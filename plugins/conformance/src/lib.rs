//! What every Runtime, Gpu, PubSub and Telemetry must do, as functions over the traits.
//!
//! A behaviour is a function over a trait object, or over a fixture that a plugin's tests implement around it where
//! the trait alone cannot bring about what is to be seen. [`report::run`] tries a list of them:
//!
//! ```text
//! let report = conformance::report::run("gpu-sim", gpu.as_ref(), &conformance::gpu::behaviours()).await;
//! assert!(report.holds(), "{report}");
//! ```

pub mod gpu;
pub mod pubsub;
pub mod report;
pub mod runtime;
pub mod table;
pub mod telemetry;

pub use report::{Behaviour, Outcome, Report, Unmet, Verdict};
