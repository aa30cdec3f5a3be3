//! What Hasura makes of the tracked tables for each role, on async-graphql, which reads and checks all documents.

use std::sync::Arc;

use anyhow::Result;
use async_graphql::{
    Name, Request, Variables,
    dynamic::{
        Enum, Field, FieldFuture, FieldValue, InputObject, InputValue, Object, Scalar, Schema, SchemaBuilder,
        TypeRef,
    },
    parser::types::{DocumentOperations, OperationType, Selection},
};
use serde_json::{Map, Value, json};

use crate::{
    failure::Fault,
    metadata::Action,
    sql::Session,
    tables::{Column, Database, Table},
};

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) role: String,
    pub(crate) session: Session,
}

/// What a role sees.
#[derive(Clone)]
pub(crate) struct Engine {
    schema: Schema,
    role: String,
}

/// What a client asks for.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Operation {
    pub(crate) query: String,
    #[serde(default)]
    variables: Option<Value>,
    #[serde(default)]
    operation_name: Option<String>,
}

impl Engine {
    pub(crate) fn new(tables: &[Table], database: &Database, role: &str) -> Result<Self> {
        let has_inserts = tables.iter().any(|table| table.metadata.rule(role, Action::Insert).is_some());
        let mut schema = Schema::build("query_root", Some("mutation_root"), None)
            .register(Scalar::new("bigint"))
            .register(order_by())
            .register(comparison("String", &TEXT_OPERATORS))
            .register(comparison("bigint", &[]));
        let (mut query, mut mutation) = (Object::new("query_root"), Object::new("mutation_root"));
        for table in tables {
            if table.metadata.rule(role, Action::Select).is_none() {
                continue;
            }
            schema = types(schema, table, role, has_inserts);
            let table = Arc::new(table.clone());
            query = query.field(select(&table, database));
            for action in [Action::Update, Action::Delete, Action::Insert] {
                if table.metadata.rule(role, action).is_some() {
                    mutation = mutation.field(change(&table, database, action));
                }
            }
        }
        let schema = schema.register(query).register(mutation).finish()?;
        Ok(Self { schema, role: role.to_owned() })
    }

    pub(crate) fn sdl(&self) -> String {
        self.schema.sdl()
    }

    /// What Hasura answers to a query or a mutation: `{"data":…}` or `{"errors":[E]}`.
    pub(crate) async fn execute(&self, operation: &Operation, caller: &Caller) -> Value {
        self.answer(operation, caller, false).await
    }

    /// What a live query has to show now.
    pub(crate) async fn poll(&self, operation: &Operation, caller: &Caller) -> Value {
        self.answer(operation, caller, true).await
    }

    /// What keeps an operation from being a live query.
    pub(crate) fn is_live_query(operation: &Operation) -> Result<bool, Fault> {
        let document = async_graphql::parser::parse_query(&operation.query);
        let document = document.map_err(|error| Fault::validation(&error.to_string()))?;
        let operations: Vec<_> = match document.operations {
            DocumentOperations::Single(one) => vec![one],
            DocumentOperations::Multiple(all) => all.into_values().collect(),
        };
        let Some(first) = operations.first() else { return Err(Fault::validation("no operation")) };
        if first.node.ty != OperationType::Subscription {
            return Ok(false);
        }
        let fields = &first.node.selection_set.node.items;
        match fields.as_slice() {
            [one] if matches!(one.node, Selection::Field(_)) => Ok(true),
            _ => Err(Fault::validation("subscriptions must select one top level field")),
        }
    }

    /// A live query is a query that is asked again and again; both roots have the same fields.
    async fn answer(&self, operation: &Operation, caller: &Caller, live: bool) -> Value {
        debug_assert_eq!(self.role, caller.role);
        let variables = Variables::from_json(operation.variables.clone().unwrap_or(json!({})));
        let mut request = Request::new(&operation.query).variables(variables).data(caller.clone());
        if let Some(name) = &operation.operation_name {
            request = request.operation_name(name);
        }
        if live && let Ok(mut document) = async_graphql::parser::parse_query(&operation.query) {
            match &mut document.operations {
                DocumentOperations::Single(one) => one.node.ty = OperationType::Query,
                DocumentOperations::Multiple(all) => {
                    all.values_mut().for_each(|one| one.node.ty = OperationType::Query);
                }
            }
            request.set_parsed_query(document);
        }
        let response = self.schema.execute(request).await;
        if response.errors.is_empty() {
            return json!({ "data": response.data });
        }
        let errors: Vec<_> = response
            .errors
            .iter()
            .map(|error| {
                let fault = error.source::<Fault>().cloned();
                fault.unwrap_or_else(|| Fault::validation(&error.message)).json("$.selectionSet")
            })
            .collect();
        json!({ "errors": errors })
    }
}

