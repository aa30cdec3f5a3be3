//! Each layer by itself against the types of the settings, so that a mistake is told where it was made, also when
//! a later layer would have hidden it.

use figment::{
    error::{Actual, Kind},
    value::{Dict, Value},
};
use serde::Deserialize;

use crate::{
    error::ConfigError,
    key::{Key, nearest},
    layer::{self, Layer},
    mask,
    settings::Settings,
    tree::{self, KINDS},
};

/// Everything that does not fit, taken out of `layer`. A single value that is a number or the like where a text
/// is wanted becomes the text it was written as.
pub(crate) fn check(layer: &mut Layer, defaults: &Layer) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    while let Err(problem) = settings(&layer::merge([defaults, layer]), &defaults.tree) {
        let key = Key(problem.path);
        if layer.read_as_text(&key) {
            continue;
        }
        errors.push(describe(&problem.kind, &key, layer, &defaults.tree));
        if !tree::discard(&mut layer.tree, &key) {
            break;
        }
    }
    errors
}

/// The settings that a tree says. Tables of plugins are no settings of ours.
pub(crate) fn settings(tree: &Dict, defaults: &Dict) -> Result<Settings, Box<figment::Error>> {
    let mut tree = tree.clone();
    for kind in KINDS {
        for name in sections(&tree, defaults, kind) {
            tree::discard(&mut tree, &Key::from([kind, &name]));
        }
    }
    Ok(Settings::deserialize(&Value::from(tree))?)
}

/// The names under `[kind]` that are plugins' own sections: tables, where the host has no such setting.
pub(crate) fn sections(tree: &Dict, defaults: &Dict, kind: &str) -> Vec<String> {
    let kind = Key::from([kind]);
    let ours = tree::table(defaults, &kind);
    let section = |(name, value): &(&String, &Value)| {
        value.as_dict().is_some() && !ours.is_some_and(|ours| ours.contains_key(*name))
    };
    tree::table(tree, &kind).into_iter().flatten().filter(section).map(|(name, _)| name.clone()).collect()
}

fn describe(kind: &Kind, key: &Key, layer: &Layer, defaults: &Dict) -> ConfigError {
    let name = layer.name(key);
    let origin = layer.origin(key);
    match (kind, origin) {
        (Kind::UnknownField(_, expected), Some(origin)) => {
            ConfigError::UnknownKey { key: name, hint: hint(key, expected, layer, defaults), origin }
        }
        (_, origin) => ConfigError::Invalid { key: name, message: message(kind, mask::hides(key)), origin },
    }
}

/// What was probably meant by an unknown key.
fn hint(key: &Key, expected: &[&str], layer: &Layer, defaults: &Dict) -> String {
    let Some((last, above)) = key.0.split_last() else {
        return String::new();
    };
    let above = Key(above.to_vec());
    if let Some(near) = nearest(last, expected.iter().copied()) {
        return format!("; did you mean {}?", layer.name(&above.child(near)));
    }
    let elsewhere: Vec<String> = tree::leaves(defaults)
        .into_iter()
        .filter(|(known, _)| known.last() == last)
        .map(|(known, _)| known.to_string())
        .collect();
    if let [only] = elsewhere.as_slice() {
        return format!("; did you mean {only}?");
    }
    match above.0.as_slice() {
        [kind] if KINDS.contains(&kind.as_str()) => {
            format!("; a plugin's own settings are in its section, [{kind}.<plugin>]")
        }
        _ => format!("; known there: {}", expected.join(", ")),
    }
}

fn message(kind: &Kind, secret: bool) -> String {
    let found = |actual: &Actual| {
        if secret { String::new() } else { format!(", found {}", actually(actual)) }
    };
    match kind {
        Kind::InvalidType(actual, wanted) | Kind::InvalidValue(actual, wanted) => {
            format!("expected {}{}", expected(wanted), found(actual))
        }
        Kind::UnknownVariant(variant, known) => {
            let names: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
            let near = nearest(variant, known.iter().copied())
                .map(|near| format!("; did you mean {near:?}?"))
                .unwrap_or_default();
            format!("expected {}, found {variant:?}{near}", names.join(" or "))
        }
        Kind::MissingField(field) => format!("{field} is missing; it has no default here"),
        Kind::Message(text) => spoken(text),
        other => other.to_string(),
    }
}

const SOCKET: &str = "an address with a port, such as \"127.0.0.1:4678\" or \"[::]:4678\"";

/// Messages of the standard library that say too little.
fn spoken(text: &str) -> String {
    match text {
        "invalid socket address syntax" => format!("expected {SOCKET}"),
        "invalid IP address syntax" => "expected an IP address, such as \"127.0.0.1\" or \"::\"".to_owned(),
        other => other.to_owned(),
    }
}

fn expected(wanted: &str) -> String {
    let number = |least: &str, most: &str| format!("a whole number from {least} to {most}");
    match wanted {
        "u16" => number("0", "65535"),
        "u32" => number("0", "4294967295"),
        "u64" => number("0", "9223372036854775807"),
        "i64" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list, such as [\"a\", \"b\"]".to_owned(),
        "a map" => "a table".to_owned(),
        "a string" | "path string" => "a text in quotes".to_owned(),
        "socket address" => SOCKET.to_owned(),
        wanted if wanted.starts_with("struct ") => "a table".to_owned(),
        other => other.to_owned(),
    }
}

fn actually(actual: &Actual) -> String {
    match actual {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("{:?}", mask::text(value)),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}
