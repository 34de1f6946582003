//! The `bootyard` command: parses the command line, calls one function, renders what came of it.
//!
//! This crate is the only place that prints, reads the environment, asks for the time and exits.

mod args;
mod boot;
mod claims;
mod commands;
mod control;
mod disks;
mod error;
mod flags;
mod hardware;
mod host;
mod json;
mod metrics;
mod network;
mod output;
mod progress;
mod remark;
mod seeds;
mod services;
mod settings;
mod signals;
mod stores;
mod table;
mod terminal;
mod transfer;

use std::process::ExitCode;

use crate::args::{Command, SeedCommand};
use crate::error::Failure;

fn main() -> ExitCode {
    // Two providers linked into one process make rustls panic at its first use; naming ours before
    // anything else happens is the rule that prevents it.
    bootyard_source::install_crypto_provider();
    settings::stop_where_tests_say();
    let done = match Command::of_process() {
        Command::Import(args) => commands::import::run(*args),
        Command::Importer => Ok(commands::importer::run()),
        Command::Create(command) => commands::create::run(command),
        Command::Clone(args) => commands::clone::run(&args),
        Command::Export(args) => commands::export::run(*args),
        Command::Volume(command) => commands::volume::run(command),
        Command::StorageClass(command) => commands::storage_class::run(command),
        Command::Push(args) => commands::push::run(&args),
        Command::Upload(args) => commands::upload::run(&args),
        Command::UploadServer(args) => commands::upload_server::run(*args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Seed(SeedCommand::Build(args)) => commands::seed::build(&args),
        Command::Seed(SeedCommand::Show(args)) => commands::seed_show::run(&args),
        Command::Seed(SeedCommand::Diff(args)) => commands::seed_diff::run(&args),
        Command::Seed(SeedCommand::Lint(args)) => commands::seed_lint::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::BootEntries(args) => commands::boot_entries::run(&args),
        Command::Control(args) => commands::control::run(&args),
        Command::Console(args) => commands::console::run(&args),
        Command::Validate(args) => commands::validate::run(&args),
        Command::Explain(args) => commands::validate::explain(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Machine(args) => commands::machine::run(&args),
    };
    done.unwrap_or_else(|failure: Failure| {
        output::error(&failure.render());
        ExitCode::from(failure.exit_code())
    })
}
