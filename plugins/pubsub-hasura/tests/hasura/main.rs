//! The plugin on a stand-in for Hasura over real PostgreSQL servers.
#![cfg(test)]

mod abuse;
mod access;
mod away;
mod conformance;
mod protocol;
mod schema;
mod stage;
mod watching;
