//! `mandelbox …`

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    args::{AllocateArgs, LogsArgs, MandelboxCommand, SpinUpArgs, StopArgs},
    failure::Failure,
    output::{BOLD, Fields, GREEN, Out},
    progress::Progress,
};
use crate::{
    admin::views::{
        AllocateRequest, LogsQuery, MandelboxView, PortView, SpinUpRequest, SpinUpView, StopRequest,
    },
    client::Client,
};

pub(crate) async fn execute(
    command: MandelboxCommand,
    client: &Client,
    out: &mut Out,
) -> Result<(), Failure> {
    match command {
        MandelboxCommand::SpinUp(args) => spin_up(args, client, out).await,
        MandelboxCommand::Allocate(args) => allocate(args, client, out).await,
        MandelboxCommand::List(args) => list(args.json, client, out).await,
        MandelboxCommand::Inspect { id } => Ok(out.json(&client.mandelbox(&id).await?)?),
        MandelboxCommand::Logs(args) => logs(&args, client, out).await,
        MandelboxCommand::Stop(args) => stop(&args, client, out).await,
    }
}

async fn spin_up(args: SpinUpArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let request = SpinUpRequest { app: args.app, id: args.id, user: args.user, json_data: args.json_data };
    let progress = Progress::new("spinning up a mandelbox");
    let view = client.spin_up(&request).await?;
    drop(progress);
    if args.output.json {
        return Ok(out.json(&view)?);
    }
    let SpinUpView { id, app, took_ms, .. } = &view;
    out.line(format_args!("mandelbox {BOLD}{id}{BOLD:#} ({app}) {GREEN}runs{GREEN:#} after {took_ms} ms"))?;
    let fields = Fields::default()
        .maybe("look at", view.url.as_ref())
        .with("ports", ports(&view.ports))
        .with("aes key", &view.aes_key.0)
        .with("stop it", format_args!("host-service mandelbox stop {id}"));
    Ok(out.fields(&fields)?)
}

async fn allocate(args: AllocateArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let request = AllocateRequest { app: Some(args.app), id: args.id, user: args.user };
    let view = client.allocate(&request).await?;
    if args.output.json {
        return Ok(out.json(&view)?);
    }
    Ok(out.line(format_args!("mandelbox {} ({}) is allocated to {}", view.id, view.app, view.user))?)
}

async fn list(json: bool, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let view = client.mandelboxes().await?;
    if json {
        return Ok(out.json(&view)?);
    }
    if view.mandelboxes.is_empty() && out.is_terminal() {
        return Ok(out.line(format_args!("no mandelboxes; start one with `host-service mandelbox spin-up`"))?);
    }
    let header = ["ID", "APP", "PHASE", "AGE", "PORTS", "TTY", "GPU", "USER"];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(out.table(&header, view.mandelboxes.iter().map(|mandelbox| row(mandelbox, now)).collect())?)
}

fn row(mandelbox: &MandelboxView, now: Duration) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        mandelbox.id.to_string(),
        mandelbox.app.to_string(),
        mandelbox.phase.clone(),
        age(now.saturating_sub(Duration::from_millis(mandelbox.created_unix_ms))),
        or_dash(Some(ports(&mandelbox.ports)).filter(|ports| !ports.is_empty())),
        or_dash(mandelbox.tty.map(|tty| tty.to_string())),
        or_dash(mandelbox.gpu.clone()),
        mandelbox.user.to_string(),
    ]
}

/// As the engines write them: host port, arrow, port inside.
fn ports(ports: &[PortView]) -> String {
    let port = |port: &PortView| format!("{}->{}", port.host, port.container);
    ports.iter().map(port).collect::<Vec<_>>().join(" ")
}

/// The largest unit is enough: `5s`, `3m`, `2h`, `9d`.
fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

async fn logs(args: &LogsArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let query = LogsQuery { follow: args.follow, tail: args.tail };
    let mut logs = client.logs(&args.id, query).await?;
    while let Some(piece) = logs.next().await? {
        out.bytes(&piece)?;
    }
    Ok(())
}

async fn stop(args: &StopArgs, client: &Client, out: &mut Out) -> Result<(), Failure> {
    let request = StopRequest { grace_ms: args.timeout.map(millis) };
    let progress = Progress::new(format!("stopping mandelbox {}", args.id));
    let view = client.stop(&args.id, &request).await?;
    drop(progress);
    match view.end.reason.as_str() {
        "stopped" => out.line(format_args!("mandelbox {} is gone", view.id))?,
        _ => out.line(format_args!(
            "mandelbox {} is gone; its end was under way already: {}",
            view.id, view.end.text
        ))?,
    }
    Ok(())
}

/// For the admin API.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (7_199, "1h"), (200_000, "2d")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
