//! Typed settings of the host service, their layers, profiles and origins.
