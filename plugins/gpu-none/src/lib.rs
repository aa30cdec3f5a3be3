//! No GPU: mandelboxes run without one.
