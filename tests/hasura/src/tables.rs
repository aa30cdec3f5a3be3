//! The tracked tables as the database has them, and statements over them.

use anyhow::{Context, Result, ensure};
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use serde_json::{Map, Value};
use tokio_postgres::{
    NoTls,
    types::{ToSql, Type},
};

use crate::{
    failure::Fault,
    metadata::{self, Action},
    sql::{Parameter, Session, Sql},
};

const CONNECTIONS: usize = 20;

/// A tracked table.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) metadata: metadata::Table,
    pub(crate) columns: Vec<Column>,
    /// Name of the key's constraint.
    pub(crate) constraint: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// In SQL.
    pub(crate) sql: String,
    pub(crate) nullable: bool,
}

impl Column {
    /// In GraphQL.
    pub(crate) fn scalar(&self) -> &'static str {
        if self.sql == "bigint" { "bigint" } else { "String" }
    }
}

impl Table {
    /// `<schema>_<table>`.
    pub(crate) fn graphql(&self) -> String {
        format!("{}_{}", self.metadata.table.schema, self.metadata.table.name)
    }

    fn quoted(&self) -> String {
        format!("\"{}\".\"{}\"", self.metadata.table.schema, self.metadata.table.name)
    }

    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// A connection in the middle of a statement. Dropped like that, when its client breaks off, it is nobody else's: the
/// statement may wait for a lock.
struct Busy(Option<Object>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

/// A database, and what of it is shown.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
}

impl Database {
    pub(crate) fn new(url: &str) -> Result<Self> {
        let manager = Manager::from_config(
            url.parse()?,
            NoTls,
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        Ok(Self { pool: Pool::builder(manager).max_size(CONNECTIONS).build()? })
    }

    /// The columns and the key of each table, as the database has them.
    pub(crate) async fn describe(&self, tables: Vec<metadata::Table>) -> Result<Vec<Table>> {
        let client = self.pool.get().await?;
        let mut described = Vec::new();
        for metadata in tables {
            let name: &[(&(dyn ToSql + Sync), Type)] =
                &[(&metadata.table.schema, Type::TEXT), (&metadata.table.name, Type::TEXT)];
            let columns = client
                .query_typed(
                    "SELECT column_name::text, data_type::text, is_nullable = 'YES' FROM information_schema.columns \
                     WHERE table_schema = $1 AND table_name = $2 ORDER BY column_name",
                    name,
                )
                .await?;
            let key = client
                .query_typed(
                    "SELECT c.conname::text FROM pg_constraint c WHERE c.contype = 'p' AND c.conrelid = (quote_ident($1) || '.' || quote_ident($2))::regclass",
                    name,
                )
                .await?;
            let key = key.first().with_context(|| format!("no table {}", metadata.table.name))?;
            let columns =
                columns.iter().map(|row| Column { name: row.get(0), sql: row.get(1), nullable: row.get(2) });
            ensure!(metadata.is_supported(), "a check that this server does not do");
            described.push(Table { columns: columns.collect(), constraint: key.get(0), metadata });
        }
        Ok(described)
    }

    async fn run(&self, sql: Sql) -> Result<Value> {
        let client = self.pool.get().await.map_err(|_| Fault::connection())?;
        let mut busy = Busy(Some(client));
        let Some(client) = &busy.0 else { unreachable!("it is at rest only below") };
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> = sql
            .parameters
            .iter()
            .map(|parameter| match parameter {
                Parameter::One(value) => (value as &(dyn ToSql + Sync), Type::TEXT),
                Parameter::Many(values) => (values as &(dyn ToSql + Sync), Type::TEXT_ARRAY),
            })
            .collect();
        let rows = client.query_typed(&sql.text, &parameters).await;
        busy.0.take();
        let rows = rows.map_err(|error| Fault::of_postgres(&error))?;
        let text: String = rows.first().context("no row")?.try_get(0)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The rows that `arguments` describe, as a list of objects.
    pub(crate) async fn select(
        &self,
        table: &Table,
        arguments: &Map<String, Value>,
        role: &str,
        session: &Session,
    ) -> Result<Value> {
        let mut sql = Sql::default();
        sql.push(&format!("SELECT coalesce(json_agg(r), '[]')::text FROM (SELECT * FROM {}", table.quoted()));
        allowed(&mut sql, table, Action::Select, arguments, role, session)?;
        let orders = arguments.get("order_by").and_then(Value::as_array).cloned().unwrap_or_default();
        let orders: Vec<_> = orders
            .iter()
            .filter_map(Value::as_object)
            .flatten()
            .map(|(column, order)| format!("\"{column}\" {}", order.as_str().unwrap_or("asc")))
            .collect();
        if !orders.is_empty() {
            sql.push(&format!(" ORDER BY {}", orders.join(", ")));
        }
        if let Some(limit) = arguments.get("limit").and_then(Value::as_i64) {
            sql.push(&format!(" LIMIT {limit}"));
        }
        sql.push(") r");
        self.run(sql).await
    }

    pub(crate) async fn update(
        &self,
        table: &Table,
        arguments: &Map<String, Value>,
        role: &str,
        session: &Session,
    ) -> Result<Value> {
        let set = arguments.get("_set").and_then(Value::as_object).cloned().unwrap_or_default();
        ensure!(!set.is_empty(), Fault::validation("at least any one of _set, _inc operator is expected"));
        let mut sql = Sql::default();
        sql.push(&format!("WITH changed AS (UPDATE {} SET ", table.quoted()));
        sql.assignments(table, &set)?;
        allowed(&mut sql, table, Action::Update, arguments, role, session)?;
        self.run(responded(sql)).await
    }

    pub(crate) async fn delete(
        &self,
        table: &Table,
        arguments: &Map<String, Value>,
        role: &str,
        session: &Session,
    ) -> Result<Value> {
        let mut sql = Sql::default();
        sql.push(&format!("WITH changed AS (DELETE FROM {}", table.quoted()));
        allowed(&mut sql, table, Action::Delete, arguments, role, session)?;
        self.run(responded(sql)).await
    }

    /// One object, which is all that a host ever inserts.
    pub(crate) async fn insert(&self, table: &Table, arguments: &Map<String, Value>) -> Result<Value> {
        let objects = arguments.get("objects").and_then(Value::as_array).cloned().unwrap_or_default();
        ensure!(objects.len() == 1, "this server inserts one object at a time");
        let mut sql = Sql::default();
        sql.push(&format!("WITH changed AS (INSERT INTO {} ", table.quoted()));
        sql.row(table, objects[0].as_object().context("expected an object")?)?;
        if let Some(conflict) = arguments.get("on_conflict").and_then(Value::as_object) {
            let updates = conflict.get("update_columns").and_then(Value::as_array).map_or(0, Vec::len);
            ensure!(updates == 0, "this server updates nothing on a conflict");
            let constraint = conflict.get("constraint").and_then(Value::as_str).unwrap_or_default();
            sql.push(&format!(" ON CONFLICT ON CONSTRAINT \"{constraint}\" DO NOTHING"));
        }
        self.run(responded(sql)).await
    }
}

/// The conditions: the client's and the role's.
fn allowed(
    sql: &mut Sql,
    table: &Table,
    action: Action,
    arguments: &Map<String, Value>,
    role: &str,
    session: &Session,
) -> Result<()> {
    let rule = table.metadata.rule(role, action);
    let rule = rule.with_context(|| format!("{role} may not {action:?}"))?;
    sql.push(" WHERE ");
    sql.condition(table, arguments.get("where").unwrap_or(&Value::Null), session)?;
    if let Some(rule) = rule {
        sql.push(" AND ");
        sql.condition(table, &rule.filter, session)?;
    }
    Ok(())
}

/// What a mutation answers.
fn responded(mut sql: Sql) -> Sql {
    sql.push(
        " RETURNING *) SELECT json_build_object('affected_rows', count(*), \
         'returning', coalesce(json_agg(changed), '[]'))::text FROM changed",
    );
    sql
}
