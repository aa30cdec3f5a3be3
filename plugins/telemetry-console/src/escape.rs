//! Text from anywhere, made harmless: no record can end its line, begin another, or command a terminal.

use std::io;

use serde_json::ser::Formatter;

/// Control characters (ESC, CR, LF, the 8-bit CSI, …), other line ends, and what reorders text.
pub(crate) fn is_hostile(c: char) -> bool {
    let is_line_end = matches!(c, '\u{2028}' | '\u{2029}');
    let is_reordering =
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || is_line_end || is_reordering
}

/// Appends `text` with everything hostile written out, as Rust would write it in a literal.
pub(crate) fn push(line: &mut String, text: &str) {
    for c in text.chars() {
        if is_hostile(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

/// Compact JSON in which what serde_json leaves as it is but a terminal may not, is escaped too.
pub(crate) struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_hostile(*c)) {
            // Everything hostile is in the basic multilingual plane: one \u suffices.
            write!(writer, "{}\\u{:04x}", &rest[..at], u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_a_terminal_or_ends_a_line_is_written_out() {
        let mut line = String::new();
        push(
            &mut line,
            "a\x1b[2Jb\r\nc\u{9b}31md\u{202e}e\u{2028}f\tg\0h\u{7f}",
        );
        assert_eq!(
            line,
            r"a\u{1b}[2Jb\r\nc\u{9b}31md\u{202e}e\u{2028}f\tg\u{0}h\u{7f}"
        );
    }

    #[test]
    fn what_people_write_is_left_alone() {
        let mut line = String::new();
        push(&mut line, r#"größe "x" = 10 µs, 東京 👍 C:\dir"#);
        assert_eq!(line, r#"größe "x" = 10 µs, 東京 👍 C:\dir"#);
    }
}
