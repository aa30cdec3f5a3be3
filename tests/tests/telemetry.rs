//! The real service with a console, a Sentry and a logz.io: what each of them is told, of the service's death above all,
//! and what none of them is told.
#![cfg(test)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use host_tests::{
    postgres::{Cluster, Database},
    service::{Answer, Builder, Service},
    wait::until,
};
use serde_json::{Value, json};
use telemetry_stand_in::{KEY, Mood, Options, Server, TOKEN};

const SOON: Duration = Duration::from_secs(30);
const DIED: &str = "the host service died without a word";

/// What clients and operators entrust to the service, each to be told from everything else.
const CANARIES: [&str; 6] = [
    "canary-of-the-database",
    "canary-of-the-cookies",
    "canary-of-the-bookmarks",
    "canary-of-the-json-data",
    "canary-of-the-config-token",
    "canary-of-the-access-token",
];

/// Everything around one host.
struct World {
    sentry: Server,
    logzio: Server,
    database: Database,
    _cluster: Cluster,
}

impl World {
    async fn new() -> Result<Self> {
        let [sentry, logzio] = [Server::start(Options::default())?, Server::start(Options::default())?];
        let cluster = Cluster::scratch().await?;
        let database = cluster.database()?;
        Ok(Self { sentry, logzio, database, _cluster: cluster })
    }

    /// All that is secret comes in by variables.
    fn host(&self) -> Result<Builder> {
        let builder = Service::with("[runtime]\nplugin = \"sim\"\n").profile("localdevwithdb");
        let spool = builder.scratch().join("spool");
        let builder = builder
            .set("telemetry.flush=5s")
            .set("telemetry.filter=debug")
            .set(format!("telemetry.logzio.url={}", self.logzio.url()))
            .set(format!("telemetry.logzio.spool={}", spool.display()))
            .set("telemetry.logzio.linger=50ms")
            .variable("USE_PROD_LOGGING", "1")
            .variable("LOGZIO_SHIPPING_TOKEN", TOKEN)
            .variable("SENTRY_DSN", self.sentry.dsn())
            .variable(
                "HOST_SERVICE__PUBSUB__POSTGRES__URL",
                self.database.url_of(&format!("postgres:{}", CANARIES[0])),
            );
        let migrated = builder.cli(&["db", "migrate"])?;
        ensure!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        Ok(builder)
    }

    fn allocate(&self) -> Result<String> {
        let id = self.database.sql(
            "SELECT mandelbox_id FROM cloud.allocate_mandelbox('ann', 'us-east-1', 'test/mandelbox', 's')",
        )?;
        ensure!(!id.is_empty(), "there is no host with room");
        Ok(id)
    }

    fn told_sentry(&self, what: &str) -> bool {
        self.sentry.events().iter().any(|event| event.to_string().contains(what))
    }

    fn told_logzio(&self, what: &str) -> Option<Value> {
        self.logzio.lines().into_iter().find(|line| line["message"].as_str() == Some(what))
    }

    /// Everything that left the host, but for the headers and addresses in which the credentials have to be.
    fn left_the_host(&self) -> String {
        let lines = self.logzio.arrived(|arrived| arrived.lines.join("\n"));
        let events: Vec<_> = self.sentry.arrived(|arrived| {
            arrived.envelopes.iter().map(|it| format!("{} {}", it.header, it.text)).collect()
        });
        lines + &events.join("\n")
    }
}

/// The request of a client, all that is secret in it a canary.
async fn hand_over(service: &Service, id: &str) -> Result<Answer> {
    let [_, cookies, bookmarks, data, config, access] = CANARIES;
    let body = json!({
        "mandelbox_id": id, "jwt_access_token": access, "json_data": {"dpi": 96, "note": data},
        "config_encryption_token": config, "is_new_config_encryption_token": false,
        "cookies": cookies, "bookmarks": bookmarks,
    });
    service.put(&body).await
}

/// Every file under `directory` with what is in it.
fn files(directory: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            found.extend(files(&entry.path())?);
        } else if kind.is_file() {
            found.push((entry.path(), String::from_utf8_lossy(&fs::read(entry.path())?).into_owned()));
        }
    }
    Ok(found)
}

fn assert_none(place: &str, text: &str, secrets: &[&str]) {
    for secret in secrets {
        if let Some(at) = text.find(secret) {
            let around: String = text[..at].chars().rev().take(120).collect();
            let around: String = around.chars().rev().collect();
            panic!("{secret} in {place}, after: {around}");
        }
    }
}

/// What the spool accepted and has not given back.
fn spooled(spool: &Path) -> Result<Vec<String>> {
    let segments =
        files(spool)?.into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "ndjson"));
    let whole = |text: String| {
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        text[..end].lines().map(str::to_owned).collect::<Vec<_>>()
    };
    Ok(segments.flat_map(|(_, text)| whole(text)).collect())
}

