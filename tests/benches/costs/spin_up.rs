//! A mandelbox through the service against the same container asked for directly, and its removal likewise.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use futures::future::{join_all, try_join_all};
use host_tests::{engine::Engine, service::Service, wait::until};

use crate::{
    client::{Admin, spin_up},
    figures::{FEW, Samples, compare, goal, head, near, row, title},
    floor::{Floor, Parts, Prepared},
    rounds,
};

const AT_ONCE: usize = 20;
const GONE: Duration = Duration::from_secs(30);
/// How the mandelboxes of the rounds end, in turns.
const ENDS: [End; 3] = [End::Kill, End::Stop, End::Exit];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Stopped without a grace.
    Kill,
    /// Stopped with the configured grace.
    Stop,
    /// The application ends by itself; there is nothing to compare that with.
    Exit,
}

/// Everything that is compared, and on what.
struct Bench {
    service: Service,
    admin: Admin,
    floor: Floor,
}

/// What the rounds of single mandelboxes took.
#[derive(Default)]
struct Alone {
    service: Samples,
    floor: Samples,
    stages: BTreeMap<String, Samples>,
    parts: [Samples; 3],
    service_ends: BTreeMap<End, Samples>,
    floor_ends: BTreeMap<End, Samples>,
}

/// What the rounds of many mandelboxes at once took.
#[derive(Default)]
struct Crowd {
    service: Samples,
    floor: Samples,
    service_all: Samples,
    floor_all: Samples,
    stages: BTreeMap<String, Samples>,
    parts: [Samples; 3],
}

pub(crate) async fn measure(engine: &Engine) -> Result<()> {
    let slots_for_all = format!("gpu.sim.count={AT_ONCE}");
    let service = Service::on(engine).set(slots_for_all).start().await?;
    let admin = Admin::of(&service)?;
    // Also warms the engine up: its first start is slow.
    service.spin_up("model").await?;
    let directory = service.root().join("model");
    let floor = Floor::like(engine.client(), "test-mandelbox-model", directory).await?;
    let mut bench = Bench { service, admin, floor };
    bench.check().await?;

    let mut alone = Alone::default();
    for round in 0..rounds()? {
        bench.one(round, &mut alone).await?;
    }
    alone.report()?;
    let mut crowd = Crowd::default();
    for round in 0..(rounds()? / 5).max(1) {
        bench.many(round, &mut crowd).await?;
    }
    crowd.report()?;
    bench.service.end_cleanly().await
}

impl Bench {
    async fn check(&mut self) -> Result<()> {
        let mut one = self.floor.prepare()?;
        let name = one.name.clone();
        one.spin_up().await?;
        self.floor.check(&name).await?;
        self.floor.remove(&name).await.map(drop)
    }

    /// One mandelbox and one container, in turns.
    async fn one(&mut self, round: usize, alone: &mut Alone) -> Result<()> {
        let end = ENDS[round % ENDS.len()];
        let id = format!("alone-{round}");
        alone.service.add(spin_up(&self.service, &id).await?);
        note(&mut alone.stages, self.admin.timings(&id).await?);
        alone.service_ends.entry(end).or_default().add(self.end(&id, end).await?);

        let mut one = self.floor.prepare()?;
        let name = one.name.clone();
        let parts = one.spin_up().await?;
        alone.floor.add(parts.all());
        note_parts(&mut alone.parts, &parts);
        let ended = match end {
            End::Stop => self.floor.stop_and_remove(&name).await?,
            End::Kill | End::Exit => self.floor.remove(&name).await?,
        };
        if end != End::Exit {
            alone.floor_ends.entry(end).or_default().add(ended);
        }
        Ok(())
    }

    /// From the order until nothing of the mandelbox is left and its leases are free.
    async fn end(&self, id: &str, end: End) -> Result<Duration> {
        match end {
            End::Kill => self.admin.stop(id, Some(Duration::ZERO)).await,
            End::Stop => self.admin.stop(id, None).await,
            End::Exit => {
                let answer = self.service.spin_up(id).await?; // the same as before, from memory
                let begun = Instant::now();
                // The connection may break before the answer: the server dies of this request.
                let _ = self.service.post(&answer, "/exit?code=0").await;
                let gone = async || self.admin.is_gone(id).await.is_ok_and(|gone| gone).then_some(());
                until("end of the mandelbox", GONE, gone).await?;
                Ok(begun.elapsed())
            }
        }
    }

