//! What a host does to its rows, one statement each. Every one names its columns, so a schema that is ahead by a
//! column or two still fits.

use control_plane::{Entry, Ripe, Write, short};
use host_core::{
    ErrorKind, InstanceName, MandelboxId, PluginError,
    pubsub::{Allocation, Claim, Heartbeat, MandelboxRow, MandelboxStatus, Result, StaleAfter},
};
use tokio_postgres::types::Type;

use crate::{
    database::Database,
    failure,
    rows::{self, MANDELBOX},
};

const NOW_MS: &str = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// Unix time in ms is far from the ends of 64 bits.
fn in_ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2).min(i64::MAX / 2)
}

/// In a statement's condition, with `$2` as the instance: this is the host's own change, of which it tells its watches
/// itself. For this transaction only.
const OWN: &str = "set_config('cloud.own_change', $2, true) IS NOT NULL";

/// What a watch reads; its parameter is the instance.
pub(crate) fn read() -> String {
    format!(
        "SELECT i.status::text, {MANDELBOX} FROM cloud.instance_info i \
         LEFT JOIN cloud.mandelbox_info m ON m.instance_name = i.instance_name \
         WHERE i.instance_name = $1 ORDER BY m.creation_time_utc_unix_ms, m.mandelbox_id"
    )
}

pub(crate) async fn claim(database: &Database, instance: &InstanceName, row: &MandelboxRow) -> Result<Claim> {
    const DOING: &str = "claiming a mandelbox";
    let sql = format!(
        "UPDATE cloud.mandelbox_info m SET status = 'CONNECTING' WHERE m.mandelbox_id = $1 AND m.instance_name = $2 \
         AND m.user_id = $3 AND m.session_id = $4 AND m.creation_time_utc_unix_ms = $5 AND m.status = 'ALLOCATED' \
         AND {OWN} RETURNING {MANDELBOX}"
    );
    // Should an answer be lost after it took effect, the second try says `Lost`, and so would the host's own.
    let rows = database
        .query(
            DOING,
            &sql,
            &[
                (&row.id.as_str(), Type::TEXT),
                (&instance.as_str(), Type::TEXT),
                (&row.user.as_str(), Type::TEXT),
                (&row.session.as_str(), Type::TEXT),
                (&row.created_ms, Type::INT8),
            ],
        )
        .await?;
    let Some(won) = rows.first() else { return Ok(Claim::Lost) };
    let raw = rows::mandelbox(won, 0).map_err(|error| failure::of_driver(DOING, error))?;
    match raw.map(|raw| raw.understand()) {
        Some(Ok(row)) => Ok(Claim::Won(row)),
        Some(Err(why)) => Err(PluginError::new(ErrorKind::Invalid, format!("{DOING}: {why}"))),
        None => Ok(Claim::Lost),
    }
}

/// Delivers a status or a removal. Whatever is further already, or gone, or was given away anew, stays as it is.
pub(crate) async fn deliver(database: &Database, entry: &Entry) -> Result<()> {
    let (id, instance) = (entry.mandelbox.as_str(), entry.instance.as_str());
    match entry.write {
        Write::Status(status) => {
            let sql = format!(
                "UPDATE cloud.mandelbox_info SET status = $3 WHERE mandelbox_id = $1 AND instance_name = $2 \
                 AND status = ANY ($4) AND ($5::bigint IS NULL OR creation_time_utc_unix_ms = $5) AND {OWN}"
            );
            let before: Vec<_> = MandelboxStatus::ALL
                .iter()
                .filter(|earlier| **earlier < status)
                .map(|s| s.as_str())
                .collect();
            let parameters: crate::database::Parameters<'_> = &[
                (&id, Type::TEXT),
                (&instance, Type::TEXT),
                (&status.as_str(), Type::TEXT),
                (&before, Type::TEXT_ARRAY),
                (&entry.created_ms, Type::INT8),
            ];
            database.query("writing a mandelbox's status", &sql, parameters).await?;
        }
        Write::Remove => {
            let sql = format!(
                "DELETE FROM cloud.mandelbox_info WHERE mandelbox_id = $1 AND instance_name = $2 \
                 AND ($3::bigint IS NULL OR creation_time_utc_unix_ms = $3) AND {OWN}"
            );
            let parameters: crate::database::Parameters<'_> =
                &[(&id, Type::TEXT), (&instance, Type::TEXT), (&entry.created_ms, Type::INT8)];
            database.query("removing a mandelbox's row", &sql, parameters).await?;
        }
    }
    Ok(())
}

