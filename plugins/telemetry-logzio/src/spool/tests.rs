use proptest::prelude::*;

use super::*;

const ROOM: u64 = 64 << 20;

fn lines(reader: &mut Reader, end: u64) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(batch) = reader.batch(end, 1 << 20).unwrap() {
        all.extend(String::from_utf8(batch.text).unwrap().lines().map(str::to_owned));
        reader.advance(batch.end).unwrap();
    }
    all
}

#[derive(Debug, Clone)]
enum Step {
    /// That many lines of that length.
    Append(u8, u32),
    /// A batch of at most that many bytes, delivered or not.
    Deliver(usize, bool),
    /// The process is killed, perhaps in the middle of a line.
    Crash(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..20_u8, 1..400_000_u32).prop_map(|(count, length)| Step::Append(count, length)),
        (1_usize..5_000_000, any::<bool>()).prop_map(|(longest, ok)| Step::Deliver(longest, ok)),
        any::<bool>().prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn what_is_accepted_is_given_out_once_and_in_order_whatever_happens(
        steps in proptest::collection::vec(step(), 1..30)
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = open(scratch.path(), 32 << 20).unwrap();
        let (mut accepted, mut delivered) = (Vec::new(), Vec::new());
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(count, length) => {
                    let line = |m| format!("{n}-{m}-{}", "x".repeat(length as usize));
                    let lines: Vec<String> = (0..count).map(line).collect();
                    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
                    if writer.append(text.as_bytes()).is_ok() {
                        accepted.extend(lines);
                    }
                }
                Step::Deliver(longest, ok) => {
                    if let Some(batch) = reader.batch(writer.end(), longest).unwrap() && ok {
                        prop_assert!(batch.text.len() <= longest.max(400_100));
                        let text = String::from_utf8(batch.text).unwrap();
                        delivered.extend(text.lines().map(str::to_owned));
                        reader.advance(batch.end).unwrap();
                    }
                }
                Step::Crash(torn) => {
                    if torn {
                        writer.file.write_all_at(b"{\"torn", writer.end - writer.start).unwrap();
                    }
                    drop((writer, reader));
                    (writer, reader) = open(scratch.path(), 32 << 20).unwrap();
                }
            }
        }
        let end = writer.end();
        delivered.extend(lines(&mut reader, end));
        prop_assert!(delivered == accepted, "{} of {}", delivered.len(), accepted.len());
        prop_assert!(segments(scratch.path()).unwrap().len() == 1, "delivered files are removed");
    }
}

#[test]
fn a_full_spool_takes_nothing_more_until_something_is_delivered() {
    let scratch = tempfile::tempdir().unwrap();
    let (mut writer, mut reader) = open(scratch.path(), 4 * SEGMENT_BYTES).unwrap();
    let line = [vec![b'x'; 499_999], vec![b'\n']].concat();
    let mut taken = 0;
    while writer.append(&line).is_ok() {
        taken += 1;
    }
    assert!(writer.end() <= 4 * SEGMENT_BYTES && taken > 48, "{taken}");
    assert!(matches!(writer.append(&line), Err(NotTaken::Full)));
    assert_eq!(lines(&mut reader, writer.end()).len(), taken);
    writer.append(&line).unwrap();
}

#[test]
fn a_position_that_is_lost_or_absurd_costs_duplicates_and_no_record() {
    for position in [None, Some(""), Some("no number"), Some("1")] {
        let scratch = tempfile::tempdir().unwrap();
        let (mut writer, mut reader) = open(scratch.path(), ROOM).unwrap();
        writer.append(b"one\ntwo\n").unwrap();
        let batch = reader.batch(writer.end(), 4).unwrap().unwrap();
        assert_eq!(batch.text, b"one\n");
        reader.advance(batch.end).unwrap();
        drop((writer, reader));
        let path = scratch.path().join(POSITION);
        match position {
            Some(text) => fs::write(path, text).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let (writer, mut reader) = open(scratch.path(), ROOM).unwrap();
        assert_eq!(lines(&mut reader, writer.end()).last().unwrap(), "two", "{position:?}");
    }
}

#[test]
fn a_second_process_is_refused_and_links_are_not_followed() {
    let scratch = tempfile::tempdir().unwrap();
    let held = open(scratch.path(), ROOM).unwrap();
    assert_eq!(open(scratch.path(), ROOM).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    drop(held);
    let victim = scratch.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    fs::remove_file(path(scratch.path(), 0)).unwrap();
    std::os::unix::fs::symlink(&victim, path(scratch.path(), 0)).unwrap();
    assert!(open(scratch.path(), ROOM).is_err());
    assert_eq!(fs::read_to_string(victim).unwrap(), "untouched");
}

#[test]
fn nobody_else_can_read_it() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("a/b");
    let (mut writer, _reader) = open(&dir, ROOM).unwrap();
    writer.append(b"line\n").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&path(&dir, 0))), (0o700, 0o600));
}
