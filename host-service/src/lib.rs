//! The per-host orchestrator of mandelboxes.
