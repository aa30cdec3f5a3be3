//! The harness's worlds: that they are what tests need, and that nothing of them stays behind.

mod engine;
mod oci;
mod traces;
