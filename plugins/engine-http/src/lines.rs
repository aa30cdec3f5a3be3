//! Lines out of bytes.

use std::fmt;

/// More than any event has; a broken engine must not fill the memory.
const MOST_LINE_BYTES: usize = 1 << 20;

/// A line that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endless;

impl fmt::Display for Endless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line without end")
    }
}

/// Cuts bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// How much of `bytes` is known to hold no line's end.
    seen: usize,
}

impl Lines {
    /// Takes more bytes.
    ///
    /// # Errors
    /// There are too many without an end of line.
    pub fn add(&mut self, chunk: &[u8]) -> Result<(), Endless> {
        if self.bytes.len() > MOST_LINE_BYTES {
            return Err(Endless);
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// The next whole line that is not blank.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        loop {
            let found = self.bytes[self.seen..].iter().position(|byte| *byte == b'\n');
            let Some(length) = found else {
                self.seen = self.bytes.len();
                return None;
            };
            let rest = self.bytes.split_off(self.seen + length + 1);
            let line = std::mem::replace(&mut self.bytes, rest);
            self.seen = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_cut() {
        let text = b"one\n\n  \ntwo\nthree";
        for size in 1..=text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for chunk in text.chunks(size) {
                lines.add(chunk).unwrap();
                found.extend(std::iter::from_fn(|| lines.take()));
            }
            assert_eq!(found, [b"one\n".to_vec(), b"two\n".to_vec()]);
        }
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; MOST_LINE_BYTES];
        assert!((0..3).any(|_| lines.add(&piece).is_err()));
    }
}
