//! A section against its plugin's JSON Schema: types, properties, required ones, unknown ones, enumerations, items and
//! bounds. What a schema says beyond that is the plugin's own to check.

use host_core::registry::SectionError;
use serde_json::Value;

/// Deeper than any section.
const DEPTH: usize = 32;

/// # Errors
/// The first wrong value, by its path.
pub(crate) fn check(schema: &Value, section: &Value) -> Result<(), SectionError> {
    Check { root: schema }.value(schema, section, "", DEPTH)
}

struct Check<'a> {
    root: &'a Value,
}

impl Check<'_> {
    fn value(&self, schema: &Value, value: &Value, path: &str, depth: usize) -> Result<(), SectionError> {
        let Some(depth) = depth.checked_sub(1) else { return Ok(()) };
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let found = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
            return found.map_or(Ok(()), |found| self.value(found, value, path, depth));
        }
        if let Some(kind) = schema.get("type").filter(|kind| !is_of(kind, value)) {
            return wrong(path, format!("it is to be {}, and is {}", named(kind), kind_of(value)));
        }
        if let Some(all) = schema.get("enum").and_then(Value::as_array).filter(|all| !all.contains(value)) {
            let all: Vec<_> = all.iter().map(ToString::to_string).collect();
            return wrong(path, format!("it is to be one of {}", all.join(", ")));
        }
        bounds(schema, value, path)?;
        self.members(schema, value, path, depth)?;
        if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
            for (place, value) in values.iter().enumerate() {
                self.value(items, value, &child(path, &place.to_string()), depth)?;
            }
        }
        Ok(())
    }

    fn members(&self, schema: &Value, value: &Value, path: &str, depth: usize) -> Result<(), SectionError> {
        let Some(values) = value.as_object() else { return Ok(()) };
        let known = schema.get("properties").and_then(Value::as_object);
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if let Some(missing) = required.as_str().filter(|name| !values.contains_key(*name)) {
                return wrong(path, format!("{missing} is missing"));
            }
        }
        for (name, value) in values {
            let at = child(path, name);
            match (known.and_then(|known| known.get(name)), schema.get("additionalProperties")) {
                (Some(schema), _) => self.value(schema, value, &at, depth)?,
                (None, Some(Value::Bool(false))) => {
                    let known: Vec<_> = known.into_iter().flat_map(|known| known.keys()).cloned().collect();
                    return wrong(&at, format!("it is unknown; known there: {}", known.join(", ")));
                }
                (None, Some(schema)) => self.value(schema, value, &at, depth)?,
                (None, None) => {}
            }
        }
        Ok(())
    }
}

fn bounds(schema: &Value, value: &Value, path: &str) -> Result<(), SectionError> {
    let bound = |name| schema.get(name).and_then(Value::as_f64);
    let Some(number) = value.as_f64() else { return Ok(()) };
    match (bound("minimum"), bound("maximum")) {
        (Some(least), _) if number < least => wrong(path, format!("it is to be at least {least}")),
        (_, Some(most)) if number > most => wrong(path, format!("it is to be at most {most}")),
        _ => Ok(()),
    }
}

fn wrong(path: &str, message: String) -> Result<(), SectionError> {
    Err(SectionError { path: path.to_owned(), message })
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| is_of(kind, value)),
        Value::String(kind) => kind == kind_of(value) || kind == "number" && value.is_number(),
        _ => true,
    }
}

fn named(kind: &Value) -> String {
    kind.as_str().map_or_else(|| kind.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_wrong_value_is_told_with_its_path() {
        let schema = json!({
            "type": "object", "additionalProperties": false, "required": ["count"],
            "properties": {
                "count": { "type": "integer", "minimum": 1, "maximum": 8 },
                "mode": { "enum": ["fast", "safe"] },
                "inner": { "$ref": "#/$defs/inner" },
                "list": { "type": "array", "items": { "type": ["string", "null"] } },
            },
            "$defs": { "inner": { "type": "object", "additionalProperties": false, "properties": { "x": {} } } },
        });
        for good in [
            json!({ "count": 1 }),
            json!({ "count": 8, "mode": "safe", "inner": { "x": 1 }, "list": [null] }),
        ] {
            assert_eq!(check(&schema, &good), Ok(()));
        }
        for (bad, path, hint) in [
            (json!({}), "", "count is missing"),
            (json!({ "count": 0 }), "count", "at least 1"),
            (json!({ "count": "1" }), "count", "integer"),
            (json!({ "count": 1, "mod": "fast" }), "mod", "known there: count, inner, list, mode"),
            (json!({ "count": 1, "mode": "slow" }), "mode", "\"fast\""),
            (json!({ "count": 1, "inner": { "y": 1 } }), "inner.y", "known there: x"),
            (json!({ "count": 1, "list": ["a", 2] }), "list.1", "integer"),
        ] {
            let error = check(&schema, &bad).unwrap_err();
            assert!(error.path == path && error.message.contains(hint), "{bad}: {error:?}");
        }
    }

    #[test]
    fn a_schema_that_turns_in_a_circle_ends() {
        let schema = json!({ "$ref": "#" });
        assert_eq!(check(&schema, &json!({ "a": 1 })), Ok(()));
    }
}
