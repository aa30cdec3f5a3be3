//! Reading a container's log, which its supervisor writes: two files, the older one first.

use std::{
    fs,
    io::{self, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use host_core::runtime::{LogChunk, LogOptions, Result};
use inotify::{EventStream, Inotify, WatchMask};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    sync::watch,
};

use crate::{held::View, place::name, protocol::Phase, runtime::failed};

const PART: usize = 64 << 10;

/// The log in `directory`; `view` tells when nothing more will come.
pub(crate) async fn read(
    directory: &Path,
    options: LogOptions,
    view: Option<watch::Receiver<View>>,
) -> Result<BoxStream<'static, Result<LogChunk>>> {
    let reading = failed(format!("the log in {} cannot be read", directory.display()));
    let reader = Reader::open(directory.to_owned(), options, view).await.map_err(reading)?;
    let chunks = stream::try_unfold(reader, |mut reader| async move {
        Ok(reader.next().await?.map(|chunk| (chunk, reader)))
    });
    Ok(chunks.map_err(|error: io::Error| failed("the log cannot be read")(error)).boxed())
}

struct Reader {
    directory: PathBuf,
    /// To be read after the one at hand.
    newer: Option<File>,
    file: Option<File>,
    follow: Option<Follow>,
}

/// What tells that there is more.
struct Follow {
    changes: EventStream<[u8; 1024]>,
    view: watch::Receiver<View>,
}

impl Reader {
    async fn open(
        directory: PathBuf,
        options: LogOptions,
        view: Option<watch::Receiver<View>>,
    ) -> io::Result<Self> {
        let follow = match view.filter(|_| options.follow) {
            Some(view) => Some(Follow { changes: changes(&directory)?, view }),
            None => None,
        };
        // In this order: a newer one that is put aside meanwhile is found twice, and none is missed.
        let mut newer = opened(&directory.join(name::LOG)).await?;
        let mut older = opened(&directory.join(name::OLDER_LOG)).await?;
        if let (Some(one), Some(other)) = (&older, &newer)
            && one.metadata().await?.ino() == other.metadata().await?.ino()
        {
            newer = None;
        }
        if let Some(lines) = options.tail {
            seek_back_both(older.as_mut(), newer.as_mut(), lines.into()).await?;
        }
        let (file, newer) = if older.is_some() { (older, newer) } else { (newer, None) };
        Ok(Self { directory, newer, file, follow })
    }

    /// `None` when nothing more will come.
    async fn next(&mut self) -> io::Result<Option<LogChunk>> {
        loop {
            let over = self.follow.as_ref().is_none_or(|follow| is_over(&follow.view));
            if let Some(chunk) = self.part().await? {
                return Ok(Some(chunk));
            }
            if let Some(newer) = self.newer.take() {
                self.file = Some(newer);
            } else if let Some(newer) = self.rotated().await? {
                // The one at hand may have grown until it was put aside.
                self.newer = Some(newer);
            } else if over {
                return Ok(None);
            } else if let Some(follow) = &mut self.follow {
                follow.more().await?;
            }
        }
    }

    async fn part(&mut self) -> io::Result<Option<LogChunk>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut chunk = vec![0; PART];
        let length = file.read(&mut chunk).await?;
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }

    /// The file that has taken the place of the one at hand.
    async fn rotated(&mut self) -> io::Result<Option<File>> {
        let Some(newest) = opened(&self.directory.join(name::LOG)).await? else { return Ok(None) };
        let Some(file) = &self.file else { return Ok(Some(newest)) };
        let same = newest.metadata().await?.ino() == file.metadata().await?.ino();
        Ok((!same).then_some(newest))
    }
}

impl Follow {
    async fn more(&mut self) -> io::Result<()> {
        tokio::select! {
            change = self.changes.next() => change.transpose().map(drop),
            // Once it has ended, what it wrote last is read.
            _ = self.view.wait_for(over) => Ok(()),
        }
    }
}

fn over(view: &View) -> bool {
    matches!(view.status.phase, Phase::Exited(_))
}

