//! Whole-process tests of the host service and their harness.

pub mod engine;
pub mod postgres;
pub mod service;
pub mod wait;
