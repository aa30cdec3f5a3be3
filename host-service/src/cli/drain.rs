//! `drain`

use std::time::Duration;

use super::{
    args::DrainArgs,
    failure::Failure,
    mandelbox::millis,
    output::{Out, YELLOW},
    progress::Progress,
};
use crate::{
    admin::views::DrainRequest,
    client::{Client, ClientError},
};

/// How often a waiting command looks whether the service has ended.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) async fn drain(args: &DrainArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let request = DrainRequest { force: args.force, deadline_ms: args.deadline.map(millis) };
    let ordered = client.drain(&request).await?;
    if !args.wait {
        return Ok(
            out.line(format_args!("{YELLOW}draining{YELLOW:#}; mandelboxes left: {}", ordered.mandelboxes))?
        );
    }
    until_ended(client).await?;
    Ok(out.line(format_args!("drained; the service has ended"))?)
}

/// The service removes its socket when nothing is left.
async fn until_ended(client: &Client) -> Result<(), Failure> {
    let progress = Progress::new("draining");
    loop {
        match client.status().await {
            Ok(status) => {
                let left: usize = status.mandelboxes.values().sum();
                progress.now(format!("draining; mandelboxes left: {left}"));
            }
            Err(ClientError::NoService { .. }) => return Ok(()),
            // Its connections are cut when it ends; whether it has, the next look tells.
            Err(ClientError::Broken { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
}
