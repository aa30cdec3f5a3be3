//! Whole-host simulations on paused time: the real orchestrator, owners, watchers, files and records over a simulated
//! engine and a control plane in memory, both of which can be made to fail at any step.

use std::{collections::BTreeSet, time::Duration};

use host_core::{
    ErrorKind, MandelboxId,
    lifecycle::Phase,
    planner::DrainCause,
    pubsub::{InstanceStatus, MandelboxStatus},
};
use pubsub_memory::{Fault, Operation};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use runtime_sim::{Containers, Op};
use tokio::time::timeout;

use super::*;

mod reports;
mod world;

use world::{LONG, World, stranger};

#[tokio::test(start_paused = true)]
async fn a_row_becomes_a_running_mandelbox_and_its_exit_leaves_nothing() {
    let world = World::new(&[]).await;
    let answer = world.spin_up("m").await.unwrap();
    assert_eq!(answer.ports.len(), 3);
    assert_eq!(world.status("m"), Some(MandelboxStatus::Running));
    let spec = world.script.spec(&world.container("m")).unwrap();
    assert_eq!(spec.env["FRACTAL_AES_KEY"].expose(), answer.aes_key.expose());
    assert!(!format!("{spec:?}").contains(answer.aes_key.expose()), "the key can be printed");
    world.script.exit(&world.container("m"), 0);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn the_55th_of_54_ttys_is_refused_and_the_others_run_on() {
    let world = World::new(&[]).await;
    let ids: Vec<_> = (0..55).map(|n| format!("m{n}")).collect();
    let outcomes = futures::future::join_all(ids.iter().map(|id| world.spin_up(id))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 54);
    world.until("end of the one refused", || world.shared.board.len() == 54).await;
    assert!(world.shared.board.all().iter().all(|mandelbox| mandelbox.state().phase == Phase::Running));
}

/// Whatever single call fails or hangs, with or without effect: the client has its answer, and nothing is left.
#[tokio::test(start_paused = true)]
async fn any_call_of_the_engine_may_fail() {
    type Strike = fn(runtime_sim::Calls<'_>);
    let strikes: [(&str, Strike); 5] = [
        ("fails", |calls| calls.fails(ErrorKind::Internal)),
        ("is unavailable", |calls| calls.fails(ErrorKind::Unavailable)),
        ("loses its answer", |calls| calls.answer_is_lost(ErrorKind::Unavailable)),
        ("hangs", |calls| calls.hangs()),
        ("hangs after its effect", |calls| calls.hangs_after_effect()),
    ];
    for op in [Op::Image, Op::Create, Op::Start, Op::Remove, Op::Stop, Op::List, Op::Events] {
        for (what, strike) in strikes {
            let world = World::new(&[]).await;
            world.spin_up("neighbour").await.unwrap();
            strike(world.script.on(op).nth(1));
            let outcome = world.spin_up("m").await;
            if let Some(mandelbox) = world.mandelbox("m").filter(|_| outcome.is_ok()) {
                mandelbox.end(EndOrder { reason: EndReason::Stopped, grace: None });
            }
            world.gone("m").await;
            let neighbour = world.mandelbox("neighbour");
            assert!(
                neighbour.is_some_and(|m| m.state().phase == Phase::Running),
                "{op:?} {what}: the neighbour"
            );
            world.script.exit(&world.container("neighbour"), 0);
            world.clean().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_costs_one_mandelbox_only() {
    for op in [Op::Image, Op::Create, Op::Start, Op::Remove] {
        let world = World::new(&[]).await;
        world.spin_up("neighbour").await.unwrap();
        world.script.on(op).nth(1).panics();
        let outcome = world.spin_up("m").await;
        assert_eq!(outcome.is_ok(), op == Op::Remove, "{op:?}");
        world.host.stop(&"m".parse().unwrap(), None);
        world.gone("m").await;
        assert_eq!(world.mandelbox("neighbour").unwrap().state().phase, Phase::Running);
        world.script.exit(&world.container("neighbour"), 0);
        world.clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn any_call_of_the_control_plane_may_fail() {
    let faults = [Fault::Refuse(ErrorKind::Internal), Fault::LoseAnswer(ErrorKind::Unavailable), Fault::Hang];
    for operation in [Operation::Claim, Operation::SetStatus, Operation::Remove, Operation::Watch] {
        for fault in faults {
            let world = World::new(&[]).await;
            world.pubsub.fault_next(operation, 1, fault);
            let outcome = world.spin_up("m").await;
            world.pubsub.heal();
            if let Some(mandelbox) = world.mandelbox("m").filter(|_| outcome.is_ok()) {
                mandelbox.end(EndOrder { reason: EndReason::Stopped, grace: None });
            }
            world.gone("m").await;
            // A claim whose answer was lost leaves a row that is CONNECTING and nobody's: it is forgotten.
            world.clean().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn leases_return_only_after_the_container_is_gone() {
    let world = World::new(&[]).await;
    world.spin_up("m").await.unwrap();
    world.script.on(Op::Remove).fails(ErrorKind::Unavailable);
    world.script.exit(&world.container("m"), 1);
    world.until("end of the process", || world.mandelbox("m").unwrap().is_ending()).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.shared.pools.ports.held(), 3);
    assert_eq!(world.shared.records.all().unwrap().0.len(), 1, "a later service would find it");
    world.script.relent();
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_port_taken_meanwhile_is_exchanged_for_another() {
    let world = World::new(&[]).await;
    world.script.on(Op::Start).nth(1).fails(ErrorKind::AddressInUse);
    let answer = world.spin_up("m").await.unwrap();
    let spec = world.script.spec(&world.container("m")).unwrap();
    let published: Vec<_> = spec.ports.iter().map(|port| port.host).collect();
    assert_eq!(published, answer.ports.iter().map(|(_, host)| *host).collect::<Vec<_>>());
    let written =
        world.shared.root.of(&"m".parse().unwrap()).join("resourceMappings/hostPort_for_my_32262_tcp");
    assert_eq!(std::fs::read_to_string(written).unwrap(), published[0].to_string());
    world.script.exit(&world.container("m"), 0);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn ports_taken_again_and_again_are_an_error_in_the_end() {
    let world = World::new(&[]).await;
    world.script.on(Op::Start).fails(ErrorKind::AddressInUse);
    assert!(world.spin_up("m").await.is_err());
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_deleted_or_dying_ends_its_mandelbox_at_any_phase() {
    for hang in [None, Some(Op::Image), Some(Op::Create), Some(Op::Start)] {
        for dying in [false, true] {
            let world = World::new(&[]).await;
            if let Some(op) = hang {
                world.script.on(op).hangs();
            }
            world.allocate("m").await;
            world.until("owner", || world.mandelbox("m").is_some()).await;
            world.until("claim", || world.status("m") == Some(MandelboxStatus::Connecting)).await;
            let id: MandelboxId = "m".parse().unwrap();
            if dying {
                let name = &world.shared.facts.name;
                world.pubsub.set_status(name, &id, MandelboxStatus::Dying).await.unwrap();
            } else {
                world.pubsub.delete_mandelbox(&id);
            }
            world.gone("m").await;
            world.script.relent();
            world.clean().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_asks_in_time() {
    let world = World::new(&[]).await;
    world.allocate("m").await;
    world.until("owner", || world.mandelbox("m").is_some()).await;
    world.gone("m").await;
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_application_that_dies_or_never_gets_ready_fails_the_request() {
    let world = World::new(&["mandelbox.command=[\"exit-at-once\", \"3\"]"]).await;
    let error = world.spin_up("m").await.unwrap_err();
    assert!(error.to_string().contains("exited with status 3"), "{error}");
    world.clean().await;
    let world = World::new(&["mandelbox.command=[\"never-ready\"]"]).await;
    assert_eq!(world.spin_up("m").await.unwrap_err().status(), 500);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_restarts_is_heard_again() {
    for containers in [Containers::RunOn, Containers::Die, Containers::Vanish] {
        let world = World::new(&[]).await;
        world.spin_up("m").await.unwrap();
        world.script.restart(containers);
        if containers == Containers::RunOn {
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!(world.mandelbox("m").unwrap().state().phase, Phase::Running);
            world.script.exit(&world.container("m"), 0);
        }
        world.clean().await;
        world.spin_up("after").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_exit_while_the_engine_is_not_heard_is_noticed() {
    let world = World::new(&[]).await;
    world.spin_up("m").await.unwrap();
    world.script.on(Op::Events).nth(1).fails(ErrorKind::Unavailable);
    world.script.cut_events();
    world.script.exit(&world.container("m"), 0);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_removed_by_somebody_else_ends_its_mandelbox() {
    let world = World::new(&[]).await;
    world.spin_up("m").await.unwrap();
    world.script.remove(&world.container("m"));
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn rows_that_come_while_the_control_plane_is_not_heard_are_not_missed() {
    let world = World::new(&[]).await;
    world.spin_up("before").await.unwrap();
    world.pubsub.fault_next(Operation::Watch, 3, Fault::Refuse(ErrorKind::Unavailable));
    world.pubsub.disconnect();
    world.allocate("during").await;
    assert!(timeout(LONG, world.ask("during")).await.unwrap().is_ok());
    assert_eq!(world.mandelbox("before").unwrap().state().phase, Phase::Running, "sessions are untouched");
}

#[tokio::test(start_paused = true)]
async fn the_control_plane_away_ends_no_session_and_is_told_later() {
    let world = World::new(&[]).await;
    world.pubsub.fault(Operation::SetStatus, Fault::Refuse(ErrorKind::Unavailable));
    assert!(world.spin_up("m").await.is_ok());
    assert_eq!(world.status("m"), Some(MandelboxStatus::Connecting));
    world.pubsub.heal();
    world.until("report", || world.status("m") == Some(MandelboxStatus::Running)).await;
}

#[tokio::test(start_paused = true)]
async fn draining_lets_sessions_run_until_the_deadline_and_refuses_new_rows() {
    let mut world = World::new(&["drain.deadline=1h"]).await;
    world.spin_up("session").await.unwrap();
    world.pubsub.set_instance_status(&world.shared.facts.name, InstanceStatus::Draining);
    world.until("drain", || world.host.condition().draining.is_some()).await;
    world.allocate("late").await;
    world.until("refusal", || world.status("late").is_none()).await;
    assert!(world.mandelbox("late").is_none());
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(world.mandelbox("session").unwrap().state().phase, Phase::Running);
    assert_eq!(world.drained().await, DrainCause::ControlPlane);
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_order_hurries_a_drain() {
    let mut world = World::new(&["drain.deadline=1h"]).await;
    world.spin_up("session").await.unwrap();
    let order = DrainOrder { cause: DrainCause::Signal, deadline: None, force: false };
    world.host.drain(order);
    world.until("drain", || world.host.condition().draining.is_some()).await;
    let begun = Instant::now();
    world.host.drain(DrainOrder { deadline: Some(Duration::ZERO), force: true, ..order });
    assert_eq!(world.drained().await, DrainCause::Signal);
    assert!(begun.elapsed() < Duration::from_secs(60));
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_over_a_dead_engine_ends_and_leaves_a_record() {
    let mut world = World::new(&["drain.deadline=0s"]).await;
    world.spin_up("m").await.unwrap();
    world.script.go_down();
    world.host.drain(DrainOrder { cause: DrainCause::Signal, deadline: None, force: false });
    world.drained().await;
    assert_eq!(world.shared.records.all().unwrap().0.len(), 1);
    assert_eq!(world.shared.pools.ports.held(), 3, "what may be in use is not given out again");
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_the_control_plane_away_waits_for_sessions_only() {
    for session in [false, true] {
        let mut world = World::new(&["drain.deadline=6h"]).await;
        if session {
            world.spin_up("m").await.unwrap();
        }
        for operation in [Operation::MarkDraining, Operation::SetStatus, Operation::Remove] {
            world.pubsub.fault(operation, Fault::Refuse(ErrorKind::Unavailable));
        }
        world.host.drain(DrainOrder { cause: DrainCause::Signal, deadline: None, force: false });
        world.until("drain", || world.host.condition().draining.is_some()).await;
        let begun = Instant::now();
        if session {
            world.script.exit(&world.container("m"), 0);
        }
        world.drained().await;
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_strangers_container_of_the_same_name_is_left_alone() {
    let world = World::new(&[]).await;
    let mut spec = stranger();
    spec.name = "browsers-chrome-m".parse().unwrap();
    let theirs = world.shared.runtime.create(&spec).await.unwrap();
    assert_eq!(world.spin_up("m").await.unwrap_err().status(), 500);
    world.until("end of the mandelbox", || world.shared.board.is_empty()).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let left: Vec<_> = world.script.containers().into_iter().map(|container| container.id).collect();
    assert_eq!(left, [theirs]);
}

#[tokio::test(start_paused = true)]
async fn a_strangers_directory_of_the_same_name_is_left_alone() {
    let world = World::new(&[]).await;
    let theirs = world.shared.root.of(&"m".parse().unwrap());
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("thesis"), "").unwrap();
    assert!(world.spin_up("m").await.is_err());
    world.until("end of the mandelbox", || world.shared.board.is_empty()).await;
    assert!(theirs.join("thesis").exists());
}

#[tokio::test(start_paused = true)]
async fn an_id_given_to_another_user_never_reaches_the_first_one() {
    for claim_is_slow in [false, true] {
        let world = World::new(&[]).await;
        if claim_is_slow {
            world.pubsub.fault(Operation::Claim, Fault::Hang);
            world.allocate("m").await;
            world.until("owner", || world.mandelbox("m").is_some()).await;
        } else {
            world.spin_up("m").await.unwrap();
        }
        // Both in one step, as a watch that collapses them shows it.
        let id: MandelboxId = "m".parse().unwrap();
        let (name, before) = world.pubsub.mandelbox(&id).unwrap();
        let user = "another".parse().unwrap();
        let (status, created_ms) = (MandelboxStatus::Allocated, before.created_ms + 1);
        let anew = MandelboxRow { user, status, created_ms, ..before };
        world.pubsub.put_mandelbox(&name, anew).unwrap();
        world.pubsub.heal();
        let first = world.mandelbox("m").unwrap();
        world.until("end of the first", || matches!(first.state().phase, Phase::Gone(_))).await;
        world
            .until("the second", || world.mandelbox("m").is_some_and(|m| m.row.user.as_str() == "another"))
            .await;
        assert!(timeout(LONG, world.ask("m")).await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_removal_of_a_row_is_tried_again() {
    let world = World::new(&[]).await;
    world.spin_up("m").await.unwrap();
    world.pubsub.fault_next(Operation::Remove, 1, Fault::Refuse(ErrorKind::Denied));
    world.script.exit(&world.container("m"), 0);
    world.clean().await;
}

/// Disk work goes on when its future is dropped; on real threads the removal could overtake it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_deleted_at_once_leave_nothing() {
    let world = World::new(&[]).await;
    for n in 0..300 {
        let id = format!("m{n}");
        world.allocate(&id).await;
        tokio::time::sleep(Duration::from_micros(rand::random_range(0..600))).await;
        world.pubsub.delete_mandelbox(&id.parse().unwrap());
    }
    world.clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_nobody_owns_is_removed() {
    let world = World::new(&[]).await;
    world.script.on(Op::Create).nth(1).hangs_after_effect();
    // The removal sees nothing yet, as when a slow engine creates after it was given up.
    assert!(world.spin_up("m").await.is_err());
    world.clean().await;
}

/// Many mandelboxes, orders and faults in random order; the seed is in the failure's message.
#[tokio::test(start_paused = true)]
async fn no_mixture_of_faults_leaves_anything() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let world = World::new(&["drain.deadline=0s"]).await;
        let ids: Vec<_> = (0..12).map(|n| format!("m{n}")).collect();
        let asks = futures::future::join_all(ids.iter().map(|id| world.spin_up(id)));
        let chaos = async {
            for _ in 0..random.random_range(5..40) {
                disturb(&world, &ids, &mut random);
                tokio::time::sleep(Duration::from_millis(random.random_range(0..3000))).await;
            }
            world.script.relent();
            world.pubsub.heal();
        };
        let (outcomes, ()) = tokio::join!(asks, chaos);
        assert_eq!(outcomes.len(), ids.len(), "seed {seed}: every client has an answer");
        let running: BTreeSet<_> = world.shared.board.all().iter().map(|m| m.id().clone()).collect();
        for id in running {
            world.host.stop(&id, Some(Duration::ZERO));
        }
        timeout(LONG, world.clean()).await.unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

fn disturb(world: &World, ids: &[String], random: &mut StdRng) {
    let id = &ids[random.random_range(0..ids.len())];
    let ops = [Op::Image, Op::Create, Op::Start, Op::Remove, Op::Stop, Op::List, Op::Events];
    let op = ops[random.random_range(0..ops.len())];
    let operations = [Operation::Claim, Operation::SetStatus, Operation::Remove, Operation::Watch];
    let operation = operations[random.random_range(0..operations.len())];
    match random.random_range(0..10) {
        0 => world.script.on(op).nth(1).fails(ErrorKind::Unavailable),
        1 => world.script.on(op).nth(1).answer_is_lost(ErrorKind::Internal),
        2 => world.script.on(op).nth(1).hangs(),
        3 => world.script.restart(Containers::Die),
        4 => world.script.restart(Containers::Vanish),
        5 => world.pubsub.disconnect(),
        6 => world.pubsub.fault_next(operation, 2, Fault::LoseAnswer(ErrorKind::Unavailable)),
        7 => world.pubsub.delete_mandelbox(&id.parse().unwrap()),
        8 => drop(world.mandelbox(id).map(|m| world.script.exit(&m.container, 1))),
        _ => drop(world.host.stop(&id.parse().unwrap(), None)),
    }
}
