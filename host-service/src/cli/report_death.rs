//! `report-death`.

use std::env;

use host_config::Loaded;

use super::{failure::Failure, output::Out};
use crate::death::{self, Manner};

pub(crate) async fn report(loaded: &Loaded, out: &mut Out) -> Result<(), Failure> {
    let manner = Manner {
        result: env::var("SERVICE_RESULT").ok(),
        code: env::var("EXIT_CODE").ok(),
        status: env::var("EXIT_STATUS").ok(),
    };
    match death::report(loaded, &manner).await? {
        None => out.line(format_args!("nothing to report: no host service died without a word"))?,
        Some(report) if report.left.is_empty() => {
            out.line(format_args!("{} died; it left no mandelbox", report.instance))?;
        }
        Some(report) => {
            let left: Vec<_> = report.left.iter().map(ToString::to_string).collect();
            out.line(format_args!("{} died; it left {}", report.instance, left.join(", ")))?;
        }
    }
    Ok(())
}
