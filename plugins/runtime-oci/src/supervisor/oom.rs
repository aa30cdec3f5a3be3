//! Learning at once that the kernel kills for memory.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    poll::PollTimeout,
    sys::{
        eventfd::{EfdFlags, EventFd},
        inotify::{AddWatchFlags, InitFlags, Inotify},
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
        Self { source: watch.unwrap_or(Source::None), due: None }
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::File(inotify) => Some(inotify.as_fd()),
            Source::Event(event) => Some(event.as_fd()),
            Source::None => None,
        }
    }

    /// Makes it wait for the next change; the count is due.
    pub(super) fn consume(&mut self) {
        self.due = Some(Instant::now() + COUNTED);
        match &self.source {
            Source::File(inotify) => while inotify.read_events().is_ok_and(|events| !events.is_empty()) {},
            Source::Event(event) => {
                let _ = event.read();
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
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    inotify.add_watch(file, AddWatchFlags::IN_MODIFY).ok()?;
    Some(Source::File(inotify))
}

fn watch_event(file: &Path, control: &Path) -> Option<Source> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
    let file = fs::File::open(file).ok()?;
    fs::write(control, format!("{} {}", event.as_fd().as_raw_fd(), file.as_raw_fd())).ok()?;
    Some(Source::Event(event))
}
