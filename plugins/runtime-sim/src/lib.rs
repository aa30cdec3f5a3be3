//! A scriptable Runtime in memory, for tests and demonstrations.
