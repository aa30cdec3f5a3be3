//! What every Runtime, Gpu, PubSub and Telemetry must do, as functions over the traits.
