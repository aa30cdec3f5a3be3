//! The plugin on real PostgreSQL servers.
#![cfg(test)]

mod access;
mod allocation;
mod conformance;
mod migrations;
mod nonsense;
mod scratch;
mod seed;
mod stage;
mod tls;
mod watching;
