//! `db …`: acts on the database directly; no service needs to run.

use host_config::Loaded;
use secrecy::SecretString;

use super::{failure::Failure, output::Out, progress::Progress};
use crate::plugins;

pub(crate) async fn migrate(
    loaded: &Loaded,
    url: Option<SecretString>,
    out: &mut Out,
) -> Result<(), Failure> {
    let progress = Progress::new("migrating the schema");
    let done = plugins::migrate(loaded, url).await;
    drop(progress);
    out.line(format_args!("{}", done?))?;
    Ok(())
}
