//! TOML text as a tree, with the line of every key.

use std::collections::BTreeMap;

use figment::value::{Dict, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::key::Key;

/// A document: its values, and where each begins.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pub(crate) tree: Dict,
    /// Counted from 1; also of values in lists.
    pub(crate) lines: BTreeMap<Key, usize>,
}

/// Why a text is no document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Counted from 1.
    pub(crate) line: usize,
    /// Characters, counted from 1.
    pub(crate) column: usize,
    pub(crate) message: String,
}

/// Deeper than any setting, and shallow enough for every function that walks a tree.
pub(crate) const DEEPEST: usize = 32;

/// Reads a whole document.
pub(crate) fn parse(text: &str) -> Result<Document, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        fault(text, at, error.message().to_owned())
    })?;
    let mut reader = Reader { text, lines: Lines::of(text), document: Document::default() };
    reader.document.tree = reader.table(table.into_inner(), &Key::default())?;
    Ok(reader.document)
}

/// Reads a single value; `None` when the text is none that TOML knows, or one that only TOML knows.
pub(crate) fn parse_value(text: &str) -> Option<Value> {
    let text = text.trim();
    let value = DeValue::parse(text).ok()?;
    if value.get_ref().is_datetime() {
        return None;
    }
    let mut reader = Reader { text, lines: Lines::of(text), document: Document::default() };
    reader.value(value, &Key::default()).ok()
}

fn fault(text: &str, at: usize, message: String) -> Fault {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Fault {
        line: 1 + before.matches('\n').count(),
        column: 1 + before[line_start..].chars().count(),
        message,
    }
}

/// Where each line begins.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    fn line(&self, at: usize) -> usize {
        1 + self.0.partition_point(|newline| *newline < at)
    }
}

struct Reader<'a> {
    text: &'a str,
    lines: Lines,
    document: Document,
}

impl Reader<'_> {
    fn table(&mut self, table: DeTable<'_>, at: &Key) -> Result<Dict, Fault> {
        let mut dict = Dict::new();
        for (name, value) in table {
            let key = at.child(name.get_ref().as_ref());
            let start = name.span().start;
            if key.0.len() > DEEPEST {
                return Err(fault(self.text, start, "nested too deeply".to_owned()));
            }
            self.document.lines.insert(key.clone(), self.lines.line(start));
            let value = self.value(value, &key)?;
            dict.insert(name.into_inner().into_owned(), value);
        }
        Ok(dict)
    }

    fn value(&mut self, value: Spanned<DeValue<'_>>, at: &Key) -> Result<Value, Fault> {
        let start = value.span().start;
        let refuse = |message: &str| fault(self.text, start, message.to_owned());
        Ok(match value.into_inner() {
            DeValue::String(text) => text.into_owned().into(),
            DeValue::Boolean(flag) => flag.into(),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| refuse("number too large"))?
                .into(),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .ok()
                .filter(|number: &f64| number.is_finite())
                .ok_or_else(|| refuse("not a finite number"))?
                .into(),
            DeValue::Datetime(time) => time.to_string().into(),
            DeValue::Table(table) => self.table(table, at)?.into(),
            DeValue::Array(items) => self.list(items, at)?.into(),
        })
    }

    fn list(&mut self, items: toml::de::DeArray<'_>, at: &Key) -> Result<Vec<Value>, Fault> {
        let mut values = Vec::new();
        for (place, item) in items.into_iter().enumerate() {
            let key = at.child(place.to_string());
            let start = item.span().start;
            if key.0.len() > DEEPEST {
                return Err(fault(self.text, start, "nested too deeply".to_owned()));
            }
            self.document.lines.insert(key.clone(), self.lines.line(start));
            values.push(self.value(item, &key)?);
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, key: &str) -> Option<usize> {
        let lines = parse(text).unwrap().lines;
        lines.get(&Key::parse(key).unwrap()).copied()
    }

    #[test]
    fn every_key_has_its_line() {
        let text = "# note\n[runtime]\nplugin = \"sim\"\n\n[runtime.docker]\r\nendpoint = \"x\"\n\
                    [[mandelbox.mounts]]\nsource = \"/a\"\n[[mandelbox.mounts]]\nsource = \"/b\"\n";
        for (key, at) in [
            ("runtime", 2),
            ("runtime.plugin", 3),
            ("runtime.docker", 5),
            ("runtime.docker.endpoint", 6),
            ("mandelbox.mounts.0.source", 8),
            ("mandelbox.mounts.1.source", 10),
        ] {
            assert_eq!(line(text, key), Some(at), "{key}");
        }
        assert_eq!(line("a = [\n 1,\n 2,\n]\nb.c = 1", "a.1"), Some(3));
        assert_eq!(line("a = [\n 1,\n 2,\n]\nb.c = 1", "b.c"), Some(5));
    }

    #[test]
    fn a_fault_has_line_and_column() {
        let fault = |text| parse(text).map(drop).unwrap_err();
        let broken = fault("[a]\nb = \n");
        assert_eq!((broken.line, broken.column), (2, 5), "{broken:?}");
        let twice = fault("a = 1\nb = 2\na = 3\n");
        assert_eq!((twice.line, twice.column), (3, 1), "{twice:?}");
        let large = fault("ä = 1.0\n\"ü\" = 99999999999999999999");
        assert_eq!(large.line, 1, "ä needs quotes: {large:?}");
        let large = fault("\"ü\" = 99999999999999999999");
        assert_eq!((large.line, large.column, large.message.as_str()), (1, 7, "number too large"));
        assert_eq!(fault("a = nan").message, "not a finite number");
    }

    #[test]
    fn depth_has_an_end() {
        let deep = |depth: usize| format!("{}a = 1", "a.".repeat(depth - 1));
        assert!(parse(&deep(DEEPEST)).is_ok());
        assert_eq!(parse(&deep(DEEPEST + 1)).map(drop).unwrap_err().message, "nested too deeply");
        let lists = format!("a = {}{}", "[".repeat(DEEPEST + 1), "]".repeat(DEEPEST + 1));
        assert!(parse(&lists).is_err());
    }

    #[test]
    fn single_values_are_numbers_flags_lists_tables_and_quoted_texts() {
        assert_eq!(parse_value("12"), Some(12_i64.into()));
        assert_eq!(parse_value("true"), Some(true.into()));
        assert_eq!(parse_value("\"12\""), Some("12".into()));
        assert!(matches!(parse_value("[1, 2]"), Some(Value::Array(..))));
        assert!(matches!(parse_value("{a = 1}"), Some(Value::Dict(..))));
        for text in ["", "sim", "10s", "127.0.0.1:4678", "[::]:4678", "2024-01-01", "inf", "nan", "a b"] {
            assert_eq!(parse_value(text), None, "{text:?} is a text");
        }
    }
}
