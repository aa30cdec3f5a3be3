//! Schemas, taken apart so that they can be compared.

use std::collections::BTreeSet;

use anyhow::Result;
use async_graphql::parser::{
    parse_schema,
    types::{TypeDefinition, TypeKind, TypeSystemDefinition},
};

/// One line for each field with its type, each argument with its, and each value of an enumeration.
pub(crate) fn parts(sdl: &str) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for definition in parse_schema(sdl)?.definitions {
        if let TypeSystemDefinition::Type(definition) = definition {
            add(&mut all, &definition.node);
        }
    }
    Ok(all)
}

fn add(all: &mut BTreeSet<String>, definition: &TypeDefinition) {
    let name = &definition.name.node;
    match &definition.kind {
        TypeKind::Object(object) => {
            for field in object.fields.iter().map(|field| &field.node) {
                let place = format!("{name}.{}", field.name.node);
                all.insert(format!("{place}: {}", field.ty.node));
                let arguments = field.arguments.iter().map(|argument| &argument.node);
                all.extend(
                    arguments
                        .map(|argument| format!("{place}({}: {})", argument.name.node, argument.ty.node)),
                );
            }
        }
        TypeKind::InputObject(input) => {
            let fields = input.fields.iter().map(|field| &field.node);
            all.extend(fields.map(|field| format!("{name}.{}: {}", field.name.node, field.ty.node)));
        }
        TypeKind::Enum(values) => {
            all.extend(values.values.iter().map(|value| format!("{name}.{}", value.node.value.node)));
        }
        TypeKind::Scalar => {
            all.insert(name.to_string());
        }
        TypeKind::Interface(_) | TypeKind::Union(_) => {}
    }
}
