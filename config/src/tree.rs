//! Values as a tree: how one is found in it, replaced, taken out and written as TOML.

use figment::value::{Dict, Value};

use crate::key::Key;

/// The tables in which plugins have their own sections.
pub(crate) const KINDS: [&str; 4] = ["runtime", "gpu", "pubsub", "telemetry"];

/// The value at `key`, through tables and lists.
pub(crate) fn get<'a>(tree: &'a Dict, key: &Key) -> Option<&'a Value> {
    let (first, rest) = key.0.split_first()?;
    rest.iter().try_fold(tree.get(first)?, |value, part| match value {
        Value::Dict(_, dict) => dict.get(part),
        Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The table at `key`.
pub(crate) fn table<'a>(tree: &'a Dict, key: &Key) -> Option<&'a Dict> {
    get(tree, key).and_then(Value::as_dict)
}

/// Puts `value` at `key`; what is in the way goes.
pub(crate) fn put(tree: &mut Dict, key: &Key, value: Value) {
    let Some((last, parents)) = key.0.split_last() else {
        return;
    };
    let mut at = tree;
    for part in parents {
        let next = at.entry(part.clone()).or_insert_with(|| Dict::new().into());
        if next.as_dict().is_none() {
            *next = Dict::new().into();
        }
        let Value::Dict(_, dict) = next else { return };
        at = dict;
    }
    at.insert(last.clone(), value);
}

/// Takes out what is at `key`, or the list that it is in. False when there is no such thing.
pub(crate) fn discard(tree: &mut Dict, key: &Key) -> bool {
    let mut at = tree;
    for (place, part) in key.0.iter().enumerate() {
        let deeper = place + 1 < key.0.len() && at.get(part).is_some_and(|next| next.as_dict().is_some());
        if !deeper {
            return at.remove(part).is_some();
        }
        let Some(Value::Dict(_, dict)) = at.get_mut(part) else {
            return false;
        };
        at = dict;
    }
    false
}

/// Every value that is no table, with its key, in order.
pub(crate) fn leaves(tree: &Dict) -> Vec<(Key, &Value)> {
    fn walk<'a>(tree: &'a Dict, at: &Key, found: &mut Vec<(Key, &'a Value)>) {
        for (name, value) in tree {
            let key = at.child(name);
            match value {
                Value::Dict(_, dict) => walk(dict, &key, found),
                leaf => found.push((key, leaf)),
            }
        }
    }
    let mut found = Vec::new();
    walk(tree, &Key::default(), &mut found);
    found
}

/// TOML, on one line.
pub(crate) fn text(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::String(_, text) => quoted(text),
        Value::Array(_, items) => format!("[{}]", list(items.iter().map(text).collect())),
        Value::Dict(_, dict) => {
            let entry = |(name, value): (&String, &Value)| {
                format!("{} = {}", Key::from([name.as_str()]), text(value))
            };
            format!("{{ {} }}", list(dict.iter().map(entry).collect()))
        }
        other => toml::Value::try_from(other).map(|value| value.to_string()).unwrap_or_default(),
    }
}

/// A basic string of TOML, which JSON's strings are but for one character.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
