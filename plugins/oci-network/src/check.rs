//! For the doctor.
