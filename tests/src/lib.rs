//! Whole-process tests of the host service and their harness.
