//! Every device of the host, by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    edits::Edits,
    file::{self, Specification},
    name::QualifiedName,
};

/// Where the CDI specification has tools write, in rising priority.
pub const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Files read per directory; there is one or two per vendor.
const MOST_FILES: usize = 256;

/// A file or directory that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Which.
    pub path: PathBuf,
    /// Why, with the remedy where there is one.
    pub reason: String,
}

/// Why a device cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not of the form `vendor/class=device`.
    #[error("{0:?} is no CDI device; write vendor/class=device, for example nvidia.com/gpu=0")]
    Name(String),
    /// No specification describes it.
    #[error("no CDI specification in {directories} describes {device}{unreadable}")]
    Missing {
        /// As it was asked for.
        device: String,
        /// Those that were searched.
        directories: String,
        /// Files that might have, with reasons; empty or a clause.
        unreadable: String,
    },
    /// Two files of the same priority describe it, so that nobody can tell which is meant.
    #[error("{device} is described by both {} and {}; remove one", first.display(), second.display())]
    Conflict {
        /// Its name.
        device: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// The host's devices as they were described when this was read.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    directories: Vec<PathBuf>,
    devices: BTreeMap<QualifiedName, Entry>,
    unreadable: Vec<Unreadable>,
}

#[derive(Debug, Clone)]
struct Entry {
    priority: usize,
    file: PathBuf,
    /// A second file of the same priority.
    rival: Option<PathBuf>,
    specification: Arc<Specification>,
    index: usize,
}

impl Registry {
    /// Reads `.json` and `.yaml` files of these directories; a later directory's devices win. Never fails: a directory
    /// that does not exist describes nothing, and what else goes wrong is in [`Registry::unreadable`].
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self { directories: directories.to_vec(), ..Self::default() };
        for (priority, directory) in directories.iter().enumerate() {
            match files(directory) {
                Ok(files) => files.iter().for_each(|file| registry.take(file, priority)),
                Err(reason) => registry.unusable(directory, reason),
            }
        }
        registry
    }

    /// Every device that [`Registry::resolve`] can give.
    pub fn names(&self) -> BTreeSet<String> {
        let usable = self.devices.iter().filter(|(_, entry)| entry.rival.is_none());
        usable.map(|(name, _)| name.to_string()).collect()
    }

    /// Files and directories that could not be used.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// What a container with all these devices is to be given, in the order to apply it: what a specification says
    /// for all its devices comes once, before the first of them.
    ///
    /// # Errors
    /// When one is missing or ambiguous; then none is to be given.
    pub fn resolve(&self, names: &[String]) -> Result<Vec<Edits>, Error> {
        let mut edits = Vec::new();
        let mut seen: Vec<&Arc<Specification>> = Vec::new();
        let mut given = BTreeSet::new();
        for name in names {
            let name = QualifiedName::parse(name).ok_or_else(|| Error::Name(name.clone()))?;
            let entry = self.find(&name)?;
            if !seen.iter().any(|known| Arc::ptr_eq(known, &entry.specification)) {
                seen.push(&entry.specification);
                edits.push(entry.specification.container_edits.clone());
            }
            if given.insert(name) {
                edits.extend(
                    entry.specification.devices.get(entry.index).map(|device| device.container_edits.clone()),
                );
            }
        }
        edits.retain(|edits| !edits.is_empty());
        Ok(edits)
    }

    fn find(&self, name: &QualifiedName) -> Result<&Entry, Error> {
        let Some(entry) = self.devices.get(name) else { return Err(self.missing(name)) };
        match &entry.rival {
            None => Ok(entry),
            Some(rival) => Err(Error::Conflict {
                device: name.to_string(),
                first: entry.file.clone(),
                second: rival.clone(),
            }),
        }
    }

    fn missing(&self, name: &QualifiedName) -> Error {
        let directories: Vec<_> = self.directories.iter().map(|path| path.display().to_string()).collect();
        let unreadable: Vec<_> =
            self.unreadable.iter().map(|file| format!("{}: {}", file.path.display(), file.reason)).collect();
        Error::Missing {
            device: name.to_string(),
            directories: directories.join(" or "),
            unreadable: match unreadable.as_slice() {
                [] => String::new(),
                all => format!("; not usable are {}", all.join(", ")),
            },
        }
    }

    fn take(&mut self, file: &Path, priority: usize) {
        let specification = match file::read(file) {
            Ok(specification) => Arc::new(specification),
            // Tools replace their files while we look.
            Err(file::Refusal::Io(error)) if error.kind() == io::ErrorKind::NotFound => return,
            Err(refusal) => return self.unusable(file, refusal.to_string()),
        };
        for (index, device) in specification.devices.iter().enumerate() {
            let Some(name) = QualifiedName::new(&specification.kind, &device.name) else { continue };
            match self.devices.get_mut(&name) {
                Some(known) if known.priority == priority => known.rival = Some(file.to_owned()),
                _ => {
                    let specification = Arc::clone(&specification);
                    let entry = Entry { priority, file: file.to_owned(), rival: None, specification, index };
                    self.devices.insert(name, entry);
                }
            }
        }
    }

    fn unusable(&mut self, path: &Path, reason: String) {
        self.unreadable.push(Unreadable { path: path.to_owned(), reason });
    }
}

