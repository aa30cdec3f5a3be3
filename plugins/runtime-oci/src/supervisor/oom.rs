//! Learning at once that the kernel kills for memory.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    poll::PollTimeout,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};

use crate::cgroup::Group;

/// Version 1 tells before it kills, and counts afterwards: as long as this, the count may still change.
const COUNTED: Duration = Duration::from_millis(500);
/// Between two looks at it.
const PAUSE: u8 = 10;

/// What tells that the count of kills may have changed.
pub(super) struct OomWatch {
    source: Source,
    due: Option<Instant>,
}

enum Source {
    /// Version 2 changes a file. The set is ready when the file has changed since it was read; the file itself would
    /// always be readable. No inotify: a user may have only 128 of those.
    File { changed: Epoll, file: File },
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
        Self { source: watch.unwrap_or(Source::None), due: None }
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::File { changed, .. } => Some(changed.0.as_fd()),
            Source::Event(event) => Some(event.as_fd()),
            Source::None => None,
        }
    }

    /// Makes it wait for the next change; the count is due.
    pub(super) fn consume(&mut self) {
        let now = Instant::now();
        match &self.source {
            Source::File { file, .. } => {
                look(file);
                // It changes with the count, and also, often, when a group is at its limit.
                self.due = Some(now);
            }
            Source::Event(event) => {
                let _ = event.read();
                self.due = Some(now + COUNTED);
            }
            Source::None => {}
        }
    }

    /// Whether to look at the count now.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.due.is_some();
        self.due = self.due.filter(|due| *due > Instant::now());
        due
    }

    /// How long to wait for anything before the next look.
    pub(super) fn patience(&self) -> PollTimeout {
        self.due.map_or(PollTimeout::NONE, |_| PollTimeout::from(PAUSE))
    }
}

fn watch_file(file: &Path) -> Option<Source> {
    let file = File::open(file).ok()?;
    let changed = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()?;
    changed.add(&file, EpollEvent::new(EpollFlags::EPOLLPRI, 0)).ok()?;
    look(&file);
    Some(Source::File { changed, file })
}

/// What the kernel takes for having seen the file as it is now.
fn look(file: &File) {
    let _ = file.read_at(&mut [0; 512], 0);
}

fn watch_event(file: &Path, control: &Path) -> Option<Source> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
    let file = File::open(file).ok()?;
    fs::write(control, format!("{} {}", event.as_fd().as_raw_fd(), file.as_raw_fd())).ok()?;
    Some(Source::Event(event))
}