/// Those of texts alone.
const TEXT_OPERATORS: [&str; 10] = [
    "_like",
    "_nlike",
    "_ilike",
    "_nilike",
    "_similar",
    "_nsimilar",
    "_regex",
    "_nregex",
    "_iregex",
    "_niregex",
];

fn order_by() -> Enum {
    Enum::new("order_by").items([
        "asc",
        "asc_nulls_first",
        "asc_nulls_last",
        "desc",
        "desc_nulls_first",
        "desc_nulls_last",
    ])
}

fn comparison(scalar: &str, more: &[&str]) -> InputObject {
    let mut input = InputObject::new(format!("{scalar}_comparison_exp"));
    for operator in ["_eq", "_neq", "_gt", "_gte", "_lt", "_lte"].iter().chain(more) {
        input = input.field(InputValue::new(*operator, TypeRef::named(scalar)));
    }
    for operator in ["_in", "_nin"] {
        input = input.field(InputValue::new(operator, TypeRef::named_nn_list(scalar)));
    }
    input.field(InputValue::new("_is_null", TypeRef::named(TypeRef::BOOLEAN)))
}

/// The types of a table. Every role has its own: what it may not see is not there.
fn types(mut schema: SchemaBuilder, table: &Table, role: &str, has_inserts: bool) -> SchemaBuilder {
    let name = table.graphql();
    let may = |action, column: &Column| match table.metadata.rule(role, action) {
        Some(rule) => rule.is_none_or(|rule| rule.allows(&column.name)),
        None => false,
    };
    let seen: Vec<_> = table.columns.iter().filter(|column| may(Action::Select, column)).collect();
    let mut row = Object::new(&name);
    let mut condition = InputObject::new(format!("{name}_bool_exp"));
    for (operator, kind) in [
        ("_and", TypeRef::named_nn_list(format!("{name}_bool_exp"))),
        ("_or", TypeRef::named_nn_list(format!("{name}_bool_exp"))),
        ("_not", TypeRef::named(format!("{name}_bool_exp"))),
    ] {
        condition = condition.field(InputValue::new(operator, kind));
    }
    let mut order = InputObject::new(format!("{name}_order_by"));
    for column in &seen {
        row = row.field(cell(column));
        let kind = format!("{}_comparison_exp", column.scalar());
        condition = condition.field(InputValue::new(&column.name, TypeRef::named(kind)));
        order = order.field(InputValue::new(&column.name, TypeRef::named("order_by")));
    }
    let response = Object::new(format!("{name}_mutation_response"))
        .field(member("affected_rows", TypeRef::named_nn(TypeRef::INT)))
        .field(returning(&name));
    schema = schema.register(row).register(condition).register(order).register(response);
    for (action, suffix) in [(Action::Update, "set_input"), (Action::Insert, "insert_input")] {
        let columns = table.columns.iter().filter(|column| may(action, column));
        let input = columns.fold(InputObject::new(format!("{name}_{suffix}")), |input, column| {
            input.field(InputValue::new(&column.name, TypeRef::named(column.scalar())))
        });
        if action == Action::Update || has_inserts {
            schema = schema.register(input);
        }
    }
    if !has_inserts {
        return schema;
    }
    let columns = table.columns.iter().map(|column| column.name.clone());
    let conflict = InputObject::new(format!("{name}_on_conflict"))
        .field(InputValue::new("constraint", TypeRef::named_nn(format!("{name}_constraint"))))
        .field(InputValue::new("update_columns", TypeRef::named_nn_list_nn(format!("{name}_update_column"))))
        .field(InputValue::new("where", TypeRef::named(format!("{name}_bool_exp"))));
    schema
        .register(Enum::new(format!("{name}_constraint")).item(table.constraint.as_str()))
        .register(Enum::new(format!("{name}_update_column")).items(columns))
        .register(conflict)
}