/// The specifications of a directory, in the order of their names.
fn files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let listed = match fs::metadata(directory) {
        Ok(metadata) => {
            file::must_be_trusted(&metadata).map_err(|refusal| refusal.to_string())?;
            fs::read_dir(directory)
        }
        Err(error) => Err(error),
    };
    let entries = match listed {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let entries: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut files = entries.map_err(|error| error.to_string())?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json" || extension == "yaml"));
    if files.len() > MOST_FILES {
        return Err(format!("it holds {} specifications; at most {MOST_FILES} are read", files.len()));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use tempfile::TempDir;

    use super::*;

    fn write(directory: &TempDir, file: &str, devices: &[(&str, &str)]) {
        let device = |(name, value): &(&str, &str)| {
            format!(r#"{{"name":"{name}","containerEdits":{{"env":["DEVICE={value}"]}}}}"#)
        };
        let devices: Vec<_> = devices.iter().map(device).collect();
        let text = format!(
            r#"{{"cdiVersion":"0.8.0","kind":"v.com/c","containerEdits":{{"env":["ALL={file}"]}},"devices":[{}]}}"#,
            devices.join(",")
        );
        fs::write(directory.path().join(file), text).unwrap();
    }

    fn read(directories: &[&TempDir]) -> Registry {
        let directories: Vec<_> = directories.iter().map(|directory| directory.path().to_owned()).collect();
        Registry::read(&directories)
    }

    fn env(registry: &Registry, names: &[&str]) -> Result<Vec<String>, Error> {
        let names: Vec<_> = names.iter().map(|name| format!("v.com/c={name}")).collect();
        Ok(registry.resolve(&names)?.into_iter().flat_map(|edits| edits.env).collect())
    }

    #[test]
    fn a_later_directory_wins_device_by_device() {
        let (low, high) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        write(&low, "low.json", &[("a", "low"), ("b", "low")]);
        // JSON is YAML too.
        write(&high, "high.yaml", &[("a", "high")]);
        write(&high, "ignored.txt", &[("z", "")]);
        let registry = read(&[&low, &high]);
        assert_eq!(registry.names(), ["v.com/c=a", "v.com/c=b"].map(str::to_owned).into());
        assert_eq!(env(&registry, &["a"]).unwrap(), ["ALL=high.yaml", "DEVICE=high"]);
        assert_eq!(env(&registry, &["b"]).unwrap(), ["ALL=low.json", "DEVICE=low"]);
        assert!(registry.unreadable().is_empty());
    }

    #[test]
    fn what_is_for_all_devices_of_a_file_is_given_once() {
        let directory = TempDir::new().unwrap();
        write(&directory, "a.json", &[("a", "1"), ("b", "2")]);
        let registry = read(&[&directory]);
        assert_eq!(env(&registry, &["b", "a", "b"]).unwrap(), ["ALL=a.json", "DEVICE=2", "DEVICE=1"]);
    }

    #[test]
    fn two_files_of_one_directory_that_disagree_are_an_error_when_asked_for() {
        let (low, high) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        write(&low, "1.json", &[("a", "1"), ("b", "1")]);
        write(&low, "2.json", &[("a", "2"), ("c", "2")]);
        let registry = read(&[&low]);
        assert_eq!(registry.names(), ["v.com/c=b", "v.com/c=c"].map(str::to_owned).into());
        let Err(Error::Conflict { first, second, .. }) = env(&registry, &["a"]) else {
            panic!("no conflict")
        };
        assert!(first.ends_with("1.json") && second.ends_with("2.json"));
        // Settled by one of higher priority.
        write(&high, "3.json", &[("a", "3")]);
        assert_eq!(env(&read(&[&low, &high]), &["a"]).unwrap(), ["ALL=3.json", "DEVICE=3"]);
    }

    #[test]
    fn a_missing_device_is_named_with_where_it_was_looked_for() {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("broken.json"), "{").unwrap();
        let text = env(&read(&[&directory]), &["a"]).unwrap_err().to_string();
        let place = directory.path().display().to_string();
        assert!(
            text.contains("v.com/c=a") && text.contains(&place) && text.contains("broken.json"),
            "{text}"
        );
        assert!(matches!(Registry::default().resolve(&["gpu0".to_owned()]), Err(Error::Name(_))));
        assert!(Registry::read(&["/nonexistent/cdi".into()]).unreadable().is_empty());
    }

    #[test]
    fn what_anybody_may_write_is_refused() {
        let directory = TempDir::new().unwrap();
        write(&directory, "a.json", &[("a", "1")]);
        write(&directory, "b.json", &[("b", "1")]);
        let file = directory.path().join("a.json");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        // A link's own bits say nothing.
        symlink(&file, directory.path().join("c.json")).unwrap();
        let registry = read(&[&directory]);
        assert_eq!(registry.names(), ["v.com/c=b".to_owned()].into());
        assert_eq!(registry.unreadable().len(), 2);
        assert!(registry.unreadable()[0].reason.contains("chmod"));

        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let registry = read(&[&directory]);
        assert!(registry.names().is_empty());
        assert_eq!(registry.unreadable()[0].path, directory.path());
    }

    #[test]
    fn what_a_group_may_write_is_refused_but_for_roots() {
        let directory = TempDir::new().unwrap();
        for (file, device, group, mode) in
            [("a.json", "a", 0, 0o664), ("b.json", "b", 4711, 0o644), ("c.json", "c", 4711, 0o664)]
        {
            write(&directory, file, &[(device, "1")]);
            let path = directory.path().join(file);
            chown(&path, None, Some(group)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let registry = read(&[&directory]);
        assert_eq!(registry.names(), ["v.com/c=a", "v.com/c=b"].map(str::to_owned).into());
        assert!(registry.unreadable()[0].reason.contains("group 4711"));

        chown(directory.path(), None, Some(4711)).unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(read(&[&directory]).names().is_empty());
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("a.yaml"), " ".repeat((4 << 20) + 1)).unwrap();
        assert!(read(&[&directory]).unreadable()[0].reason.contains("larger"));
    }
}
