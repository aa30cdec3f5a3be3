//! Lines for people: `03:48:13.123  INFO mandelbox-1 container started port_32262=1025`.

use std::{
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
};

use anstyle::{AnsiColor, Style};
use host_core::telemetry::{Level, Record};
use serde::Serialize;
use serde_json::Value;

use crate::{
    clock,
    escape::{self, Harmless, is_hostile},
};

/// The field that tells which mandelbox a record is about; shown first, in a colour of its own.
const MANDELBOX: &str = "mandelbox";

/// Mandelboxes that run side by side should differ; red and yellow belong to levels.
const MANDELBOX_COLOURS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::BrightCyan,
    AnsiColor::BrightMagenta,
    AnsiColor::BrightBlue,
];

/// Appends the record and a line end.
pub(crate) fn push(text: &mut Vec<u8>, record: &Record, colour: bool) {
    let mut line = Line { text: String::with_capacity(160), colour };
    line.record(record);
    line.text.push('\n');
    text.extend_from_slice(line.text.as_bytes());
}

struct Line {
    text: String,
    colour: bool,
}

impl Line {
    fn record(&mut self, record: &Record) {
        self.styled(dim(), |text| text.push_str(&clock::time_of_day(record.at)));
        self.text.push(' ');
        self.styled(level_style(record.level), |text| text.push_str(level_name(record.level)));
        if let Some(Value::String(id)) = record.fields.get(MANDELBOX) {
            self.text.push(' ');
            self.styled(mandelbox_style(id), |text| escape::push(text, id));
        }
        self.text.push(' ');
        let message = if record.level >= Level::Warn { bold() } else { Style::new() };
        self.styled(message, |text| escape::push(text, &record.message));
        for (name, value) in &record.fields {
            if name != MANDELBOX || !value.is_string() {
                self.field(name, value);
            }
        }
        if record.level <= Level::Debug {
            self.text.push(' ');
            self.styled(dim(), |text| write_to(text, format_args!("({})", record.target)));
        }
    }

    fn field(&mut self, name: &str, value: &Value) {
        self.text.push(' ');
        self.styled(dim(), |text| {
            escape::push(text, name);
            text.push('=');
        });
        match value {
            Value::String(word) if is_plain(word) => self.text.push_str(word),
            Value::String(words) => quote(&mut self.text, words),
            other => self.text.push_str(&json(other)),
        }
    }

    fn styled(&mut self, style: Style, write: impl FnOnce(&mut String)) {
        let style = if self.colour { style } else { Style::new() };
        write_to(&mut self.text, format_args!("{style}"));
        write(&mut self.text);
        write_to(&mut self.text, format_args!("{style:#}"));
    }
}

/// Writing to memory cannot fail.
fn write_to(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).ok();
}

fn dim() -> Style {
    Style::new().dimmed()
}

fn bold() -> Style {
    Style::new().bold()
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Trace => "TRACE",
        Level::Debug => "DEBUG",
        Level::Info => " INFO",
        Level::Warn => " WARN",
        Level::Error => "ERROR",
    }
}

fn level_style(level: Level) -> Style {
    match level {
        Level::Trace => dim(),
        Level::Debug => AnsiColor::Blue.on_default(),
        Level::Info => AnsiColor::Green.on_default(),
        Level::Warn => AnsiColor::Yellow.on_default().bold(),
        Level::Error => AnsiColor::Red.on_default().bold(),
    }
}

fn mandelbox_style(id: &str) -> Style {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let many = MANDELBOX_COLOURS.len() as u64;
    let which = usize::try_from(hasher.finish() % many).unwrap_or(0);
    MANDELBOX_COLOURS[which].on_default().bold()
}

/// Can stand without quotation marks.
fn is_plain(word: &str) -> bool {
    let is_odd = |c: char| c.is_whitespace() || is_hostile(c) || matches!(c, '"' | '=' | '\\');
    !word.is_empty() && !word.contains(is_odd)
}

fn quote(text: &mut String, words: &str) {
    text.push('"');
    for part in words.split_inclusive(['"', '\\']) {
        match part.strip_suffix(['"', '\\']) {
            Some(before) => {
                escape::push(text, before);
                text.push('\\');
                text.push_str(&part[before.len()..]);
            }
            None => escape::push(text, part),
        }
    }
    text.push('"');
}

fn json(value: &Value) -> String {
    let mut text = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Harmless)).ok();
    String::from_utf8_lossy(&text).into_owned()
}
