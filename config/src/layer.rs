//! One source of settings: its values and where they are.

use std::{collections::BTreeMap, path::PathBuf};

use figment::{
    Figment, Metadata, Provider,
    value::{Dict, Map, Value},
};

use crate::{document::Document, key::Key, origin::Origin, tree};

/// One source of settings.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) tree: Dict,
    place: Place,
}

#[derive(Clone)]
enum Place {
    /// All of it comes from here.
    Built(Origin),
    /// One value, as its user wrote it: whether it is a number or a text depends on what is asked for.
    Single { origin: Origin, key: Key, raw: String },
    /// A file, with the line of every key.
    File { path: PathBuf, lines: BTreeMap<Key, usize> },
}

impl Layer {
    pub(crate) fn built(document: Document, origin: Origin) -> Self {
        Self { tree: document.tree, place: Place::Built(origin) }
    }

    pub(crate) fn file(document: Document, path: PathBuf) -> Self {
        Self { tree: document.tree, place: Place::File { path, lines: document.lines } }
    }

    pub(crate) fn single(key: Key, value: Value, raw: String, origin: Origin) -> Self {
        let mut tree = Dict::new();
        tree::put(&mut tree, &key, value);
        Self { tree, place: Place::Single { origin, key, raw } }
    }

    /// It is one variable or argument.
    pub(crate) fn is_single(&self) -> bool {
        matches!(self.place, Place::Single { .. })
    }

    /// Where this layer says something about `key`, itself or a table above it; `None` when it does not.
    pub(crate) fn origin(&self, key: &Key) -> Option<Origin> {
        tree::get(&self.tree, key)?;
        Some(match &self.place {
            Place::Built(origin) | Place::Single { origin, .. } => origin.clone(),
            Place::File { path, lines } => Origin::File { path: path.clone(), line: *lines.get(key)? },
        })
    }

    /// Reads the value at `key` as the text it was written as. False when it is one already, or was never
    /// anything else.
    pub(crate) fn read_as_text(&mut self, wanted: &Key) -> bool {
        let Place::Single { key, raw, .. } = &self.place else {
            return false;
        };
        let text = Value::from(raw.clone());
        let useful = key == wanted && tree::get(&self.tree, key).is_some_and(|value| *value != text);
        if useful {
            tree::put(&mut self.tree, key, text);
        }
        useful
    }

    /// `key` as people write it: `mandelbox.mounts[1].source`.
    pub(crate) fn name(&self, key: &Key) -> String {
        let mut shown = String::new();
        for (place, part) in key.0.iter().enumerate() {
            let above = Key(key.0[..place].to_vec());
            if matches!(tree::get(&self.tree, &above), Some(Value::Array(..))) {
                shown.push_str(&format!("[{part}]"));
            } else {
                let dot = if place == 0 { "" } else { "." };
                shown.push_str(&format!("{dot}{}", Key::from([part.as_str()])));
            }
        }
        shown
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named("layer")
    }

    fn data(&self) -> figment::Result<Map<figment::Profile, Dict>> {
        Ok([(figment::Profile::Default, self.tree.clone())].into())
    }
}

/// Everything the layers say together; later ones win, tables are merged, lists replaced.
pub(crate) fn merge<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Dict {
    let figment = layers.into_iter().fold(Figment::new(), Figment::merge);
    // It fails only when a layer's `data` does.
    figment.find_value("").ok().and_then(Value::into_dict).unwrap_or_default()
}
