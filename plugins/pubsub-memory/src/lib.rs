//! Desired state in memory, driven by the admin API, optionally kept in a file.
