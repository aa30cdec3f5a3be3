//! What the command line takes.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use host_core::{AppName, ImageRef, MandelboxId, UserId};
use secrecy::SecretString;

/// Help texts end with examples under this heading, which looks like clap's own.
macro_rules! examples {
    ($($line:literal)*) => {
        concat!("\u{1b}[1;4mExamples:\u{1b}[0m", $("\n  ", $line),*)
    };
}

/// Runs containers for users on this host, each with its ports, TTY, GPU slot and startup data, and tells a control
/// plane how they do.
#[derive(Debug, Parser)]
#[command(
    name = "host-service",
    version,
    max_term_width = 110,
    after_help = examples!(
        "host-service run                          # the service, in the foreground"
        "host-service mandelbox spin-up            # in another terminal: a mandelbox, and a URL to look at"
        "host-service status"
        "host-service doctor --profile prod        # what this host lacks for production"
    ),
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which settings are in force; every command takes these, before and after its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Configuration")]
pub struct Layers {
    /// localdev, localdevwithdb, dev, staging or prod [default: $APP_ENV, else localdev]
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Reads this file over /etc/host-service/*.toml; may be repeated, later ones win
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Sets one value over all files and variables; may be repeated: --set runtime.plugin=sim
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the service in the foreground
    #[command(after_help = concat!(
        "The first Ctrl-C drains, the second ends every session now, the third kills the service.\n\n",
        examples!(
            "host-service run"
            "host-service run --profile prod --config /etc/host.toml"
            "host-service run --set runtime.plugin=sim --set http.listen=127.0.0.1:4679"
        ),
    ))]
    Run(RunArgs),
    /// Show the running service at a glance
    #[command(after_help = examples!("host-service status" "host-service status --json | jq .capacity"))]
    Status(JsonFlag),
    /// Start, list, look into and stop mandelboxes
    #[command(subcommand)]
    Mandelbox(MandelboxCommand),
    /// Take no new mandelboxes, let sessions end, then end the service
    #[command(after_help = examples!(
        "host-service drain                        # sessions may go on for drain.deadline"
        "host-service drain --deadline 10m --wait  # … for ten minutes; come back when the service has ended"
        "host-service drain --deadline 0 --force   # kill every session now"
    ))]
    Drain(DrainArgs),
    /// Show or check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Load and list images of runtimes that keep their own
    #[command(subcommand)]
    Image(ImageCommand),
    /// Prepare the database of the control plane
    #[command(subcommand)]
    Db(DbCommand),
    /// List, check, make and install plugins in shared libraries
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Tell what this host has and lacks for the profile, each with its remedy
    #[command(after_help = examples!("host-service doctor" "host-service doctor --profile prod --json"))]
    Doctor(JsonFlag),
    /// Tell telemetry and the control plane of a service that died without a word
    #[command(after_help = concat!(
        "For systemd, which runs it after every end of the service; where all was told already, it does nothing.\n\n",
        examples!(
            "host-service report-death"
            "ExecStopPost=/usr/bin/host-service report-death --profile prod  # in the unit's [Service]"
        ),
    ))]
    ReportDeath,
    /// Print version, commit and plugin ABI version
    Version,
    /// Print completions for a shell
    #[command(after_help = examples!(
        "host-service completions bash > /etc/bash_completion.d/host-service"
        "host-service completions zsh > ~/.zfunc/_host-service"
    ))]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// `run`
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Remove exactly what a crashed service left on this host, instead of refusing to start over it
    #[arg(long)]
    pub(crate) purge_leftovers: bool,
}

/// For commands that people and programs read.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct JsonFlag {
    /// JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// `db`
#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Create the schema `cloud`, or update it; a database that has the original one is taken on as it is
    #[command(after_help = examples!(
        "host-service db migrate --profile localdevwithdb"
        "host-service db migrate --url postgres://admin@db.example/fleet --set pubsub.postgres.row_security=true"
    ))]
    Migrate {
        /// Instead of pubsub.postgres.url; a password is better kept there, out of the list of processes
        #[arg(long, value_name = "URL")]
        url: Option<SecretString>,
    },
}

/// `plugin`
#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// List the plugins that are compiled in, and those in the directory paths.plugins
    List(JsonFlag),
    /// Try what every plugin of its kind must do on a library, in this process and in one of its own
    #[command(after_help = examples!(
        "host-service plugin check target/release/libacme.so"
        "host-service plugin check libacme.so --set runtime.acme.socket=/run/acme.sock --image test/mandelbox:current-build"
    ))]
    Check(PluginCheckArgs),
    /// Make the project of a new plugin, with a test and CI
    #[command(after_help = examples!(
        "host-service plugin new acme --lang rust --sdk ~/src/host-service"
        "host-service plugin new acme --lang c"
    ))]
    New(PluginNewArgs),
    /// Put a library into the directory paths.plugins
    #[command(after_help = examples!("host-service plugin install target/release/libacme.so --pin"))]
    Install {
        /// The library
        file: PathBuf,
        /// Load nothing but this very file from then on
        #[arg(long)]
        pin: bool,
    },
}

/// `plugin check`
#[derive(Debug, Args)]
pub(crate) struct PluginCheckArgs {
    /// The library; its section is that of the configuration, [<kind>.<name>]
    pub(crate) file: PathBuf,
    /// For a runtime: the test mandelbox's image, which it has
    #[arg(long, default_value = "test/mandelbox:current-build")]
    pub(crate) image: ImageRef,
    /// For a runtime: an archive of images to load
    #[arg(long, value_name = "FILE")]
    pub(crate) archive: Option<PathBuf>,
}

/// `plugin new`
#[derive(Debug, Args)]
pub(crate) struct PluginNewArgs {
    /// What it is to be called, of a-z 0-9 _
    #[arg(value_parser = plugin_name)]
    pub(crate) name: String,
    /// In which language
    #[arg(long, value_enum)]
    pub(crate) lang: Language,
    /// For Rust: the source of this host service, where the SDK is; without, the one around this directory or program
    #[arg(long, value_name = "DIR")]
    pub(crate) sdk: Option<PathBuf>,
}

/// A language that `plugin new` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Language {
    /// With the SDK
    Rust,
    /// With the header alone
    C,
}

fn plugin_name(text: &str) -> Result<String, String> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
    if begins && text.len() <= 40 && text.chars().all(is_word) {
        Ok(text.to_owned())
    } else {
        Err("it must be at most 40 of a-z 0-9 _ and begin with a letter".to_owned())
    }
}

/// `mandelbox`
#[derive(Debug, Subcommand)]
pub(crate) enum MandelboxCommand {
    /// Allocate a mandelbox, deliver its startup data, wait, and print ports, key and URL (local profiles)
    #[command(after_help = examples!(
        "host-service mandelbox spin-up"
        "host-service mandelbox spin-up browsers/chrome --id mine --json-data '{\"dpi\": 192}'"
    ))]
    SpinUp(SpinUpArgs),
    /// Allocate a mandelbox: only the database event; its client is yours to play (local profiles)
    #[command(after_help = examples!("host-service mandelbox allocate browsers/chrome --id mine --user me"))]
    Allocate(AllocateArgs),
    /// List every mandelbox that has not ended
    #[command(after_help = examples!("host-service mandelbox list" "host-service mandelbox list --json"))]
    List(JsonFlag),
    /// Show everything about one mandelbox, as JSON
    #[command(after_help = examples!("host-service mandelbox inspect mine"))]
    Inspect {
        /// Which
        id: MandelboxId,
    },
    /// Print a mandelbox's output
    #[command(after_help = examples!("host-service mandelbox logs mine -f --tail 20"))]
    Logs(LogsArgs),
    /// Stop a mandelbox and wait until it is gone
    #[command(after_help = examples!(
        "host-service mandelbox stop mine"
        "host-service mandelbox stop mine --timeout 0  # kill it"
    ))]
    Stop(StopArgs),
}

/// `mandelbox spin-up`
#[derive(Debug, Args)]
pub(crate) struct SpinUpArgs {
    /// What to run [default: mandelbox.default_app]
    pub(crate) app: Option<AppName>,
    /// Its id, new and of A-Z a-z 0-9 _ - [default: made up]
    #[arg(long)]
    pub(crate) id: Option<MandelboxId>,
    /// Whose it is [default: localdev_user_id]
    #[arg(long)]
    pub(crate) user: Option<UserId>,
    /// A JSON object that the application gets as config.json [default: {}]
    #[arg(long, value_name = "JSON", value_parser = json_object)]
    pub(crate) json_data: Option<JsonObject>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

/// `mandelbox allocate`
#[derive(Debug, Args)]
pub(crate) struct AllocateArgs {
    /// What to run
    pub(crate) app: AppName,
    /// Its id, new and of A-Z a-z 0-9 _ - [default: made up]
    #[arg(long)]
    pub(crate) id: Option<MandelboxId>,
    /// Whose it is [default: localdev_user_id]
    #[arg(long)]
    pub(crate) user: Option<UserId>,
    #[command(flatten)]
    pub(crate) output: JsonFlag,
}

/// `mandelbox logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Which
    pub(crate) id: MandelboxId,
    /// Go on with what is written later, until the mandelbox ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub(crate) tail: Option<u32>,
}

/// `mandelbox stop`
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Which
    pub(crate) id: MandelboxId,
    /// From SIGTERM to the kill: 30s, 2m, or seconds [default: mandelbox.stop_grace]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

/// `drain`
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// Kill sessions that are left at the deadline, without a grace period
    #[arg(long)]
    pub(crate) force: bool,
    /// How long sessions may go on: 30s, 2h, or seconds [default: drain.deadline]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) deadline: Option<Duration>,
    /// Come back when the service has ended
    #[arg(long)]
    pub(crate) wait: bool,
}

/// `config`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every setting in force, secrets masked
    #[command(after_help = examples!(
        "host-service config show --origin"
        "host-service config show --profile prod --config /etc/host.toml"
    ))]
    Show {
        /// And where each came from
        #[arg(long)]
        origin: bool,
    },
    /// Check the configuration; start nothing
    #[command(after_help = examples!("host-service config check --profile prod --config /etc/host.toml"))]
    Check,
}

/// `image`
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Take the images of a `docker save` or OCI layout archive into the runtime
    #[command(after_help = examples!(
        "host-service image load chrome.tar"
        "host-service image load build.tar --name browsers/chrome:current-build"
    ))]
    Load {
        /// The archive
        file: PathBuf,
        /// One more name for the image
        #[arg(long)]
        name: Option<ImageRef>,
    },
    /// List the images that the runtime has
    List(JsonFlag),
}

/// A JSON object's members.
pub(crate) type JsonObject = serde_json::Map<String, serde_json::Value>;

fn json_object(text: &str) -> Result<JsonObject, String> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is no JSON object; write for example '{\"dpi\": 96}'".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// `10s`, `2m 30s`, or seconds, as the engines' command lines take them.
fn duration(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_have_units() {
        for (text, seconds) in [("0", 0), ("90", 90), ("10s", 10), ("2m 30s", 150), ("1h", 3600)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "-1", "soon", "10 parsecs"] {
            assert!(duration(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn startup_data_is_an_object() {
        assert!(json_object(r#"{"dpi": 96}"#).is_ok());
        for bad in ["", "[]", "96", "{"] {
            assert!(json_object(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
