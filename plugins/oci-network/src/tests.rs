//! Tests on the real kernel, each on a host of its own: a network namespace that vanishes with the test.

mod barriers;
mod life;
mod nft;
mod pool;
mod publish;
mod reach;
mod world;
