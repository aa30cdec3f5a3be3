//! The schema `cloud`, by versioned migrations that are part of this binary.
//!
//! All that is missing is applied in one transaction, under a lock: two migrations at once do it once, and one that
//! fails leaves nothing. A table in the schema says what was applied, with a digest, so that a migration that was
//! changed afterwards is noticed. The original system's schema, which has no such table, is taken on as it is.

use std::{fmt, time::Duration};

use host_core::{ErrorKind, PluginError, pubsub::Result};
use sha2::{Digest, Sha256};
use tokio_postgres::{Transaction, types::Type};

use crate::{
    Config,
    database::{Database, Lease, Parameters},
    failure,
};

const DOING: &str = "migrating the schema";
/// Another migration at the same time is waited for.
const DEADLINE: Duration = Duration::from_secs(60);

struct Migration {
    version: i32,
    name: &'static str,
    sql: &'static str,
}

macro_rules! migrations {
    ($($version:literal $name:literal,)*) => {
        &[$(Migration { version: $version, name: $name, sql: include_str!(concat!("../migrations/", $name, ".sql")) },)*]
    };
}

const MIGRATIONS: &[Migration] = migrations![
    1 "001_original",
    2 "002_columns",
    3 "003_wake_ups",
    4 "004_views",
    5 "005_allocation",
];
const NEWEST: i32 = 5;

const ROW_SECURITY: [(&str, &str); 2] = [
    ("host_role", include_str!("../sql/host_role.sql")),
    ("row_security", include_str!("../sql/row_security.sql")),
];

/// What the original schema has. A host needs these, and [`ADDED`].
const ORIGINAL: &[(&str, &[&str])] = &[
    (
        "instance_info",
        &[
            "ip",
            "location",
            "aws_ami_id",
            "aws_instance_type",
            "cloud_provider_id",
            "commit_hash",
            "creation_time_utc_unix_ms",
            "gpu_vram_remaining_kb",
            "instance_name",
            "last_updated_utc_unix_ms",
            "mandelbox_capacity",
            "memory_remaining_kb",
            "nanocpus_remaining",
            "status",
        ],
    ),
    (
        "mandelbox_info",
        &["mandelbox_id", "user_id", "instance_name", "status", "creation_time_utc_unix_ms", "session_id"],
    ),
];
const ADDED: &[(&str, &[&str])] =
    &[("instance_info", &["idle_since_utc_unix_ms"]), ("mandelbox_info", &["app"])];

const BEGIN: &str = "
    SELECT pg_advisory_xact_lock(hashtext('cloud.schema_migrations'));
    DO $$ BEGIN IF to_regnamespace('cloud') IS NULL THEN CREATE SCHEMA cloud; END IF; END $$;
    CREATE TABLE IF NOT EXISTS cloud.schema_migrations (
        version integer NOT NULL PRIMARY KEY,
        name text NOT NULL,
        digest text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )";

const MISSING: &str = "SELECT 'cloud.' || t || '.' || c FROM unnest($1::text[], $2::text[]) AS wanted (t, c) \
    WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('cloud.' || t) AND attname = c \
    AND attnum > 0 AND NOT attisdropped)";

/// What a migration did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The migrations applied now, by name.
    pub applied: Vec<String>,
    /// The schema's version.
    pub version: u32,
    /// Row security is on, by this migration or an earlier one.
    pub row_security: bool,
}

impl fmt::Display for Migrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.applied.as_slice() {
            [] => write!(f, "the schema is at version {}; nothing to do", self.version)?,
            applied => {
                write!(f, "the schema is at version {}; applied {}", self.version, applied.join(", "))?
            }
        }
        f.write_str(if self.row_security { "; row security is on" } else { "; row security is off" })
    }
}

/// Creates or updates the schema in the database of `config`, and with `row_security` also the role `cloud_host` and
/// the policies. `local` is whether the local development database stands in for a missing URL.
///
/// # Errors
/// `Invalid` when what is there is not a schema of this service, `Denied` when the role may not change it,
/// `Unavailable` or `Timeout` when there is no database. Nothing was changed then.
pub async fn migrate(config: &Config, local: bool) -> Result<Migrated> {
    let target = crate::target(config, local)?;
    let database = tokio::task::spawn_blocking(move || Database::new(target, 1, DEADLINE)).await;
    let database = database.map_err(|error| {
        PluginError::new(ErrorKind::Internal, "preparing the connection was broken off").with_source(error)
    })??;
    database
        .within(DOING, async {
            let mut lease = database.lease(DOING).await?;
            let migrated = apply(&mut lease, config.row_security).await;
            lease.give_back(migrated)
        })
        .await
}

async fn apply(lease: &mut Lease, row_security: bool) -> Result<Migrated> {
    let failed = |error| failure::of_driver(DOING, error);
    let transaction = lease.transaction().await.map_err(failed)?;
    transaction.batch_execute(BEGIN).await.map_err(failed)?;
    let mut version = known(&transaction).await?;
    let mut applied = Vec::new();
    for migration in MIGRATIONS.iter().filter(|migration| migration.version > version) {
        run(&transaction, migration.name, migration.sql).await?;
        if migration.version == 1 {
            complete(missing(&transaction, &[ORIGINAL]).await?)?;
        }
        note(&transaction, migration).await?;
        applied.push(migration.name.to_owned());
    }
    version = version.max(NEWEST);
    if row_security {
        for (name, sql) in ROW_SECURITY {
            run(&transaction, name, sql).await?;
        }
    }
    let row_security = is_secured(&transaction).await?;
    transaction.commit().await.map_err(failed)?;
    Ok(Migrated { applied, version: u32::try_from(version).unwrap_or_default(), row_security })
}

