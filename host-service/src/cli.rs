//! The command line: parsing, exit codes, dispatch.
//!
//! Exit codes: 0 done, 1 it failed, 64 wrong usage, 69 no service at the socket, 78 bad configuration.

use std::{ffi::OsString, process::ExitCode};

use clap::{Args, CommandFactory, FromArgMatches, error::ErrorKind};
use host_config::{Loaded, Sources};

mod args;
mod configuration;
mod db;
mod doctor;
mod drain;
mod failure;
mod image;
mod mandelbox;
mod output;
mod plugin;
mod progress;
mod report_death;
mod status;

pub use args::Layers;
use args::{Cli, Command, ConfigCommand, DbCommand};
use failure::{Failure, USAGE};
use output::Out;

use crate::{build_info, client::Client, service};

/// What was asked for.
#[derive(Debug)]
pub struct Invocation {
    /// Which settings are in force.
    pub layers: Layers,
    command: Command,
}

/// Reads the command line. Help and complaints are printed here.
///
/// # Errors
/// The exit code, when there is nothing to do: 0 after help, 64 for wrong usage.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, ExitCode> {
    parsed(args).map_err(|error| {
        // There is nowhere left to say that even this cannot be written.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
            _ => ExitCode::from(USAGE),
        }
    })
}

fn parsed(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    let mut layers = Layers::default();
    let mut level = Some(&matches);
    while let Some(matches) = level {
        let here = Layers::from_arg_matches(matches)?;
        layers.profile = here.profile.or(layers.profile);
        layers.config.extend(here.config);
        layers.set.extend(here.set);
        level = matches.subcommand().map(|(_, matches)| matches);
    }
    let command = Cli::from_arg_matches(&matches)?.command;
    Ok(Invocation { layers, command })
}

/// The whole command with [`Layers`] at every level. Clap's own global arguments would not do: given both before
/// and after the command's name, `--set` would lose the former.
fn command() -> clap::Command {
    fn with_layers(command: clap::Command) -> clap::Command {
        let layers = Layers::augment_args(clap::Command::new("layers"));
        command.args(layers.get_arguments()).mut_subcommands(with_layers)
    }
    with_layers(Cli::command())
}

/// Does what was asked for, with the configuration of `sources`.
pub fn execute(invocation: Invocation, sources: &Sources) -> ExitCode {
    let mut out = Out::stdout();
    match dispatch(invocation.command, sources, &mut out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command, sources: &Sources, out: &mut Out) -> Result<(), Failure> {
    let load = || configuration::load(sources);
    match command {
        Command::Version => version(out),
        Command::Completions { shell } => completions(shell, out),
        Command::Config(ConfigCommand::Show { origin }) => configuration::show(&load()?, origin, out),
        Command::Config(ConfigCommand::Check) => configuration::check(&load()?, out),
        Command::Run(args) => run(load()?, args.purge_leftovers),
        Command::Status(args) => {
            let client = client(&load()?);
            wait(status::status(&client, args.json, out))
        }
        Command::Mandelbox(command) => {
            let client = client(&load()?);
            wait(mandelbox::execute(command, &client, out))
        }
        Command::Drain(args) => {
            let client = client(&load()?);
            wait(drain::drain(&args, &client, out))
        }
        Command::Image(command) => {
            let loaded = load()?;
            wait(image::execute(command, &loaded, out))
        }
        Command::Db(DbCommand::Migrate { url }) => {
            let loaded = load()?;
            wait(db::migrate(&loaded, url, out))
        }
        Command::ReportDeath => {
            let loaded = load()?;
            wait(report_death::report(&loaded, out))
        }
        Command::Plugin(command) => {
            plugin::execute(command, || host_config::load(sources).map_err(Failure::from), out)
        }
        Command::Doctor(args) => {
            let loaded = load()?;
            wait(doctor::doctor(&loaded, args.json, out))
        }
    }
}

fn client(loaded: &Loaded) -> Client {
    Client::new(&loaded.settings.admin.socket)
}

/// What one command does needs no more than this thread.
fn wait(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

fn run(loaded: Loaded, purge_leftovers: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let options = service::RunOptions { purge_leftovers };
    let result = runtime.block_on(service::run(loaded, options));
    // What is still blocking then, such as a name lookup, has nothing to lose.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result.map_err(Failure::from)
}

fn version(out: &mut Out) -> Result<(), Failure> {
    out.line(format_args!("host-service {}", build_info::VERSION))?;
    out.line(format_args!("commit       {}", build_info::COMMIT))?;
    out.line(format_args!("plugin ABI   {}", build_info::abi()))?;
    Ok(())
}

fn completions(shell: clap_complete::Shell, out: &mut Out) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "host-service", &mut script);
    out.bytes(&script)?;
    Ok(())
}
