//! Whole-process tests of the host service and their harness.

pub mod engine;
pub mod ground;
pub mod image;
pub mod leftovers;
pub mod oci;
pub mod postgres;
pub mod registry;
pub mod service;
pub mod wait;
pub mod world;
