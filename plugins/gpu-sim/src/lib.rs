//! Configurable fake GPUs with moving statistics.
