//! A library of its own for a test.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{Scenario, state};

/// A copy of the shared library, and the scenario beside it. Both go with it.
#[derive(Debug)]
pub struct StandIn {
    directory: TempDir,
}

impl StandIn {
    /// Its driver says what `scenario` says.
    ///
    /// # Errors
    /// The library was not built, or there is no room for a copy.
    pub fn new(scenario: &Scenario) -> io::Result<Self> {
        let stand_in = Self { directory: tempfile::tempdir()? };
        fs::copy(built()?, stand_in.library())?;
        scenario.write(&stand_in.scenario())?;
        Ok(stand_in)
    }

    /// To be loaded.
    pub fn library(&self) -> PathBuf {
        self.directory.path().join("libnvidia-ml.so.1")
    }

    /// Where it and nothing else of the test's lies.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Lets the driver say something else from now on.
    ///
    /// # Errors
    /// The scenario cannot be replaced.
    pub fn change(&self, change: impl FnOnce(&mut Scenario)) -> io::Result<()> {
        let mut scenario = Scenario::read(&self.scenario())?;
        change(&mut scenario);
        scenario.write(&self.scenario())
    }

    /// Takes a function away, as in a driver that is too old to have it. To be called before the library is loaded.
    ///
    /// # Errors
    /// The library has no such function.
    pub fn without(self, function: &str) -> io::Result<Self> {
        let mut library = fs::read(self.library())?;
        // Zeroes on both sides: only the whole name, as tables of strings have it.
        let name = [b"\0", function.as_bytes(), b"\0"].concat();
        let places: Vec<_> =
            library.windows(name.len()).enumerate().filter(|(_, at)| *at == name).map(|(n, _)| n).collect();
        if places.is_empty() {
            return Err(io::Error::other(format!("the library has no {function}")));
        }
        for place in places {
            library[place + 1] = b'_';
        }
        fs::write(self.library(), library)?;
        Ok(self)
    }

    fn scenario(&self) -> PathBuf {
        state::beside(&self.library())
    }
}

/// Cargo builds it where it builds the tests that depend on it.
fn built() -> io::Result<PathBuf> {
    let test = env::current_exe()?;
    let places = test.ancestors().skip(1).take(2).map(|place| place.join("libnvml_stand_in.so"));
    let found = places.into_iter().find(|place| place.exists());
    found.ok_or_else(|| io::Error::other(format!("no libnvml_stand_in.so beside {}", test.display())))
}
