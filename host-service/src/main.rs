//! The host service.
fn main() {}
