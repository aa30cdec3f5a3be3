//! Networks for containers, without any daemon: a network namespace each, joined to the host by a veth pair,
//! address translation and published ports in one nftables table.
//!
//! - [`Networks`] owns everything; it is opened once per host service and told which containers still run.
//! - A *filler* task keeps a few networks ready, so that making one is off a container's path.
//! - A *writer* task owns the table: changes reach it on a channel, and those that arrive while a transaction is
//!   being applied are applied together in the next one.
//! - A *flows* task makes the kernel forget UDP flows of ports that changed.
//!
//! The tasks are in the tracker of [`Networks`] and end with it. Blocking work (netlink, namespaces) runs on
//! threads of its own; no thread of the async runtime ever enters another namespace.
//!
//! Invariants: an address belongs to one container from [`Networks::take`] to [`Networks::release`]; a port
//! changes hands only between two transactions; what the writer believes is in the table is in the table, and
//! where it cannot know (a deadline passed), the next transaction replaces the whole table.

mod addresses;
mod block;
mod check;
mod config;
mod conntrack;
mod elements;
mod error;
mod forwarding;
mod host;
mod name;
mod namespace;
mod netlink;
mod networks;
mod nft;
mod pool;
mod ports;
mod resolv;
mod rules;
mod subnet;
mod writer;

pub use check::{Concern, Leftovers, check, leftovers};
pub use config::Config;
pub use namespace::{Network, isolated};
pub use networks::{Adopted, Networks};
pub use subnet::{InvalidSubnet, Subnet};

#[cfg(test)]
mod tests;
