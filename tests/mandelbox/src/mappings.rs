//! The directory that the host shares with the mandelbox.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::log::log;

const READY: &str = ".ready";
const ANNOUNCEMENT: &str = "done_sleeping_until_X_clients";
const HOST_PORT: &str = "hostPort_for_my_";

/// The directory of the files; nothing in it is read before [`Mappings::wait_until_ready`] returns.
#[derive(Debug, Clone)]
pub(crate) struct Mappings {
    directory: PathBuf,
}

impl Mappings {
    pub(crate) fn from_environment() -> Self {
        let directory =
            env::var_os("MANDELBOX_MAPPINGS").unwrap_or_else(|| "/fractal/resourceMappings".into());
        Self { directory: directory.into() }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Blocks until the host has created `.ready`, which it does after everything else.
    pub(crate) fn wait_until_ready(&self) -> io::Result<()> {
        fs::read_dir(&self.directory)?;
        match self.wait_by_inotify() {
            Ok(()) => Ok(()),
            Err(error) => {
                log(format_args!("no inotify ({error}), polling"));
                self.wait_by_polling();
                Ok(())
            }
        }
    }

    /// Looks after the watch has begun and after every event, so that no order of things is missed.
    fn wait_by_inotify(&self) -> io::Result<()> {
        let watcher = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watcher, &self.directory, WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
        let mut events = [0; 4096];
        while !self.is_ready() {
            poll(&mut [PollFd::new(&watcher, PollFlags::IN)], None)?;
            rustix::io::read(&watcher, &mut events)?;
        }
        // The kernel takes 10 ms or more to close it, for which no client has to wait.
        thread::spawn(move || drop(watcher));
        Ok(())
    }

    /// The kernel counts a user's inotify instances over all containers, so there may be none left.
    fn wait_by_polling(&self) {
        let mut pause = Duration::from_millis(1);
        while !self.is_ready() {
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// A link named `.ready` is this program's own attack, not the host's word.
    fn is_ready(&self) -> bool {
        self.directory.join(READY).symlink_metadata().is_ok_and(|metadata| metadata.is_file())
    }

    /// Tells the host that the client may come.
    pub(crate) fn announce(&self) -> io::Result<()> {
        File::create(self.directory.join(ANNOUNCEMENT)).map(drop)
    }

    /// Puts links to `target` in place of the files that the host has yet to write, and one that leads upwards.
    pub(crate) fn attack(&self, target: &Path) -> io::Result<()> {
        for name in ["config.json", READY] {
            if !self.is_ready() {
                self.replace_by_link(name, target)?;
            }
        }
        self.replace_by_link("escape", Path::new("../.."))
    }

    fn replace_by_link(&self, name: &str, target: &Path) -> io::Result<()> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(target, path)
    }

    /// A file's content without its line end, or `None` when it cannot be read.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.directory.join(name)).ok()?;
        Some(text.trim_end().to_owned())
    }

    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    /// How long to wait for the client; `None` means for ever, which is also what a missing file means.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let seconds = self.number("timeout").unwrap_or(-1);
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }

    /// Host ports by the container's port, `32262/tcp` and so on.
    pub(crate) fn host_ports(&self) -> BTreeMap<String, i64> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return BTreeMap::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .filter_map(|name| Some((name.strip_prefix(HOST_PORT)?.replace('_', "/"), self.number(&name)?)))
            .collect()
    }
}
