//! The page for people.

use std::fmt::Display;

use crate::facts;
use crate::mappings::Mappings;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:4rem auto;max-width:42rem;padding:0 1rem;\
    background:#f6f7fb;color:#1d2333}main{background:#fff;border-radius:12px;padding:2rem 2.5rem;\
    box-shadow:0 8px 30px #1d233318}h1{margin-top:0;font-size:1.6rem}th{text-align:left;padding:.2rem 2rem .2rem 0;\
    font-weight:500;color:#68708a}code,pre{font:14px/1.5 ui-monospace,monospace}pre{background:#f6f7fb;\
    border-radius:8px;padding:1rem;overflow:auto}a{color:#3656d4}";

/// The mandelbox and what it was given; never its key.
pub(crate) fn render(mappings: &Mappings) -> String {
    let id = escaped(&facts::id());
    let ports =
        mappings.host_ports().into_iter().map(|(name, port)| row(&name, format_args!("host port {port}")));
    let ports: String = ports.collect();
    let tty = row("TTY", optional(mappings.number("tty")));
    let gpu = row("GPU", optional(mappings.number("gpu_index")));
    let config = escaped(&mappings.text("config.json").unwrap_or_default());
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Mandelbox {id}</title><style>{STYLE}</style>\
         <main><h1>Mandelbox <code>{id}</code> is running</h1><table>{ports}{tty}{gpu}</table>\
         <h2>config.json</h2><pre>{config}</pre>\
         <p>All it can tell of itself: <a href=/facts.json>facts.json</a></main></html>\n"
    )
}

fn row(name: &str, value: impl Display) -> String {
    format!("<tr><th>{}</th><td>{}</td></tr>", escaped(name), escaped(&value.to_string()))
}

fn optional(value: Option<i64>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