/// The version reached, after a look at whether what was applied is what this binary has.
async fn known(transaction: &Transaction<'_>) -> Result<i32> {
    let failed = |error| failure::of_driver(DOING, error);
    let sql = "SELECT version, digest FROM cloud.schema_migrations ORDER BY version";
    let mut reached = 0;
    for row in transaction.query_typed(sql, &[]).await.map_err(failed)? {
        let (version, digest): (i32, String) =
            row.try_get(0).and_then(|version| Ok((version, row.try_get(1)?))).map_err(failed)?;
        let ours = MIGRATIONS.iter().find(|migration| migration.version == version);
        if let Some(ours) = ours.filter(|ours| digest_of(ours.sql) != digest) {
            let message = format!(
                "{DOING}: migration {} in the database is not the one of this version; a migration must never be \
                 changed once it is applied",
                ours.name
            );
            return Err(PluginError::new(ErrorKind::Invalid, message));
        }
        reached = reached.max(version);
    }
    Ok(reached)
}

async fn run(transaction: &Transaction<'_>, name: &str, sql: &str) -> Result<()> {
    transaction
        .batch_execute(sql)
        .await
        .map_err(|error| failure::of_driver(&format!("{DOING}, {name}"), error))
}

async fn note(transaction: &Transaction<'_>, migration: &Migration) -> Result<()> {
    let sql = "INSERT INTO cloud.schema_migrations (version, name, digest) VALUES ($1, $2, $3)";
    let digest = digest_of(migration.sql);
    let parameters: Parameters<'_> =
        &[(&migration.version, Type::INT4), (&migration.name, Type::TEXT), (&digest, Type::TEXT)];
    let noted = transaction.query_typed(sql, parameters).await;
    noted.map(drop).map_err(|error| failure::of_driver(DOING, error))
}

async fn is_secured(transaction: &Transaction<'_>) -> Result<bool> {
    let sql = "SELECT bool_and(relrowsecurity) FROM pg_class \
               WHERE oid IN ('cloud.instance_info'::regclass, 'cloud.mandelbox_info'::regclass)";
    let row = transaction
        .query_typed(sql, &[])
        .await
        .and_then(|rows| rows.first().map_or(Ok(None), |row| row.try_get::<_, Option<bool>>(0)));
    Ok(row.map_err(|error| failure::of_driver(DOING, error))?.unwrap_or(false))
}

async fn missing(transaction: &Transaction<'_>, wanted: &[&[(&str, &[&str])]]) -> Result<Vec<String>> {
    let (tables, columns) = pairs(wanted);
    let parameters: Parameters<'_> = &[(&tables, Type::TEXT_ARRAY), (&columns, Type::TEXT_ARRAY)];
    let rows = transaction.query_typed(MISSING, parameters).await;
    let names = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
    names.map_err(|error| failure::of_driver(DOING, error))
}

fn complete(missing: Vec<String>) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{DOING}: there is a schema cloud, but it is not the original one: it lacks {}; nothing was changed",
        missing.join(", ")
    );
    Err(PluginError::new(ErrorKind::Invalid, message))
}

fn pairs<'a>(wanted: &[&[(&'a str, &'a [&'a str])]]) -> (Vec<&'a str>, Vec<&'a str>) {
    let tables = wanted.iter().flat_map(|tables| tables.iter());
    tables.flat_map(|(table, columns)| columns.iter().map(|column| (*table, *column))).unzip()
}

fn digest_of(sql: &str) -> String {
    Sha256::digest(sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a host can work with the schema that is there. One that is ahead will do: a fleet is updated after its
/// database.
///
/// # Errors
/// `Invalid` with what is missing and the remedy.
pub(crate) async fn check(database: &Database) -> Result<()> {
    const DOING: &str = "checking the schema";
    let failed = |error| failure::of_driver(DOING, error);
    let (tables, columns) = pairs(&[ORIGINAL, ADDED]);
    let parameters: Parameters<'_> = &[(&tables, Type::TEXT_ARRAY), (&columns, Type::TEXT_ARRAY)];
    let rows = database.query(DOING, MISSING, parameters).await?;
    let missing: Vec<String> =
        rows.iter().map(|row| row.try_get(0)).collect::<std::result::Result<_, _>>().map_err(failed)?;
    if !missing.is_empty() {
        let message =
            format!("the database's schema lacks {}: run `host-service db migrate`", missing.join(", "));
        return Err(PluginError::new(ErrorKind::Invalid, message));
    }
    let sql = "SELECT max(version) FROM cloud.schema_migrations";
    let rows = database.query(DOING, sql, &[]).await?;
    let version = rows.first().map_or(Ok(None), |row| row.try_get::<_, Option<i32>>(0)).map_err(failed)?;
    match version.unwrap_or(0) {
        version if version < NEWEST => {
            let message = format!(
                "the database's schema is at version {version}, and this version needs {NEWEST}: run \
                 `host-service db migrate`"
            );
            Err(PluginError::new(ErrorKind::Invalid, message))
        }
        version => {
            if version > NEWEST {
                tracing::info!(version, known = NEWEST, "the database's schema is ahead of this version");
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_as_their_files_are_named() {
        for (migration, version) in MIGRATIONS.iter().zip(1..) {
            assert_eq!(migration.version, version);
            assert!(migration.name.starts_with(&format!("{version:03}_")), "{}", migration.name);
        }
        assert_eq!(MIGRATIONS.last().unwrap().version, NEWEST);
    }
}