    /// Many mandelboxes at once, then as many containers at once.
    async fn many(&mut self, round: usize, crowd: &mut Crowd) -> Result<()> {
        let ids: Vec<_> = (0..AT_ONCE).map(|n| format!("crowd-{round}-{n}")).collect();
        let begun = Instant::now();
        let took = try_join_all(ids.iter().map(|id| spin_up(&self.service, id))).await?;
        crowd.service_all.add(begun.elapsed());
        took.into_iter().for_each(|took| crowd.service.add(took));
        for id in &ids {
            note(&mut crowd.stages, self.admin.timings(id).await?);
        }
        try_join_all(ids.iter().map(|id| self.admin.stop(id, Some(Duration::ZERO)))).await?;

        let mut prepared: Vec<_> = (0..AT_ONCE).map(|_| self.floor.prepare()).collect::<Result<_>>()?;
        let names: Vec<_> = prepared.iter().map(|one| one.name.clone()).collect();
        let begun = Instant::now();
        let parts = join_all(prepared.iter_mut().map(Prepared::spin_up)).await;
        crowd.floor_all.add(begun.elapsed());
        for parts in parts {
            let parts = parts?;
            crowd.floor.add(parts.all());
            note_parts(&mut crowd.parts, &parts);
        }
        try_join_all(names.iter().map(|name| self.floor.remove(name))).await?;
        Ok(())
    }
}

fn note(stages: &mut BTreeMap<String, Samples>, timings: Vec<(String, Duration)>) {
    for (stage, took) in timings {
        stages.entry(stage).or_default().add(took);
    }
}

fn note_parts([create, start, ready]: &mut [Samples; 3], parts: &Parts) {
    create.add(parts.create);
    start.add(parts.start);
    ready.add(parts.ready);
}

impl Alone {
    fn report(&self) -> Result<()> {
        title("Spin-up, one at a time")?;
        compare(
            ("service, from request to answer", &self.service),
            ("floor: create, start, ready", &self.floor),
        )?;
        goal("at most 5 % or 10 ms over the floor at p50", near(&self.service, &self.floor))?;
        stages(&self.stages, &self.parts)?;
        title("Removal, one at a time, until all leases are free")?;
        let of = |ends: &BTreeMap<End, Samples>, end| ends.get(&end).cloned().unwrap_or_default();
        let kill = (of(&self.service_ends, End::Kill), of(&self.floor_ends, End::Kill));
        let stop = (of(&self.service_ends, End::Stop), of(&self.floor_ends, End::Stop));
        compare(("service, stop without grace", &kill.0), ("floor: forced removal", &kill.1))?;
        compare(("service, stop with grace", &stop.0), ("floor: stop, then removal", &stop.1))?;
        row("service, exit of the application", &of(&self.service_ends, End::Exit), FEW)
    }
}

impl Crowd {
    fn report(&self) -> Result<()> {
        title(&format!("Spin-up, {AT_ONCE} at once"))?;
        compare(
            ("service, from request to answer", &self.service),
            ("floor: create, start, ready", &self.floor),
        )?;
        compare(
            ("service, the last of a round", &self.service_all),
            ("floor, the last of a round", &self.floor_all),
        )?;
        goal("at most 5 % or 10 ms over the floor at p50", near(&self.service, &self.floor))?;
        stages(&self.stages, &self.parts)
    }
}

/// Where the time goes. The service's stages overlap: lease; claim | image | prepare; create, start | client,
/// deliver; application; report.
fn stages(stages: &BTreeMap<String, Samples>, parts: &[Samples; 3]) -> Result<()> {
    title("  its parts")?;
    head(FEW)?;
    for (name, samples) in ["floor: create", "floor: start", "floor: ready"].into_iter().zip(parts) {
        row(name, samples, FEW)?;
    }
    stages.iter().try_for_each(|(name, samples)| row(&format!("service: {name}"), samples, FEW))
}