/// A column of a row.
fn cell(column: &Column) -> Field {
    let kind = match column.nullable {
        true => TypeRef::named(column.scalar()),
        false => TypeRef::named_nn(column.scalar()),
    };
    member(&column.name, kind)
}

/// A member of the object that the parent is.
fn member(name: &str, kind: TypeRef) -> Field {
    let key = name.to_owned();
    Field::new(name, kind, move |context| {
        let value = context.parent_value.try_downcast_ref::<Value>().map(|parent| parent[&key].clone());
        FieldFuture::new(async move { Ok(Some(FieldValue::value(async_graphql::Value::from_json(value?)?))) })
    })
}

fn returning(name: &str) -> Field {
    Field::new("returning", TypeRef::named_nn_list_nn(name), |context| {
        let rows = context.parent_value.try_downcast_ref::<Value>().map(|parent| parent["returning"].clone());
        FieldFuture::new(async move { Ok(Some(list(rows?))) })
    })
}

fn list(rows: Value) -> FieldValue<'static> {
    let rows = match rows {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    };
    FieldValue::list(rows.into_iter().map(FieldValue::owned_any))
}

fn select(table: &Arc<Table>, database: &Database) -> Field {
    let (name, database, of) = (table.graphql(), database.clone(), table.clone());
    Field::new(&name, TypeRef::named_nn_list_nn(&name), move |context| {
        let (table, database) = (of.clone(), database.clone());
        FieldFuture::new(async move {
            let (arguments, caller) = (arguments(&context)?, context.data::<Caller>()?);
            let rows = database.select(&table, &arguments, &caller.role, &caller.session).await;
            Ok(Some(list(rows.map_err(said)?)))
        })
    })
    .argument(InputValue::new("where", TypeRef::named(format!("{name}_bool_exp"))))
    .argument(InputValue::new("order_by", TypeRef::named_nn_list(format!("{name}_order_by"))))
    .argument(InputValue::new("limit", TypeRef::named(TypeRef::INT)))
    .argument(InputValue::new("offset", TypeRef::named(TypeRef::INT)))
}

fn change(table: &Arc<Table>, database: &Database, action: Action) -> Field {
    let (name, database, of) = (table.graphql(), database.clone(), table.clone());
    let verb = match action {
        Action::Update => "update",
        Action::Delete => "delete",
        Action::Insert | Action::Select => "insert",
    };
    let response = TypeRef::named(format!("{name}_mutation_response"));
    let field = Field::new(format!("{verb}_{name}"), response, move |context| {
        let (table, database) = (of.clone(), database.clone());
        FieldFuture::new(async move {
            let (arguments, caller) = (arguments(&context)?, context.data::<Caller>()?);
            let (role, session) = (&caller.role, &caller.session);
            let answer = match action {
                Action::Update => database.update(&table, &arguments, role, session).await,
                Action::Delete => database.delete(&table, &arguments, role, session).await,
                Action::Insert | Action::Select => database.insert(&table, &arguments).await,
            };
            Ok(Some(FieldValue::owned_any(answer.map_err(said)?)))
        })
    });
    let condition = InputValue::new("where", TypeRef::named_nn(format!("{name}_bool_exp")));
    match action {
        Action::Update => {
            let set = InputValue::new("_set", TypeRef::named(format!("{name}_set_input")));
            field.argument(condition).argument(set)
        }
        Action::Delete => field.argument(condition),
        Action::Insert | Action::Select => field
            .argument(InputValue::new("objects", TypeRef::named_nn_list_nn(format!("{name}_insert_input"))))
            .argument(InputValue::new("on_conflict", TypeRef::named(format!("{name}_on_conflict")))),
    }
}

fn arguments(
    context: &async_graphql::dynamic::ResolverContext<'_>,
) -> async_graphql::Result<Map<String, Value>> {
    let member =
        |(name, value): (&Name, &async_graphql::Value)| Ok((name.to_string(), value.clone().into_json()?));
    context.args.as_index_map().iter().map(member).collect()
}

/// As Hasura says it; what is this server's own trouble, as it is.
fn said(error: anyhow::Error) -> async_graphql::Error {
    match error.downcast::<Fault>() {
        Ok(fault) => async_graphql::Error::new_with_source(fault),
        Err(error) => async_graphql::Error::new(format!("stand-in: {error:#}")),
    }
}
