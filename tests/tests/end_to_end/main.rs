//! The main job, done for real: the real binary, a real runtime, a real application inside; over every runtime.
//!
//! The functions in `requests` and `life` are the suite, and the ground that a service runs on is their parameter. The
//! modules `docker`, `podman` and `oci` are made of it; `docker_only` and its like have what can happen only there. The tests of
//! oci need no engine: `cargo nextest run -p host-tests -E 'test(/^oci/)'`. `database` needs PostgreSQL besides, and
//! `walk_through` is what the README has a newcomer do with one.

mod database;
mod docker_only;
mod gpus;
mod life;
mod oci_only;
mod podman_only;
mod requests;
mod walk_through;

use std::time::Duration;

use anyhow::Result;
use host_tests::{engine::Engine, ground::Ground, oci::OciHost};

const SOON: Duration = Duration::from_secs(30);

/// On the engine that all tests share.
async fn on_docker(test: impl AsyncFnOnce(&dyn Ground) -> Result<()>) -> Result<()> {
    let engine = Engine::shared().await?;
    test(&engine).await
}

/// On the Podman that all tests share.
async fn on_podman(test: impl AsyncFnOnce(&dyn Ground) -> Result<()>) -> Result<()> {
    let engine = Engine::shared_podman().await?;
    test(&engine).await
}

/// On a host of its own, which has to be as it was when all services have ended.
async fn on_oci(test: impl AsyncFnOnce(&dyn Ground) -> Result<()>) -> Result<()> {
    let host = OciHost::scratch().await?;
    test(&host).await?;
    host.assert_untouched().await
}

/// Makes tests of the suite for every runtime.
macro_rules! over_every_runtime {
    ($($part:ident { $($test:ident,)* })*) => {
        mod docker {
            $($(#[tokio::test]
            async fn $test() -> anyhow::Result<()> {
                super::on_docker(super::$part::$test).await
            })*)*
        }

        mod podman {
            $($(#[tokio::test]
            async fn $test() -> anyhow::Result<()> {
                super::on_podman(super::$part::$test).await
            })*)*
        }

        mod oci {
            $($(#[tokio::test]
            async fn $test() -> anyhow::Result<()> {
                super::on_oci(super::$part::$test).await
            })*)*
        }
    };
}

over_every_runtime! {
    requests {
        a_request_becomes_a_running_mandelbox_and_leaves_nothing,
        a_mandelbox_is_confined_as_the_settings_say,
        twenty_at_once_are_twenty_different_mandelboxes,
        startup_data_is_taken_once_and_the_same_request_gets_the_same_answer,
        a_failed_spin_up_is_undone_and_disturbs_nobody,
        exhaustion_says_who_holds_what_and_ends_with_the_holder,
        links_planted_inside_lead_nowhere,
        the_row_may_come_before_the_request_or_after,
        nothing_allocated_is_told_in_time,
        a_client_that_hangs_up_cancels_nothing,
        a_thousand_requests_at_once_harm_nobody,
    }
    life {
        an_operator_sees_and_stops_a_mandelbox,
        probes_and_metrics_tell_the_state,
        a_drain_lets_sessions_end_and_refuses_new_ones,
        a_second_signal_hurries,
        the_drain_command_ends_the_service,
        what_a_killed_service_leaves_is_found_and_purged_exactly,
        a_restarted_development_host_remembers_its_rows,
        a_busy_port_is_named,
    }
    database {
        what_is_allocated_in_the_fleets_database_spins_up,
        sessions_outlive_their_database_and_it_is_told_everything,
        a_row_deleted_under_a_running_mandelbox_ends_it,
    }
}
