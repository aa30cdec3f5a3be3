//! What EC2 has decided about this instance: it says so in the metadata a while before it does it.
//!
//! | where | says | the drain's time |
//! |---|---|---|
//! | `spot/instance-action` | a spot instance is taken back | until the time it names |
//! | `autoscaling/target-lifecycle-state` | its group lets it go | `interruption.autoscaling_time` |
//! | `events/recommendations/rebalance` | it will probably be taken back | the usual, `drain.deadline` |
//!
//! From each time [`InterruptionSettings::reserve`] and the grace are kept back, so that mandelboxes are not only told to
//! end in time but are gone. Each notice is obeyed once; a later one can only hurry the drain. A metadata service that
//! fails is told once and asked again; it never ends anything.

use std::time::{Duration, SystemTime};

use host_config::{DrainSettings, InterruptionSettings, Metadata, Settings};
use host_core::planner::DrainCause;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::{
    host::DrainOrder,
    identity::{Imds, ImdsError},
};

/// EC2's promise for spot instances; stands in for a time that cannot be read.
const SPOT_NOTICE: Duration = Duration::from_secs(120);

/// Something that EC2 is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    /// `None` where its time cannot be read.
    Spot(Option<SystemTime>),
    Autoscaling,
    Rebalance,
}

#[derive(Deserialize)]
struct InstanceAction {
    time: String,
}

/// Passes orders to drain to `order`, until it is dropped. Returns at once where there is nothing to watch.
pub async fn watch(settings: &Settings, order: impl Fn(DrainOrder)) {
    if settings.instance.metadata != Metadata::Ec2 || settings.interruption.poll.is_zero() {
        return;
    }
    match Imds::new(settings.instance.metadata_endpoint.as_deref()) {
        Ok(imds) => Watch { imds, of: &settings.interruption, drain: &settings.drain }.run(order).await,
        // Not to be expected: the service has found out who it is from there.
        Err(error) => tracing::error!(error = %host_core::chain(&error), "interruptions are not watched"),
    }
}

struct Watch<'a> {
    imds: Imds,
    of: &'a InterruptionSettings,
    drain: &'a DrainSettings,
}

impl Watch<'_> {
    async fn run(self, order: impl Fn(DrainOrder)) {
        let mut ticks = interval(self.of.poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut obeyed = Vec::new();
        let mut away = false;
        loop {
            ticks.tick().await;
            let seen = self.look().await;
            match (&seen, away) {
                (Err(error), false) => tracing::warn!(
                    error = %host_core::chain(error),
                    "the metadata service cannot be asked whether this instance is interrupted; asking on"
                ),
                (Ok(_), true) => tracing::info!("the metadata service answers again"),
                _ => {}
            }
            away = seen.is_err();
            for notice in seen.unwrap_or_default() {
                if !obeyed.contains(&notice) {
                    order(self.obey(notice));
                    obeyed.push(notice);
                }
            }
        }
    }

    /// What there is at the moment.
    async fn look(&self) -> Result<Vec<Notice>, ImdsError> {
        let mut notices = Vec::new();
        if let Some(text) = self.value("spot/instance-action").await? {
            notices.push(Notice::Spot(taken_back(&text)));
        }
        if self.of.autoscaling {
            let state = self.value("autoscaling/target-lifecycle-state").await?;
            if state.is_some_and(|state| state.trim() == "Terminated") {
                notices.push(Notice::Autoscaling);
            }
        }
        if self.of.rebalance && self.value("events/recommendations/rebalance").await?.is_some() {
            notices.push(Notice::Rebalance);
        }
        Ok(notices)
    }

    async fn value(&self, path: &str) -> Result<Option<String>, ImdsError> {
        self.imds.get(&format!("meta-data/{path}"), Instant::now() + self.of.poll).await
    }

    fn obey(&self, notice: Notice) -> DrainOrder {
        let left = match notice {
            Notice::Spot(Some(at)) => Some(at.duration_since(SystemTime::now()).unwrap_or_default()),
            Notice::Spot(None) => Some(SPOT_NOTICE - self.of.poll.min(SPOT_NOTICE)),
            Notice::Autoscaling => Some(self.of.autoscaling_time),
            Notice::Rebalance => None,
        };
        let kept = self.of.reserve + self.drain.grace;
        // Never longer than without the notice.
        let deadline = left.map(|left| left.saturating_sub(kept).min(self.drain.deadline));
        tracing::warn!(
            notice = ?notice,
            left_s = left.map(|left| left.as_secs()),
            sessions_end_in_s = deadline.map(|deadline| deadline.as_secs()),
            "EC2 is about to interrupt this instance; draining"
        );
        DrainOrder { cause: DrainCause::Interruption, deadline, force: false }
    }
}

/// When the instance is taken back.
fn taken_back(text: &str) -> Option<SystemTime> {
    let action = serde_json::from_str::<InstanceAction>(text).ok()?;
    humantime::parse_rfc3339(&action.time).ok()
}
