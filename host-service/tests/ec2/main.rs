//! Hosts that are instances of EC2: a stand-in for the metadata service, and moto for EC2's API.
#![cfg(test)]

mod identity;
mod imds;
mod interruption;
mod moto;
