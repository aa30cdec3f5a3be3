//! Standard output: text for people, JSON for machines, tables and colours on a terminal only.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

/// For what is well.
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
/// For what wants a look.
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();
/// For what is broken.
pub(crate) const RED: Style = AnsiColor::Red.on_default();
/// For names of things.
pub(crate) const BOLD: Style = Style::new().bold();

/// Standard output.
pub(crate) struct Out {
    stream: AutoStream<io::Stdout>,
    terminal: bool,
}

impl Out {
    pub(crate) fn stdout() -> Self {
        Self { stream: anstream::stdout(), terminal: io::stdout().is_terminal() }
    }

    /// A person reads this, not a program.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// One line. Colours are left out where nobody would see them.
    pub(crate) fn line(&mut self, line: fmt::Arguments<'_>) -> io::Result<()> {
        writeln!(self.stream, "{line}")
    }

    /// Something as indented JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        writeln!(self.stream, "{text}")
    }

    /// Somebody else's output as it is, at once.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Rows under headers: with borders for a person, else one line each, for `awk`.
    pub(crate) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let mut table = Table::new();
        table.set_header(header).add_rows(rows);
        if self.terminal {
            table.load_style(presets::UTF8_FULL_CONDENSED);
            // A terminal that does not know its size gets lines as long as they are.
            if let Some(size) = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0) {
                table.set_content_arrangement(ContentArrangement::Dynamic).set_width(size.ws_col);
            }
        } else {
            table.load_style(presets::NOTHING);
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
        }
        writeln!(self.stream, "{}", table.trim_fmt())
    }

    /// Names and values, the values below each other.
    pub(crate) fn fields(&mut self, Fields(fields): &Fields) -> io::Result<()> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in fields {
            self.line(format_args!("{BOLD}{name:<width$}{BOLD:#}  {value}"))?;
        }
        Ok(())
    }
}

/// Names and values to be told.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(&'static str, String)>);

impl Fields {
    pub(crate) fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.push((name, value.to_string()));
        self
    }

    /// Only what there is.
    pub(crate) fn maybe(self, name: &'static str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }
}
