//! What is asked of Hasura. Each operation is checked against `schema.graphql` when this is compiled: what the schema
//! does not have, or has under another name or type, is a compiler error here.
//!
//! Lists are optional because `_in` and `_nin` take null; they are always given.

use serde::{Deserialize, Deserializer, Serialize, de};

#[allow(
    non_camel_case_types,
    non_snake_case,
    missing_docs,
    unreachable_pub,
    reason = "generated from the schema"
)]
mod schema {
    cynic::use_schema!("schema.graphql");
}

/// A `bigint`. Hasura writes it as a number, or as a string when it is told to stringify numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Bigint(pub(crate) i64);

cynic::impl_scalar!(Bigint, schema::bigint);
// Where null is allowed, a number is, too.
impl cynic::coercions::CoercesTo<Option<schema::bigint>> for Bigint {}

impl<'de> Deserialize<'de> for Bigint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form<'a> {
            Number(i64),
            Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Text(text) => text.parse().map(Self).map_err(de::Error::custom),
        }
    }
}

pub(crate) use typed::*;

#[cynic::schema_for_derives(file = "schema.graphql", module = "schema")]
mod typed {
    use super::{Bigint, schema};

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_instance_info", rename_all = "none")]
    pub(crate) struct InstanceStatus {
        pub(crate) status: String,
    }

    /// What registration looks at.
    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_instance_info", rename_all = "none")]
    pub(crate) struct InstanceFacts {
        pub(crate) status: String,
        pub(crate) cloud_provider_id: String,
        pub(crate) aws_ami_id: String,
        pub(crate) location: String,
        pub(crate) aws_instance_type: String,
        pub(crate) commit_hash: String,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_mandelbox_info", rename_all = "none")]
    pub(crate) struct Mandelbox {
        pub(crate) mandelbox_id: String,
        pub(crate) user_id: String,
        pub(crate) session_id: String,
        pub(crate) app: Option<String>,
        pub(crate) status: String,
        pub(crate) creation_time_utc_unix_ms: Bigint,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_mandelbox_info", rename_all = "none")]
    pub(crate) struct MandelboxId {
        pub(crate) mandelbox_id: String,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_instance_info_mutation_response", rename_all = "none")]
    pub(crate) struct Instances {
        pub(crate) affected_rows: i32,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_mandelbox_info_mutation_response", rename_all = "none")]
    pub(crate) struct Mandelboxes {
        pub(crate) affected_rows: i32,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_mandelbox_info_mutation_response", rename_all = "none")]
    pub(crate) struct Claimed {
        pub(crate) affected_rows: i32,
        pub(crate) returning: Vec<Mandelbox>,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "cloud_mandelbox_info_mutation_response", rename_all = "none")]
    pub(crate) struct Removed {
        pub(crate) returning: Vec<MandelboxId>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct Host<'a> {
        pub(crate) instance: &'a str,
    }

    /// Whether everything is there that a host needs to see.
    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "query_root", rename_all = "none")]
    pub(crate) struct Check {
        #[arguments(limit: 1)]
        #[expect(dead_code, reason = "only whether it can be asked for")]
        pub(crate) cloud_instance_info: Vec<InstanceFacts>,
        #[arguments(limit: 1)]
        #[expect(dead_code, reason = "only whether it can be asked for")]
        pub(crate) cloud_mandelbox_info: Vec<Mandelbox>,
    }

