//! A directory of plugins, and a host that loads from it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use host_core::registry::{Context, Role};
use host_plugin_loader::{Loader, Runner};
use tempfile::TempDir;

/// Where cargo puts a library that is an example of this package.
pub(crate) fn built(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let directory = test.parent().and_then(Path::parent).unwrap().join("examples");
    directory.join(format!("lib{name}.so"))
}

pub(crate) struct World {
    directory: TempDir,
}

impl World {
    /// Nothing in it yet.
    pub(crate) fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    /// With the plugin of that name.
    pub(crate) fn with(name: &str) -> Self {
        let world = Self::empty();
        world.put(name, &fs::read(built(name)).unwrap());
        world
    }

    /// By rename, as an installation does it.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(format!("lib{name}.so"));
        let new = path.with_extension("new");
        fs::write(&new, bytes).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &path).unwrap();
        path
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn loader(&self) -> Loader {
        let program = env!("CARGO_BIN_EXE_plugin-runner").into();
        Loader::new(self.path().to_owned(), Runner { program, arguments: Vec::new() })
    }

    pub(crate) fn context() -> Context {
        Context { state_dir: "/nonexistent".into(), local: true, role: Role::Service }
    }
}
