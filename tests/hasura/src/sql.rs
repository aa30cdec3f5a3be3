//! From conditions and values in JSON to SQL. Every value is a parameter, sent as text.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::{failure::Fault, tables::Table};

/// A statement in the making.
#[derive(Debug, Default)]
pub(crate) struct Sql {
    pub(crate) text: String,
    /// Single values and lists.
    pub(crate) parameters: Vec<Parameter>,
}

#[derive(Debug)]
pub(crate) enum Parameter {
    One(Option<String>),
    Many(Vec<String>),
}

/// What `X-Hasura-…` stands for: names in lower case.
pub(crate) type Session = Map<String, Value>;

impl Sql {
    pub(crate) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// A value as this column has it.
    fn value(&mut self, table: &Table, column: &str, value: &Value) -> Result<()> {
        let kind = table.column(column).with_context(|| format!("no column {column}"))?.sql.clone();
        self.parameters.push(Parameter::One(text(value)?));
        let number = self.parameters.len();
        self.push(&format!("${number}::text::{kind}"));
        Ok(())
    }

    /// A `bool_exp`: an object, all of whose members must hold.
    pub(crate) fn condition(&mut self, table: &Table, condition: &Value, session: &Session) -> Result<()> {
        let Value::Object(members) = condition else {
            ensure!(condition.is_null(), Fault::validation("expected an object"));
            self.push("TRUE");
            return Ok(());
        };
        self.push("(TRUE");
        for (name, operand) in members {
            self.push(" AND ");
            match name.as_str() {
                "_and" => self.joined(table, operand, session, "TRUE", " AND ")?,
                "_or" => self.joined(table, operand, session, "FALSE", " OR ")?,
                "_not" => {
                    self.push("NOT ");
                    self.condition(table, operand, session)?;
                }
                column => self.comparisons(table, column, operand, session)?,
            }
        }
        self.push(")");
        Ok(())
    }

    /// `_and` and `_or` take an object for a list of one.
    fn joined(
        &mut self,
        table: &Table,
        operand: &Value,
        session: &Session,
        neutral: &str,
        between: &str,
    ) -> Result<()> {
        let one = std::slice::from_ref(operand);
        let members = operand.as_array().map_or(one, Vec::as_slice);
        self.push("(").push(neutral);
        for member in members {
            self.push(between);
            self.condition(table, member, session)?;
        }
        self.push(")");
        Ok(())
    }

    fn comparisons(&mut self, table: &Table, column: &str, operand: &Value, session: &Session) -> Result<()> {
        let operators = operand.as_object().context("expected an object")?;
        self.push("(TRUE");
        for (operator, operand) in operators {
            let operand = resolved(operand, session)?;
            // Hasura refuses null here since 2.0: a condition that vanishes would concern every row.
            ensure!(
                !operand.is_null(),
                Fault::validation(&format!("unexpected null value for type '{operator}'"))
            );
            self.push(&format!(" AND \"{column}\" "));
            match operator.as_str() {
                "_eq" => self.compared(table, column, "=", &operand)?,
                "_neq" => self.compared(table, column, "<>", &operand)?,
                "_gt" => self.compared(table, column, ">", &operand)?,
                "_gte" => self.compared(table, column, ">=", &operand)?,
                "_lt" => self.compared(table, column, "<", &operand)?,
                "_lte" => self.compared(table, column, "<=", &operand)?,
                "_like" => self.compared(table, column, "LIKE", &operand)?,
                "_in" => self.among(table, column, "= ANY", &operand)?,
                "_nin" => self.among(table, column, "<> ALL", &operand)?,
                "_is_null" => {
                    self.push(if operand == Value::Bool(true) { "IS NULL" } else { "IS NOT NULL" });
                }
                other => bail!("{other} is not part of this server"),
            }
        }
        self.push(")");
        Ok(())
    }

    fn compared(&mut self, table: &Table, column: &str, operator: &str, operand: &Value) -> Result<()> {
        self.push(operator).push(" ");
        self.value(table, column, operand)
    }

    fn among(&mut self, table: &Table, column: &str, operator: &str, operand: &Value) -> Result<()> {
        let list = operand.as_array().context("expected a list")?;
        let list = list.iter().map(|value| text(value)?.context("null in a list")).collect::<Result<_>>()?;
        self.parameters.push(Parameter::Many(list));
        let number = self.parameters.len();
        let kind = &table.column(column).with_context(|| format!("no column {column}"))?.sql;
        self.push(&format!("{operator} (${number}::text[]::{kind}[])"));
        Ok(())
    }

    /// `a = …, b = …`
    pub(crate) fn assignments(&mut self, table: &Table, values: &Map<String, Value>) -> Result<()> {
        for (place, (column, value)) in values.iter().enumerate() {
            self.push(if place == 0 { "" } else { ", " }).push(&format!("\"{column}\" = "));
            self.value(table, column, value)?;
        }
        Ok(())
    }

    /// `(a, b) VALUES (…)`
    pub(crate) fn row(&mut self, table: &Table, values: &Map<String, Value>) -> Result<()> {
        let columns: Vec<_> = values.keys().map(|column| format!("\"{column}\"")).collect();
        self.push(&format!("({}) VALUES (", columns.join(", ")));
        for (place, (column, value)) in values.iter().enumerate() {
            self.push(if place == 0 { "" } else { ", " });
            self.value(table, column, value)?;
        }
        self.push(")");
        Ok(())
    }
}

/// A session variable's value, where that is what it names.
fn resolved(operand: &Value, session: &Session) -> Result<Value> {
    let name = operand.as_str().map(str::to_lowercase).filter(|name| name.starts_with("x-hasura-"));
    match name {
        Some(name) => match session.get(&name) {
            Some(value) => Ok(value.clone()),
            None => bail!(Fault::missing(&name)),
        },
        None => Ok(operand.clone()),
    }
}

fn text(value: &Value) -> Result<Option<String>> {
    Ok(match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        other => bail!("{other} is no value of a column"),
    })
}
