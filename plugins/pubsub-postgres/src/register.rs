//! A host makes itself known: one transaction that looks at its row, decides, and makes it `ACTIVE`.

use control_plane::registration::{Expected, Step, decide};
use host_core::pubsub::{Heartbeat, InstanceFacts, Registered, Result};
use tokio_postgres::{Row, Transaction, types::Type};

use crate::{
    database::{Database, Parameters},
    failure,
};

const DOING: &str = "registering this instance";

/// `create` is whether a missing row is made.
pub(crate) async fn register(
    database: &Database,
    facts: &InstanceFacts,
    beat: &Heartbeat,
    create: bool,
) -> Result<Registered> {
    database
        .within(DOING, async {
            let mut lease = database.lease(DOING).await?;
            let answer = attempt(&mut lease, facts, beat, create).await;
            lease.give_back(answer)
        })
        .await
}

async fn attempt(
    lease: &mut crate::database::Lease,
    facts: &InstanceFacts,
    beat: &Heartbeat,
    create: bool,
) -> Result<Registered> {
    let failed = |error| failure::of_driver(DOING, error);
    let transaction = lease.transaction().await.map_err(failed)?;
    match step(&transaction, facts, beat, create).await {
        Ok(Registered::Active) => transaction.commit().await.map_err(failed).map(|()| Registered::Active),
        // Said at once, not when the connection next has something to do: the row is locked.
        left => transaction.rollback().await.map_err(failed).and(left),
    }
}

async fn step(
    transaction: &Transaction<'_>,
    facts: &InstanceFacts,
    beat: &Heartbeat,
    create: bool,
) -> Result<Registered> {
    let row = look(transaction, facts).await?;
    match decide(row.as_ref(), facts, create)? {
        Step::Leave(status) => return Ok(Registered::Unwanted(status)),
        Step::Activate(_) => write(transaction, ACTIVATE, facts, beat).await?,
        Step::Create => write(transaction, CREATE, facts, beat).await?,
    }
    Ok(Registered::Active)
}

async fn look(transaction: &Transaction<'_>, facts: &InstanceFacts) -> Result<Option<Expected>> {
    const SQL: &str = "SELECT status::text, cloud_provider_id::text, aws_ami_id::text, location::text, \
                       aws_instance_type::text, commit_hash::text FROM cloud.instance_info \
                       WHERE instance_name = $1 FOR UPDATE";
    let failed = |error| failure::of_driver(DOING, error);
    let rows = transaction.query_typed(SQL, &[(&facts.name.as_str(), Type::TEXT)]).await.map_err(failed)?;
    let expected = |row: &Row| {
        Ok(Expected {
            status: row.try_get(0)?,
            cloud_id: row.try_get(1)?,
            image_id: row.try_get(2)?,
            region: row.try_get(3)?,
            instance_type: row.try_get(4)?,
            commit: row.try_get(5)?,
        })
    };
    rows.first().map(expected).transpose().map_err(failed)
}

const ACTIVATE: &str = "UPDATE cloud.instance_info SET status = 'ACTIVE', ip = $2, location = $3, aws_ami_id = $4, \
                        aws_instance_type = $5, cloud_provider_id = $6, mandelbox_capacity = $7, \
                        last_updated_utc_unix_ms = $8, memory_remaining_kb = $9, nanocpus_remaining = $10, \
                        gpu_vram_remaining_kb = $11, commit_hash = $12 WHERE instance_name = $1";

const CREATE: &str = "INSERT INTO cloud.instance_info (status, instance_name, ip, location, aws_ami_id, \
                      aws_instance_type, cloud_provider_id, mandelbox_capacity, last_updated_utc_unix_ms, \
                      memory_remaining_kb, nanocpus_remaining, gpu_vram_remaining_kb, commit_hash, \
                      creation_time_utc_unix_ms) \
                      VALUES ('ACTIVE', $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $8)";

async fn write(
    transaction: &Transaction<'_>,
    sql: &str,
    facts: &InstanceFacts,
    beat: &Heartbeat,
) -> Result<()> {
    let parameters: Parameters<'_> = &[
        (&facts.name.as_str(), Type::TEXT),
        (&facts.ip, Type::TEXT),
        (&facts.region, Type::TEXT),
        (&facts.image_id, Type::TEXT),
        (&facts.instance_type, Type::TEXT),
        (&facts.cloud_id, Type::TEXT),
        (&i64::from(beat.capacity), Type::INT8),
        (&beat.at_ms, Type::INT8),
        (&beat.memory_remaining_kb, Type::INT8),
        (&beat.nanocpus_remaining, Type::INT8),
        (&beat.gpu_vram_remaining_kb, Type::INT8),
        (&facts.commit, Type::TEXT),
    ];
    let written = transaction.query_typed(sql, parameters).await;
    written.map(drop).map_err(|error| failure::of_driver(DOING, error))
}
