//! Loading as a user of this crate sees it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests are tests")]

use std::{fs, path::PathBuf};

use host_config::{ConfigErrors, Effective, Loaded, Sources, load};

mod any_text;
mod errors;
mod layers;
mod plugins;
mod profiles;
mod rules;
mod secrets;
mod telemetry;

/// A directory with configuration files, gone when dropped, and the sources that read it.
struct Place {
    dir: tempfile::TempDir,
    sources: Sources,
}

impl Place {
    /// Nothing configured: the profile `localdev` by itself.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sources = Sources { system_dir: dir.path().join("system"), ..Sources::default() };
        Self { dir, sources }
    }

    fn profile(mut self, name: &str) -> Self {
        self.sources.profile = Some(name.to_owned());
        self
    }

    /// A file of the system directory.
    fn system(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(&self.sources.system_dir).unwrap();
        fs::write(self.sources.system_dir.join(name), text).unwrap();
        self
    }

    /// A `--config` file.
    fn file(mut self, name: &str, text: &str) -> Self {
        fs::write(self.path(name), text).unwrap();
        self.sources.files.push(self.path(name));
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn set(mut self, text: &str) -> Self {
        self.sources.set.push(text.to_owned());
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self) -> Result<Loaded, ConfigErrors> {
        load(&self.sources)
    }

    #[track_caller]
    fn loaded(&self) -> Loaded {
        self.load().unwrap_or_else(|errors| panic!("refused: {errors}"))
    }

    /// Every error as it is shown, without the directory of this test.
    #[track_caller]
    fn errors(&self) -> Vec<String> {
        let errors = self.load().map(drop).expect_err("it was accepted");
        let dir = format!("{}/", self.dir.path().display());
        errors.iter().map(|error| error.to_string().replace(&dir, "")).collect()
    }

    #[track_caller]
    fn error(&self) -> String {
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "{errors:#?}");
        errors[0].clone()
    }

    /// `value (origin)` of a key.
    #[track_caller]
    fn shown(&self, key: &str) -> String {
        let all = self.loaded().effective();
        let Effective { value, origin, .. } = all
            .into_iter()
            .find(|effective| effective.key == key)
            .unwrap_or_else(|| panic!("{key} has no value"));
        let dir = format!("{}/", self.dir.path().display());
        format!("{value} ({})", origin.to_string().replace(&dir, ""))
    }
}