    /// Everything about one host, at one time.
    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "query_root", variables = "Host", rename_all = "none")]
    pub(crate) struct ReadHost {
        #[arguments(where: { instance_name: { _eq: $instance } })]
        pub(crate) cloud_instance_info: Vec<InstanceStatus>,
        #[arguments(where: { instance_name: { _eq: $instance } },
                    order_by: [{ creation_time_utc_unix_ms: asc }, { mandelbox_id: asc }])]
        pub(crate) cloud_mandelbox_info: Vec<Mandelbox>,
    }

    /// A subscription has one root field, so there are two of them.
    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "subscription_root", variables = "Host", rename_all = "none")]
    pub(crate) struct WatchInstance {
        #[arguments(where: { instance_name: { _eq: $instance } })]
        pub(crate) cloud_instance_info: Vec<InstanceStatus>,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "subscription_root", variables = "Host", rename_all = "none")]
    pub(crate) struct WatchMandelboxes {
        #[arguments(where: { instance_name: { _eq: $instance } },
                    order_by: [{ creation_time_utc_unix_ms: asc }, { mandelbox_id: asc }])]
        pub(crate) cloud_mandelbox_info: Vec<Mandelbox>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct Allocated<'a> {
        pub(crate) instance: &'a str,
        pub(crate) id: &'a str,
        pub(crate) user: &'a str,
        pub(crate) session: &'a str,
        pub(crate) created: Bigint,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "Allocated", rename_all = "none")]
    pub(crate) struct ClaimMandelbox {
        #[arguments(_set: { status: "CONNECTING" },
                    where: { mandelbox_id: { _eq: $id }, instance_name: { _eq: $instance },
                             user_id: { _eq: $user }, session_id: { _eq: $session },
                             creation_time_utc_unix_ms: { _eq: $created }, status: { _eq: "ALLOCATED" } })]
        pub(crate) update_cloud_mandelbox_info: Option<Claimed>,
    }

    /// `from` and `to` bound the creation time: those of one allocation, or everything.
    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct Moved<'a> {
        pub(crate) instance: &'a str,
        pub(crate) id: &'a str,
        pub(crate) status: &'a str,
        pub(crate) before: Option<Vec<&'a str>>,
        pub(crate) from: Bigint,
        pub(crate) to: Bigint,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "Moved", rename_all = "none")]
    pub(crate) struct MoveMandelbox {
        #[arguments(_set: { status: $status },
                    where: { mandelbox_id: { _eq: $id }, instance_name: { _eq: $instance }, status: { _in: $before },
                             creation_time_utc_unix_ms: { _gte: $from, _lte: $to } })]
        #[expect(dead_code, reason = "a row that is gone, or further, stays so")]
        pub(crate) update_cloud_mandelbox_info: Option<Mandelboxes>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct One<'a> {
        pub(crate) instance: &'a str,
        pub(crate) id: &'a str,
        pub(crate) from: Bigint,
        pub(crate) to: Bigint,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "One", rename_all = "none")]
    pub(crate) struct RemoveMandelbox {
        #[arguments(where: { mandelbox_id: { _eq: $id }, instance_name: { _eq: $instance },
                             creation_time_utc_unix_ms: { _gte: $from, _lte: $to } })]
        #[expect(dead_code, reason = "a row that is gone stays so")]
        pub(crate) delete_cloud_mandelbox_info: Option<Mandelboxes>,
    }

    /// Rows of either list, if they are old enough, but none of `kept`.
    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct Stale<'a> {
        pub(crate) instance: &'a str,
        pub(crate) kept: Option<Vec<&'a str>>,
        pub(crate) allocated: Bigint,
        pub(crate) connecting: Bigint,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "Stale", rename_all = "none")]
    pub(crate) struct RemoveOld {
        #[arguments(where: { instance_name: { _eq: $instance }, mandelbox_id: { _nin: $kept }, _or: [
                        { status: { _eq: "ALLOCATED" }, creation_time_utc_unix_ms: { _lt: $allocated } },
                        { status: { _eq: "CONNECTING" }, creation_time_utc_unix_ms: { _lt: $connecting } }] })]
        pub(crate) delete_cloud_mandelbox_info: Option<Removed>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct RipeRows<'a> {
        pub(crate) instance: &'a str,
        pub(crate) kept: Option<Vec<&'a str>>,
        pub(crate) allocated: Option<Vec<String>>,
        pub(crate) connecting: Option<Vec<String>>,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "RipeRows", rename_all = "none")]
    pub(crate) struct RemoveRipe {
        #[arguments(where: { instance_name: { _eq: $instance }, mandelbox_id: { _nin: $kept }, _or: [
                        { status: { _eq: "ALLOCATED" }, mandelbox_id: { _in: $allocated } },
                        { status: { _eq: "CONNECTING" }, mandelbox_id: { _in: $connecting } }] })]
        pub(crate) delete_cloud_mandelbox_info: Option<Removed>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct New<'a> {
        pub(crate) instance: &'a str,
        pub(crate) id: &'a str,
        pub(crate) user: &'a str,
        pub(crate) session: &'a str,
        pub(crate) app: Option<&'a str>,
        pub(crate) created: Bigint,
    }

    /// An id that exists already is left as it is, and no row is affected.
    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "New", rename_all = "none")]
    pub(crate) struct AllocateMandelbox {
        #[arguments(objects: [{ mandelbox_id: $id, user_id: $user, instance_name: $instance, status: "ALLOCATED",
                                creation_time_utc_unix_ms: $created, session_id: $session, app: $app }],
                    on_conflict: { constraint: mandelbox_info_pkey, update_columns: [] })]
        pub(crate) insert_cloud_mandelbox_info: Option<Mandelboxes>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct Beat<'a> {
        pub(crate) instance: &'a str,
        pub(crate) at: Bigint,
        pub(crate) memory: Bigint,
        pub(crate) cpu: Bigint,
        pub(crate) vram: Bigint,
        pub(crate) capacity: Bigint,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "Beat", rename_all = "none")]
    pub(crate) struct BeatInstance {
        #[arguments(_set: { last_updated_utc_unix_ms: $at, memory_remaining_kb: $memory, nanocpus_remaining: $cpu,
                            gpu_vram_remaining_kb: $vram, mandelbox_capacity: $capacity },
                    where: { instance_name: { _eq: $instance } })]
        #[expect(dead_code, reason = "a row that is gone stays so")]
        pub(crate) update_cloud_instance_info: Option<Instances>,
    }

    /// Without a value every text is it.
    #[derive(cynic::InputObject, Debug)]
    #[cynic(graphql_type = "String_comparison_exp", rename_all = "none")]
    pub(crate) struct Is<'a> {
        #[cynic(skip_serializing_if = "Option::is_none")]
        pub(crate) _eq: Option<&'a str>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct Ended<'a> {
        pub(crate) instance: &'a str,
        pub(crate) machine: Is<'a>,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "Ended", rename_all = "none")]
    pub(crate) struct DrainInstance {
        #[arguments(_set: { status: "DRAINING" },
                    where: { instance_name: { _eq: $instance }, cloud_provider_id: $machine,
                             status: { _in: ["PRE_CONNECTION", "ACTIVE"] } })]
        #[expect(dead_code, reason = "a row that is gone, or given up, stays so")]
        pub(crate) update_cloud_instance_info: Option<Instances>,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "Ended", rename_all = "none")]
    pub(crate) struct RemoveInstance {
        #[arguments(where: { instance_name: { _eq: $instance }, cloud_provider_id: $machine })]
        #[expect(dead_code, reason = "a row that is gone stays so")]
        pub(crate) delete_cloud_instance_info: Option<Instances>,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "query_root", variables = "Host", rename_all = "none")]
    pub(crate) struct LookAtInstance {
        #[arguments(where: { instance_name: { _eq: $instance } })]
        pub(crate) cloud_instance_info: Vec<InstanceFacts>,
    }

    /// The row as it was seen (`seen…`), and what it is to be.
    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct Activation<'a> {
        pub(crate) instance: &'a str,
        pub(crate) ip: &'a str,
        pub(crate) location: &'a str,
        pub(crate) image: &'a str,
        pub(crate) machine: &'a str,
        pub(crate) cloud: &'a str,
        pub(crate) commit: &'a str,
        pub(crate) capacity: Bigint,
        pub(crate) at: Bigint,
        pub(crate) memory: Bigint,
        pub(crate) cpu: Bigint,
        pub(crate) vram: Bigint,
        #[cynic(rename = "seenStatus")]
        pub(crate) seen_status: &'a str,
        #[cynic(rename = "seenCloud")]
        pub(crate) seen_cloud: &'a str,
        #[cynic(rename = "seenImage")]
        pub(crate) seen_image: &'a str,
        #[cynic(rename = "seenLocation")]
        pub(crate) seen_location: &'a str,
        #[cynic(rename = "seenMachine")]
        pub(crate) seen_machine: &'a str,
        #[cynic(rename = "seenCommit")]
        pub(crate) seen_commit: &'a str,
    }

    /// Changes the row only while it is as it was seen.
    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "Activation", rename_all = "none")]
    pub(crate) struct ActivateInstance {
        #[arguments(_set: { status: "ACTIVE", ip: $ip, location: $location, aws_ami_id: $image,
                            aws_instance_type: $machine, cloud_provider_id: $cloud, commit_hash: $commit,
                            mandelbox_capacity: $capacity, last_updated_utc_unix_ms: $at,
                            memory_remaining_kb: $memory, nanocpus_remaining: $cpu, gpu_vram_remaining_kb: $vram },
                    where: { instance_name: { _eq: $instance }, status: { _eq: $seen_status },
                             cloud_provider_id: { _eq: $seen_cloud }, aws_ami_id: { _eq: $seen_image },
                             location: { _eq: $seen_location }, aws_instance_type: { _eq: $seen_machine },
                             commit_hash: { _eq: $seen_commit } })]
        pub(crate) update_cloud_instance_info: Option<Instances>,
    }

    #[derive(cynic::QueryVariables, Debug)]
    pub(crate) struct NewInstance<'a> {
        pub(crate) instance: &'a str,
        pub(crate) ip: &'a str,
        pub(crate) location: &'a str,
        pub(crate) image: &'a str,
        pub(crate) machine: &'a str,
        pub(crate) cloud: &'a str,
        pub(crate) commit: &'a str,
        pub(crate) capacity: Bigint,
        pub(crate) at: Bigint,
        pub(crate) memory: Bigint,
        pub(crate) cpu: Bigint,
        pub(crate) vram: Bigint,
    }

    #[derive(cynic::QueryFragment, Debug)]
    #[cynic(graphql_type = "mutation_root", variables = "NewInstance", rename_all = "none")]
    pub(crate) struct CreateInstance {
        #[arguments(objects: [{ instance_name: $instance, status: "ACTIVE", ip: $ip, location: $location,
                                aws_ami_id: $image, aws_instance_type: $machine, cloud_provider_id: $cloud,
                                commit_hash: $commit, mandelbox_capacity: $capacity, creation_time_utc_unix_ms: $at,
                                last_updated_utc_unix_ms: $at, memory_remaining_kb: $memory,
                                nanocpus_remaining: $cpu, gpu_vram_remaining_kb: $vram }],
                    on_conflict: { constraint: instance_info_pkey, update_columns: [] })]
        pub(crate) insert_cloud_instance_info: Option<Instances>,
    }
}
