//! What every `Runtime` must do.
//!
//! The behaviours are tried on the test mandelbox (`tests/mandelbox`), which tells over HTTP what it sees from
//! inside, so limits, capabilities, mounts and the like are read back where they matter. Those that need real
//! containers are skipped where [`Feature::Isolation`] is not declared, and the same goes for every other feature.
//!
//! [`run`] cleans up after each behaviour, whatever became of it; what cannot be removed, or is still there afterwards, breaks it.

mod archive;
mod crowd;
mod events;
mod images;
mod inside;
mod lifecycle;
mod network;
mod output;
mod trial;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use host_core::{
    ImageRef,
    runtime::{Feature, Runtime, Selector},
};

use crate::{
    behaviours, ensure,
    report::{Behaviour, Outcome, Report, Tried, Unmet, Verdict},
};

use self::{crowd::*, events::*, images::*, inside::*, lifecycle::*, network::*, output::*, trial::LABEL};

/// A loaded machine of two cores needs a tenth of it.
const DEADLINE: Duration = Duration::from_secs(60);
/// The same for fifty containers, of which an engine starts five to ten a second.
const CROWD_DEADLINE: Duration = Duration::from_secs(150);

/// A runtime under trial, and what can be had around it.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The runtime itself.
    fn runtime(&self) -> &dyn Runtime;

    /// The test mandelbox's image, which is present.
    fn image(&self) -> ImageRef;

    /// An archive of images, for [`Runtime::load_image`].
    fn archive(&self) -> Option<PathBuf> {
        None
    }

    /// An image that is not present, in a registry that is there.
    fn pullable(&self) -> Option<ImageRef> {
        None
    }

    /// Why the runtime has not that feature, for the table.
    fn why_not(&self, _feature: Feature) -> Option<&'static str> {
        None
    }

    /// Why a behaviour is known not to hold, or not each time, for a combination that is supported in spite of it.
    fn differs(&self, _behaviour: &str) -> Option<&'static str> {
        None
    }

    /// Restarts the component behind the runtime, which breaks every connection to it; returns when it answers.
    ///
    /// # Errors
    /// `Lacking` where that is not possible.
    async fn restart(&self) -> Verdict {
        Err(Unmet::Lacking("there is no component that could be restarted".to_owned()))
    }
}

/// All of them.
pub fn behaviours() -> Vec<Behaviour<dyn Fixture>> {
    let mut all = one_by_one();
    all.extend(behaviours![dyn Fixture, CROWD_DEADLINE; fifty_at_once_do_not_disturb_each_other]);
    all
}

fn one_by_one() -> Vec<Behaviour<dyn Fixture>> {
    behaviours![dyn Fixture, DEADLINE;
        it_is_healthy,
        a_container_is_created_then_runs_then_has_ended_then_is_gone,
        id_and_name_mean_the_same_container,
        starting_what_runs_succeeds,
        stopping_what_does_not_run_succeeds,
        stopping_and_removing_the_absent_succeeds,
        what_is_absent_is_told,
        a_taken_name_is_a_conflict_and_disturbs_nobody,
        a_name_is_free_as_soon_as_its_container_is_removed,
        what_runs_can_be_removed,
        an_exit_code_is_told,
        a_container_that_heeds_sigterm_ends_before_its_grace,
        a_container_that_ignores_sigterm_is_killed_after_its_grace,
        no_grace_is_no_wait,
        labels_are_kept_and_select,
        a_list_tells_every_state,
        a_present_image_is_described,
        an_absent_image_is_none_and_makes_no_container,
        a_bad_reference_is_refused,
        an_image_gets_another_name,
        an_archive_is_loaded,
        what_is_no_archive_is_refused,
        an_image_is_pulled,
        a_pull_from_nowhere_fails,
        an_image_for_another_processor_is_refused,
        the_environment_is_exact,
        a_gpu_variable_wins_over_the_same_in_the_environment,
        capabilities_are_those_given_and_no_others,
        privileges_can_be_kept_from_growing,
        system_calls_are_filtered_as_said,
        limits_are_in_force,
        an_out_of_memory_kill_is_told,
        binds_are_read_only_when_said,
        a_missing_bind_source_is_refused,
        memory_file_systems_have_their_sizes,
        a_device_is_given_and_no_other,
        a_terminal_is_there_when_said,
        published_ports_are_reachable,
        a_taken_port_is_told_and_can_be_tried_again,
        ports_are_free_as_soon_as_their_container_is_removed,
        ports_without_a_network_are_refused,
        the_host_network_is_the_hosts,
        a_log_is_complete_and_ends,
        a_terminals_log_is_complete_and_ends,
        events_tell_a_life_in_order,
        events_of_others_are_left_out,
        nothing_is_lost_between_subscribing_and_reading,
        a_broken_stream_ends_and_a_list_tells_the_rest,
        removing_at_once_from_many_sides_succeeds,
        a_spin_up_given_up_at_any_point_can_be_removed_by_name,
    ]
}

/// Tries every behaviour on `fixture`, one after another, and cleans up after each. The runtime must be this run's alone:
/// every container of a trial is removed, whoever made it.
pub async fn run(implementation: &str, fixture: &(dyn Fixture + 'static)) -> Report {
    let mut tried = Vec::new();
    for behaviour in behaviours() {
        let begun = tokio::time::Instant::now();
        let attempted = behaviour.attempt(fixture).await;
        let outcome =
            fixture.differs(behaviour.name).map_or(attempted, |why| Outcome::Skipped(why.to_owned()));
        let took = begun.elapsed();
        let left = tokio::time::timeout(DEADLINE, clean_up(fixture.runtime())).await;
        let outcome = match left {
            Ok(Ok(())) => outcome,
            Ok(Err(Unmet::Broken(why) | Unmet::Lacking(why))) => spoilt(outcome, &why),
            Err(_) => spoilt(outcome, "its containers could not be removed in time"),
        };
        tried.push(Tried { behaviour: behaviour.name, outcome, took });
    }
    Report { implementation: implementation.to_owned(), tried }
}

/// A failure says more than what it left.
fn spoilt(outcome: Outcome, why: &str) -> Outcome {
    match outcome {
        Outcome::Failed(first) => Outcome::Failed(first),
        _ => Outcome::Failed(why.to_owned()),
    }
}

/// Removes every container of a trial, and sees that they are gone.
async fn clean_up(runtime: &dyn Runtime) -> Verdict {
    let trials = Selector([(LABEL.to_owned(), None)].into());
    let left = runtime.list(&trials).await?;
    let removals =
        left.into_iter().map(|container| async move { runtime.remove(&container.id.into()).await });
    futures::future::try_join_all(removals).await?;
    let left = runtime.list(&trials).await?;
    ensure!(left.is_empty(), "still there after their removal: {left:?}");
    Ok(())
}

/// Skips the behaviour where the runtime lacks one of `features`.
fn needs(fixture: &dyn Fixture, features: &[Feature]) -> Verdict {
    let has = fixture.runtime().features();
    match features.iter().find(|feature| !has.contains(feature)) {
        Some(lacking) => {
            let why = fixture.why_not(*lacking).map(|why| format!(": {why}")).unwrap_or_default();
            Err(Unmet::Lacking(format!("it lacks the feature {lacking:?}{why}")))
        }
        None => Ok(()),
    }
}