#[tokio::test]
async fn a_death_without_a_word_is_told_to_all_with_everything_the_spool_accepted() -> Result<()> {
    let world = World::new().await?;
    let service = world.host()?.start().await?;
    let id = world.allocate()?;
    let answer = hand_over(&service, &id).await?;
    ensure!(answer.status == 200, "{answer:?}\n{}", service.log());
    world.logzio.set(Mood::Stalls);
    for _ in 0..200 {
        service.put(&json!({"mandelbox_id": "../burst", "json_data": {}})).await?;
    }
    let builder = service.kill().await?;
    let accepted = spooled(&builder.scratch().join("spool"))?;
    ensure!(!accepted.is_empty(), "the spool accepted nothing\n{}", builder.log());
    world.logzio.set(Mood::Takes);

    let report = builder.cli(&["report-death"])?;
    let said = String::from_utf8_lossy(&report.stdout).into_owned();
    ensure!(report.status.success(), "{said}{}", String::from_utf8_lossy(&report.stderr));
    ensure!(said.contains("died") && said.contains(&id), "{said}");
    ensure!(world.told_sentry(DIED), "{:?}", world.sentry.events());
    let line = world.told_logzio(DIED).context("logz.io was not told")?;
    assert_eq!(
        (&line["environment"], &line["instance_name"]),
        (&json!("localdevwithdb"), &json!(builder.name()))
    );
    let row = world.database.sql("SELECT status FROM cloud.instance_info")?;
    assert_eq!(row, "DRAINING", "something is left, and nobody is to be sent there");
    let arrived = world.logzio.arrived(|arrived| arrived.lines.clone());
    let lost: Vec<_> = accepted.iter().filter(|line| !arrived.contains(line)).collect();
    ensure!(lost.is_empty(), "{} of {} accepted lines: {:?}", lost.len(), accepted.len(), lost.first());

    let again = builder.cli(&["report-death"])?;
    ensure!(String::from_utf8_lossy(&again.stdout).contains("nothing to report"), "a death is told once");
    Ok(())
}

#[tokio::test]
async fn of_a_clean_end_nothing_is_left_to_report() -> Result<()> {
    let world = World::new().await?;
    let mut service = world.host()?.start().await?;
    ensure!(service.cli(&["report-death"])?.status.code() == Some(1), "who lives did not die");
    service.signal(rustix::process::Signal::TERM)?;
    let status = service.ended().await?;
    ensure!(status.success(), "{status}\n{}", service.log());
    assert_eq!(world.database.sql("SELECT count(*) FROM cloud.instance_info")?, "0");
    let last = "nothing is left; the service ends";
    ensure!(world.told_logzio(last).is_some(), "records are flushed before the end\n{}", service.log());
    let report = service.cli(&["report-death"])?;
    ensure!(report.status.success() && String::from_utf8_lossy(&report.stdout).contains("nothing to report"));
    ensure!(!world.told_sentry(DIED) && world.told_logzio(DIED).is_none(), "nobody died");
    Ok(())
}

#[tokio::test]
async fn a_sink_that_hangs_does_not_hold_up_the_end() -> Result<()> {
    let world = World::new().await?;
    let service = world.host()?.set("telemetry.flush=1s").start().await?;
    [&world.sentry, &world.logzio].iter().for_each(|sink| sink.set(Mood::Stalls));
    let (_, metrics) = service.probe("/metrics").await?;
    ensure!(metrics.contains("host_service_telemetry_dropped_records 0"), "{metrics}");
    let ending = std::time::Instant::now();
    service.end_cleanly().await?;
    ensure!(ending.elapsed() < Duration::from_secs(20), "it took {:?}", ending.elapsed());
    [&world.sentry, &world.logzio].iter().for_each(|sink| sink.set(Mood::Takes));
    Ok(())
}

#[tokio::test]
async fn no_secret_is_in_any_sink_or_file_or_in_the_environment_of_the_process() -> Result<()> {
    let world = World::new().await?;
    let service = world.host()?.start().await?;
    let scratch = service.root().parent().context("a scratch directory")?.to_owned();
    let id = world.allocate()?;
    let answer = hand_over(&service, &id).await?;
    ensure!(answer.status == 200, "{answer:?}\n{}", service.log());
    let key = answer.aes_key().context("a key")?.to_owned();
    // A request that fails must not tell more than one that succeeds.
    for wrong in ["no-such-mandelbox/../x", &id] {
        let refused = hand_over(&service, wrong).await?;
        assert_none("an answer", &refused.body["error"].to_string(), &CANARIES);
    }
    let mut secrets = CANARIES.to_vec();
    secrets.extend([TOKEN, KEY, &key]);

    let environ = fs::read(format!("/proc/{}/environ", service.pid()))?;
    let environ = String::from_utf8_lossy(&environ);
    ensure!(environ.contains("SENTRY_DSN=") && environ.contains("PATH=/"), "not an environment: {environ}");
    assert_none("the environment", &environ, &secrets);
    let held = files(&scratch)?;
    ensure!(held.iter().any(|(_, text)| text.contains(CANARIES[1])), "the mandelbox did not get its cookies");
    for (path, text) in &held {
        // What is handed to a mandelbox lies in its directory, for it alone.
        let entrusted = path.starts_with(service.root());
        assert_none(&path.display().to_string(), text, if entrusted { &secrets[..1] } else { &secrets });
    }
    let sent = async || world.told_logzio("Entering event loop…");
    until("records at logz.io", SOON, sent).await?;
    for command in
        [&["status", "--json"][..], &["mandelbox", "list", "--json"], &["config", "show", "--origin"]]
    {
        let output = service.cli(command)?;
        assert_none(&command.join(" "), &String::from_utf8_lossy(&output.stdout), &secrets);
    }
    let mut service = service;
    service.signal(rustix::process::Signal::TERM)?;
    service.ended().await?;
    for (path, text) in files(&scratch)? {
        assert_none(&path.display().to_string(), &text, &secrets);
    }
    let sent = world.left_the_host();
    ensure!(sent.contains(&id), "the records are about this mandelbox");
    assert_none("what was sent", &sent, &secrets);
    Ok(())
}
