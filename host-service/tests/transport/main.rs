//! The clients' server, over real sockets and real TLS, with a stand-in for the orchestrator that opens seats.
#![cfg(test)]

mod abuse;
mod client;
mod contract;
mod issuer;
mod keys;
mod life;
mod renewal;
mod secrets;
mod tokens;
mod world;