pub(crate) async fn heartbeat(database: &Database, instance: &InstanceName, beat: &Heartbeat) -> Result<()> {
    const SQL: &str = "UPDATE cloud.instance_info SET last_updated_utc_unix_ms = $2, memory_remaining_kb = $3, \
                       nanocpus_remaining = $4, gpu_vram_remaining_kb = $5, mandelbox_capacity = $6 \
                       WHERE instance_name = $1";
    let parameters: crate::database::Parameters<'_> = &[
        (&instance.as_str(), Type::TEXT),
        (&beat.at_ms, Type::INT8),
        (&beat.memory_remaining_kb, Type::INT8),
        (&beat.nanocpus_remaining, Type::INT8),
        (&beat.gpu_vram_remaining_kb, Type::INT8),
        (&i64::from(beat.capacity), Type::INT8),
    ];
    database.query("writing a heartbeat", SQL, parameters).await.map(drop)
}

/// `machine` is which the row must be of, where that is known; also below.
pub(crate) async fn mark_draining(
    database: &Database,
    instance: &InstanceName,
    machine: Option<&str>,
) -> Result<()> {
    const SQL: &str = "UPDATE cloud.instance_info SET status = 'DRAINING' \
                       WHERE instance_name = $1 AND ($2::text IS NULL OR cloud_provider_id = $2) \
                       AND status IN ('PRE_CONNECTION', 'ACTIVE')";
    let parameters: crate::database::Parameters<'_> =
        &[(&instance.as_str(), Type::TEXT), (&machine, Type::TEXT)];
    database.query("marking this host as draining", SQL, parameters).await.map(drop)
}

pub(crate) async fn unregister(
    database: &Database,
    instance: &InstanceName,
    machine: Option<&str>,
) -> Result<()> {
    const SQL: &str = "DELETE FROM cloud.instance_info \
                       WHERE instance_name = $1 AND ($2::text IS NULL OR cloud_provider_id = $2)";
    let parameters: crate::database::Parameters<'_> =
        &[(&instance.as_str(), Type::TEXT), (&machine, Type::TEXT)];
    database.query("removing the instance's row", SQL, parameters).await.map(drop)
}

/// `ripe` is which rows may be stale at all; `None` leaves it to their creation time.
pub(crate) async fn remove_stale(
    database: &Database,
    instance: &InstanceName,
    after: StaleAfter,
    working_on: &[MandelboxId],
    ripe: Option<Ripe>,
) -> Result<Vec<MandelboxId>> {
    let sql = format!(
        "DELETE FROM cloud.mandelbox_info WHERE instance_name = $1 AND NOT (mandelbox_id = ANY ($2)) AND \
         (status = 'ALLOCATED' AND creation_time_utc_unix_ms < {NOW_MS} - $3 \
          AND ($5::text[] IS NULL OR mandelbox_id = ANY ($5)) \
          OR status = 'CONNECTING' AND creation_time_utc_unix_ms < {NOW_MS} - $4 \
          AND ($6::text[] IS NULL OR mandelbox_id = ANY ($6))) RETURNING mandelbox_id::text"
    );
    let working_on: Vec<_> = working_on.iter().map(MandelboxId::as_str).collect();
    let (allocated, connecting) = ripe.map(|ripe| (ripe.allocated, ripe.connecting)).unzip();
    let parameters: crate::database::Parameters<'_> = &[
        (&instance.as_str(), Type::TEXT),
        (&working_on, Type::TEXT_ARRAY),
        (&in_ms(after.allocated), Type::INT8),
        (&in_ms(after.connecting), Type::INT8),
        (&allocated, Type::TEXT_ARRAY),
        (&connecting, Type::TEXT_ARRAY),
    ];
    let rows = database.query("removing stale rows", &sql, parameters).await?;
    let mut removed = Vec::new();
    for row in rows {
        let id: String = row.try_get(0).map_err(|error| failure::of_driver("removing stale rows", error))?;
        match id.parse() {
            Ok(id) => removed.push(id),
            Err(_) => tracing::warn!(id = short(&id), "a row that could never be used was removed as stale"),
        }
    }
    Ok(removed)
}

pub(crate) async fn allocate(database: &Database, instance: &InstanceName, new: &Allocation) -> Result<()> {
    let sql = format!(
        "INSERT INTO cloud.mandelbox_info \
         (mandelbox_id, user_id, instance_name, status, creation_time_utc_unix_ms, session_id, app) \
         VALUES ($1, $2, $3, 'ALLOCATED', {NOW_MS}, $4, $5)"
    );
    let parameters: crate::database::Parameters<'_> = &[
        (&new.id.as_str(), Type::TEXT),
        (&new.user.as_str(), Type::TEXT),
        (&instance.as_str(), Type::TEXT),
        (&new.session.as_str(), Type::TEXT),
        (&new.app.as_ref().map(|app| app.as_str()), Type::TEXT),
    ];
    let inserted = database.query_once("allocating a mandelbox", &sql, parameters).await;
    inserted.map(drop).map_err(|error| match error.kind() {
        ErrorKind::Conflict => {
            PluginError::new(ErrorKind::Conflict, format!("mandelbox {} exists already", new.id))
        }
        ErrorKind::NotFound => PluginError::new(
            ErrorKind::NotFound,
            format!("there is no instance {instance}: nothing has registered under this name"),
        ),
        _ => error,
    })
}
