//! Everything that can go wrong with containers and their keepers, done to real ones.
#![cfg(test)]

mod ends;
mod engines;
mod image;
mod images;
mod mounts;
mod output;
mod service;
mod supervisor;
mod told;
mod visits;
mod world;
