//! Everything that can go wrong with containers and their keepers, done to real ones.
#![cfg(test)]

mod disk;
mod ends;
mod engines;
mod escape;
mod image;
mod images;
mod limits;
mod mounts;
mod output;
mod races;
mod secrets;
mod service;
mod supervisor;
mod told;
mod visits;
mod world;
