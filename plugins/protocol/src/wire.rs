//! Arguments as they are sent, and as they are handed on.

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

/// An argument of type `T` of a trait's method; `Self` is what is read of it on the other side.
pub(crate) trait Wire<'a, T: 'a>: DeserializeOwned {
    /// What is written.
    type Out: Serialize;

    fn write(argument: T) -> Self::Out;

    fn lend(&'a self) -> T;
}

impl<'a, T: Serialize + DeserializeOwned + 'a> Wire<'a, &'a T> for T {
    type Out = &'a T;

    fn write(argument: &'a T) -> &'a T {
        argument
    }

    fn lend(&'a self) -> &'a T {
        self
    }
}

impl<'a, T: Serialize + DeserializeOwned + Copy + 'a> Wire<'a, T> for T {
    type Out = T;

    fn write(argument: T) -> T {
        argument
    }

    fn lend(&'a self) -> T {
        *self
    }
}

impl<'a> Wire<'a, &'a Path> for PathBuf {
    type Out = &'a Path;

    fn write(argument: &'a Path) -> &'a Path {
        argument
    }

    fn lend(&'a self) -> &'a Path {
        self
    }
}

impl<'a, T: Serialize + DeserializeOwned + 'a> Wire<'a, &'a [T]> for Vec<T> {
    type Out = &'a [T];

    fn write(argument: &'a [T]) -> &'a [T] {
        argument
    }

    fn lend(&'a self) -> &'a [T] {
        self
    }
}
