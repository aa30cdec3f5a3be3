//! Learning at once that the kernel kills for memory.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    inotify::{AddWatchFlags, InitFlags, Inotify},
};

use crate::cgroup::Group;

/// What becomes readable when the count of kills may have changed.
pub(super) enum OomWatch {
    /// Version 2 changes a file.
    File(Inotify),
    /// Version 1 counts up an eventfd.
    Event(EventFd),
    /// Not to be had here: the count is read at the end.
    None,
}

impl OomWatch {
    pub(super) fn of(group: &Group) -> Self {
        let watch = match group.oom_file() {
            Some((file, true)) => watch_file(&file),
            Some((file, false)) => watch_event(&file, &group.event_control()),
            None => None,
        };
        watch.unwrap_or(Self::None)
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::File(inotify) => Some(inotify.as_fd()),
            Self::Event(event) => Some(event.as_fd()),
            Self::None => None,
        }
    }

    /// Makes it wait for the next change.
    pub(super) fn consume(&mut self) {
        match self {
            Self::File(inotify) => while inotify.read_events().is_ok_and(|events| !events.is_empty()) {},
            Self::Event(event) => {
                let _ = event.read();
            }
            Self::None => {}
        }
    }
}

fn watch_file(file: &Path) -> Option<OomWatch> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    inotify.add_watch(file, AddWatchFlags::IN_MODIFY).ok()?;
    Some(OomWatch::File(inotify))
}

fn watch_event(file: &Path, control: &Path) -> Option<OomWatch> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
    let file = fs::File::open(file).ok()?;
    fs::write(control, format!("{} {}", event.as_fd().as_raw_fd(), file.as_raw_fd())).ok()?;
    Some(OomWatch::Event(event))
}
