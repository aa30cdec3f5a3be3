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
    use std::{sync::Arc, time::SystemTime};

    use host_core::telemetry::{Level, Record};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{json, pretty};

    fn record(message: &str, fields: &Value) -> Record {
        Record {
            at: SystemTime::UNIX_EPOCH,
            level: Level::Info,
            target: "test",
            message: message.to_owned(),
            fields: fields.as_object().unwrap().clone(),
            instance: None,
            environment: Arc::from("localdev"),
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_line(
            texts in proptest::collection::vec(r#"\PC{0,8}[\x00-\x1f\x7f-\x9f\u{2028}-\u{202e}\u{2066}-\u{2069}\u{200f}"\\]{0,4}\PC{0,8}"#, 3)
        ) {
            let [message, key, value] = &texts[..] else { unreachable!() };
            let fields = json!({"mandelbox": value, key: value, "nested": {key: [value]}});
            let record = record(message, &fields);
            let (mut plain, mut machine) = (Vec::new(), Vec::new());
            pretty::push(&mut plain, &record, false);
            json::push(&mut machine, &record);
            for text in [&plain, &machine] {
                let line = std::str::from_utf8(text.strip_suffix(b"\n").unwrap()).unwrap();
                let hostile = |c: char| c.is_control() || "\u{2028}\u{2029}\u{202e}\u{2066}\u{200f}".contains(c);
                prop_assert!(!line.contains(hostile), "{line:?}");
            }
            let line: Value = serde_json::from_slice(&machine).unwrap();
            prop_assert_eq!(&line["message"], message);
            prop_assert_eq!(&line["fields"], &fields, "escaping loses nothing");
        }
    }

    #[test]
    fn what_commands_a_terminal_or_ends_a_line_is_written_out() {
        let mut line = String::new();
        push(&mut line, "a\x1b[2Jb\r\nc\u{9b}31md\u{202e}e\u{2028}f\tg\0h\u{7f}");
        assert_eq!(line, r"a\u{1b}[2Jb\r\nc\u{9b}31md\u{202e}e\u{2028}f\tg\u{0}h\u{7f}");
    }

    #[test]
    fn what_people_write_is_left_alone() {
        let mut line = String::new();
        push(&mut line, r#"größe "x" = 10 µs, 東京 👍 C:\dir"#);
        assert_eq!(line, r#"größe "x" = 10 µs, 東京 👍 C:\dir"#);
    }
}
