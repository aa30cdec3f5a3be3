//! A host makes itself known: it looks at its row, decides, and has it changed under the condition that it still is as
//! it was seen. So looking, deciding and writing are one step, though two requests.

use control_plane::registration::{Expected, Step, decide};
use cynic::{MutationBuilder, QueryBuilder};
use host_core::{
    ErrorKind, PluginError,
    pubsub::{Heartbeat, InstanceFacts, Registered, Result},
};

use crate::{operations as ops, operations::Bigint, server::Server};

const DOING: &str = "registering this instance";
/// Whoever changes the row all the time is no control plane.
const TRIES: u32 = 5;

/// `create` is whether a missing row is made.
pub(crate) async fn register(
    server: &Server,
    facts: &InstanceFacts,
    beat: &Heartbeat,
    create: bool,
) -> Result<Registered> {
    for _ in 0..TRIES {
        let row = look(server, facts).await?;
        let done = match decide(row.as_ref(), facts, create)? {
            Step::Leave(status) => return Ok(Registered::Unwanted(status)),
            Step::Create => make(server, facts, beat).await?,
            Step::Activate(seen) => activate(server, facts, beat, seen).await?,
        };
        if done {
            return Ok(Registered::Active);
        }
    }
    let message = format!("{DOING}: somebody else keeps changing the row of {}", facts.name);
    Err(PluginError::new(ErrorKind::Unavailable, message))
}

async fn look(server: &Server, facts: &InstanceFacts) -> Result<Option<Expected>> {
    let query = ops::LookAtInstance::build(ops::Host { instance: facts.name.as_str() });
    let row = server.run(DOING, query).await?.cloud_instance_info.into_iter().next();
    Ok(row.map(|row| Expected {
        status: row.status,
        cloud_id: row.cloud_provider_id,
        image_id: row.aws_ami_id,
        region: row.location,
        instance_type: row.aws_instance_type,
        commit: row.commit_hash,
    }))
}

async fn activate(server: &Server, facts: &InstanceFacts, beat: &Heartbeat, seen: &Expected) -> Result<bool> {
    let mutation = ops::ActivateInstance::build(ops::Activation {
        instance: facts.name.as_str(),
        ip: &facts.ip,
        location: &facts.region,
        image: &facts.image_id,
        machine: &facts.instance_type,
        cloud: &facts.cloud_id,
        commit: &facts.commit,
        capacity: Bigint(beat.capacity.into()),
        at: Bigint(beat.at_ms),
        memory: Bigint(beat.memory_remaining_kb),
        cpu: Bigint(beat.nanocpus_remaining),
        vram: Bigint(beat.gpu_vram_remaining_kb),
        seen_status: &seen.status,
        seen_cloud: &seen.cloud_id,
        seen_image: &seen.image_id,
        seen_location: &seen.region,
        seen_machine: &seen.instance_type,
        seen_commit: &seen.commit,
    });
    let changed = server.run(DOING, mutation).await?.update_cloud_instance_info;
    Ok(changed.is_some_and(|changed| changed.affected_rows == 1))
}

async fn make(server: &Server, facts: &InstanceFacts, beat: &Heartbeat) -> Result<bool> {
    let mutation = ops::CreateInstance::build(ops::NewInstance {
        instance: facts.name.as_str(),
        ip: &facts.ip,
        location: &facts.region,
        image: &facts.image_id,
        machine: &facts.instance_type,
        cloud: &facts.cloud_id,
        commit: &facts.commit,
        capacity: Bigint(beat.capacity.into()),
        at: Bigint(beat.at_ms),
        memory: Bigint(beat.memory_remaining_kb),
        cpu: Bigint(beat.nanocpus_remaining),
        vram: Bigint(beat.gpu_vram_remaining_kb),
    });
    let made = server.run(DOING, mutation).await?.insert_cloud_instance_info;
    Ok(made.is_some_and(|made| made.affected_rows == 1))
}