fn is_over(view: &watch::Receiver<View>) -> bool {
    over(&view.borrow()) || view.has_changed().is_err()
}

async fn opened(path: &Path) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn changes(directory: &Path) -> io::Result<EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
    inotify.watches().add(fs::canonicalize(directory)?, mask)?;
    inotify.into_event_stream([0; 1024])
}

/// Goes to where the last `lines` lines of both files together begin.
async fn seek_back_both(older: Option<&mut File>, newer: Option<&mut File>, lines: u64) -> io::Result<()> {
    let mut wanted = lines;
    let mut begun = false;
    if let Some(newer) = newer {
        wanted -= seek_back(newer, lines).await?;
        begun = lines > 0 && newer.stream_position().await? == 0 && newer.metadata().await?.len() > 0;
    }
    if let Some(older) = older {
        // Its last line may go on in the newer file, where it was counted.
        wanted += u64::from(begun && !ends_with_a_line(older).await?);
        seek_back(older, wanted).await?;
    }
    Ok(())
}

async fn ends_with_a_line(file: &mut File) -> io::Result<bool> {
    if file.metadata().await?.len() == 0 {
        return Ok(true);
    }
    file.seek(SeekFrom::End(-1)).await?;
    Ok(file.read_u8().await? == b'\n')
}

/// Goes to where the last `lines` lines begin; how many of them there are.
async fn seek_back(file: &mut File, lines: u64) -> io::Result<u64> {
    let length = file.metadata().await?.len();
    let (mut end, mut found) = (length, 0);
    let mut part = vec![0; PART];
    while end > 0 && found <= lines {
        let begin = end.saturating_sub(PART as u64);
        let size = usize::try_from(end - begin).unwrap_or(PART);
        file.seek(SeekFrom::Start(begin)).await?;
        file.read_exact(&mut part[..size]).await?;
        for (place, byte) in part[..size].iter().enumerate().rev() {
            let position = begin + place as u64 + 1;
            // The end of the last line begins no other.
            if *byte == b'\n' && position < length {
                found += 1;
                if found == lines {
                    file.seek(SeekFrom::Start(position)).await?;
                    return Ok(lines);
                }
            }
        }
        end = begin;
    }
    file.seek(SeekFrom::Start(if lines == 0 { length } else { 0 })).await?;
    Ok(if lines == 0 || length == 0 { 0 } else { found + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn tail(older: &str, newer: &str, lines: u32) -> String {
        let directory = tempfile::tempdir().unwrap();
        if !older.is_empty() {
            fs::write(directory.path().join(name::OLDER_LOG), older).unwrap();
        }
        fs::write(directory.path().join(name::LOG), newer).unwrap();
        let options = LogOptions { follow: false, tail: Some(lines) };
        let chunks: Vec<_> =
            read(directory.path(), options, None).await.unwrap().try_collect().await.unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    #[tokio::test]
    async fn the_last_lines_are_found_across_both_files() {
        let (older, newer) = ("1\n2\n3\n", "4\n5\n6\n");
        for (lines, expected) in [
            (0, ""),
            (1, "6\n"),
            (3, newer),
            (4, "3\n4\n5\n6\n"),
            (6, "1\n2\n3\n4\n5\n6\n"),
            (99, "1\n2\n3\n4\n5\n6\n"),
        ] {
            assert_eq!(tail(older, newer, lines).await, expected, "{lines} lines");
        }
        for (lines, expected) in [(0, ""), (1, "4\n"), (2, "3cont\n4\n"), (3, "2\n3cont\n4\n")] {
            assert_eq!(
                tail("1\n2\n3", "cont\n4\n", lines).await,
                expected,
                "{lines} lines, one in both files"
            );
        }
        assert_eq!(tail("", "a\nunfinished", 1).await, "unfinished");
        assert_eq!(tail("", "", 5).await, "");
        let long = "x".repeat(PART + 10);
        assert_eq!(tail("", &format!("a\n{long}\n"), 1).await, format!("{long}\n"));
        assert_eq!(tail("", &format!("a\n{long}\nb\n"), 2).await, format!("{long}\nb\n"));
    }
}
