//! The plugin on real PostgreSQL servers.
#![cfg(test)]

mod conformance;
mod seed;
mod stage;
