//! What a host reports while it lives, whatever becomes of its figures and its control plane.

use async_trait::async_trait;
use host_core::{
    gpu::{self, Gpu, GpuDevice, GpuHealth, GpuStats},
    pubsub::MandelboxRow,
};
use tokio::time::Instant;

use super::*;
use crate::monitor;

/// A driver that does not answer any more.
#[derive(Debug)]
struct Hung;

#[async_trait]
impl Gpu for Hung {
    async fn enumerate(&self) -> gpu::Result<Vec<GpuDevice>> {
        std::future::pending().await
    }

    async fn stats(&self) -> gpu::Result<Vec<GpuStats>> {
        std::future::pending().await
    }

    async fn health(&self) -> gpu::Result<Vec<(String, GpuHealth)>> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_go_on_whatever_the_figures_and_the_control_plane_do() {
    let world = World::new(&[]).await;
    let (condition, seen) = watch::channel(Condition::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(monitor::collect(world.shared.clone(), Arc::new(Hung), condition));
    tasks.spawn(monitor::report(world.shared.clone(), seen));
    let begun = Instant::now();
    world.pubsub.fault_next(Operation::Heartbeat, 2, Fault::Refuse(ErrorKind::Unavailable));
    world.until("two failed heartbeats", || world.pubsub.calls(Operation::Heartbeat) == 2).await;
    world.pubsub.fault(Operation::Heartbeat, Fault::Hang);
    world.until("one that hangs", || world.pubsub.calls(Operation::Heartbeat) == 3).await;
    assert_eq!(world.pubsub.instance(&world.shared.facts.name).unwrap().heartbeat.unwrap().at_ms, 0);
    world.pubsub.heal();
    world.until("the next one", || world.pubsub.calls(Operation::Heartbeat) == 4).await;
    let written = || world.pubsub.instance(&world.shared.facts.name)?.heartbeat.filter(|beat| beat.at_ms > 0);
    world.until("a heartbeat that is written", || written().is_some()).await;
    // About a minute each, but for one that came when the GPUs were no longer seen; the one that hung had its own deadline.
    let took = begun.elapsed().as_secs();
    assert!((3 * 54..=4 * 66 + 10).contains(&took), "four heartbeats took {took} s");
}

#[tokio::test(start_paused = true)]
async fn gpus_that_nobody_sees_get_no_new_mandelboxes() {
    let world = World::new(&[]).await;
    let gpus = &world.shared.pools.gpus;
    assert_eq!(gpus.capacity(), Some(75));
    let figures = vec![GpuStats { memory_free_bytes: 4096, ..GpuStats::default() }];
    let (condition, seen) = watch::channel(Condition { gpus: figures, ..Condition::default() });
    let mut tasks = JoinSet::new();
    tasks.spawn(monitor::collect(world.shared.clone(), Arc::new(Hung), condition));
    world.until("doubt", || gpus.capacity() == Some(0)).await;
    let error = gpus.lease(&"late".parse().unwrap()).unwrap_err();
    assert_eq!(error.unusable, 75);
    world.until("end of the old figures", || seen.borrow().gpus.is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_gpu_is_told_at_once_but_not_those_who_are_on_it() {
    let world = World::new(&[]).await;
    let gpus = &world.shared.pools.gpus;
    let _held = gpus.lease(&"held".parse().unwrap()).unwrap();
    let (condition, seen) = watch::channel(Condition::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(monitor::report(world.shared.clone(), seen));
    let written = || Some(world.pubsub.instance(&world.shared.facts.name)?.heartbeat?.capacity);
    world.until("the first one", || written() == Some(54)).await;
    let begun = Instant::now();
    gpus.doubt("silence");
    condition.send_modify(|_| ());
    world.until("one that says so", || written() == Some(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(50), "it came with the next one");
}

#[tokio::test(start_paused = true)]
async fn stale_rows_go_after_the_times_that_are_set() {
    let settings = ["pubsub.stale_check=1s", "pubsub.stale_allocated=30s", "pubsub.stale_connecting=2m"];
    let world = World::new(&settings).await;
    // So that it takes nothing on.
    world.pubsub.fault(Operation::Watch, Fault::Hang);
    let mut tasks = JoinSet::new();
    tasks.spawn(monitor::report(world.shared.clone(), watch::channel(Condition::default()).1));
    let begun = Instant::now();
    for (id, status) in [("a", MandelboxStatus::Allocated), ("c", MandelboxStatus::Connecting)] {
        let row = MandelboxRow {
            id: id.parse().unwrap(),
            user: "u".parse().unwrap(),
            session: "s".parse().unwrap(),
            app: None,
            status,
            created_ms: world.pubsub.now_ms(),
        };
        world.pubsub.put_mandelbox(&world.shared.facts.name, row).unwrap();
    }
    for (id, after) in [("a", 30), ("c", 120)] {
        world.until("end of the stale row", || world.status(id).is_none()).await;
        let took = begun.elapsed().as_secs();
        assert!((after..after + 3).contains(&took), "{id} went after {took} s");
    }
}

#[tokio::test(start_paused = true)]
async fn watches_that_show_one_state_and_end_are_made_ever_more_rarely() {
    let world = World::new(&[]).await;
    let minute = async {
        loop {
            world.pubsub.disconnect();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), minute).await.unwrap_err();
    let watches = world.pubsub.calls(Operation::Watch);
    assert!((10..40).contains(&watches), "{watches} watches in a minute");
}
