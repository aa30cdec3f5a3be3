//! The store on archives: what it takes, what it refuses, what it keeps.

mod build;
mod hostile;
mod keep;
mod load;
mod unpacked;
