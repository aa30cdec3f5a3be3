//! Samples, their percentiles, and how they are shown.

use std::{
    fmt,
    io::{Write, stdout},
    time::Duration,
};

use anyhow::Result;

/// Prints a line.
pub(crate) fn say(line: fmt::Arguments<'_>) -> Result<()> {
    Ok(writeln!(stdout().lock(), "{line}")?)
}

/// Prints the heading of a section.
pub(crate) fn title(text: &str) -> Result<()> {
    say(format_args!("\n## {text}\n"))
}

/// Samples of one figure, in ms.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64() * 1e3);
    }

    /// The smallest sample that at least `share` of all do not exceed; NaN of no samples.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a list of some thousand"
        )]
        let place = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.percentile(0.5)
    }
}

/// The columns of a table: a heading and a share, 1 being the maximum.
pub(crate) type Columns = &'static [(&'static str, f64)];

pub(crate) const FEW: Columns = &[("p50", 0.5), ("p95", 0.95), ("max", 1.0)];
pub(crate) const MANY: Columns = &[("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// Prints the table's head.
pub(crate) fn head(columns: Columns) -> Result<()> {
    let names: String = columns.iter().map(|(name, _)| format!("{name:>10}")).collect();
    say(format_args!("{:<44}{:>7}{names}", "ms", "n"))
}

/// Prints one line of a table.
pub(crate) fn row(name: &str, samples: &Samples, columns: Columns) -> Result<()> {
    let values = columns.iter().map(|(_, share)| samples.percentile(*share));
    let values: String = values.map(|value| format!("{value:>10.2}")).collect();
    say(format_args!("{name:<44}{:>7}{values}", samples.0.len()))
}

/// Prints two lines, how far they are apart and their ratio.
pub(crate) fn compare(service: (&str, &Samples), floor: (&str, &Samples)) -> Result<()> {
    head(FEW)?;
    row(service.0, service.1, FEW)?;
    row(floor.0, floor.1, FEW)?;
    let pairs = FEW.iter().map(|(_, share)| (service.1.percentile(*share), floor.1.percentile(*share)));
    let differences: String =
        pairs.clone().map(|(service, floor)| format!("{:>+10.2}", service - floor)).collect();
    let ratios: String = pairs.map(|(service, floor)| format!("{:>10.3}", service / floor)).collect();
    say(format_args!("{:<51}{differences}\n{:<51}{ratios}", "difference", "ratio"))
}

/// Prints a goal and whether it was met.
pub(crate) fn goal(text: &str, met: bool) -> Result<()> {
    say(format_args!("goal: {text}: {}", if met { "met" } else { "MISSED" }))
}

/// Whether the service's median is at most 5 % or 10 ms over the floor's.
pub(crate) fn near(service: &Samples, floor: &Samples) -> bool {
    let (service, floor) = (service.p50(), floor.p50());
    service <= floor * 1.05 || service <= floor + 10.0
}
