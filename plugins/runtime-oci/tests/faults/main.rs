//! Everything that can go wrong with containers and their keepers, done to real ones.
#![cfg(test)]

mod engines;
mod image;
mod supervisor;
mod told;
mod world;
