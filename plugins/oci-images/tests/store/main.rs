//! The store on archives and registries: what it takes, what it refuses, what it keeps.

mod build;
mod fake;
mod hostile;
mod keep;
mod load;
mod pull;
mod real;
mod registry;
mod unpacked;
