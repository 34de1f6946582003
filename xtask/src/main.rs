//! `cargo xtask`: everything that this repository does besides compiling, as commands.
//!
//! One module per command. They build on a few helpers: [`sh`] runs programs, [`dirs`] knows where
//! things lie, [`deb`] asks apt. Nothing here is part of the product.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal")]
#![expect(
    clippy::disallowed_methods,
    reason = "automation starts programs, reads the environment and measures time"
)]

mod alpine;
mod bench;
mod boot;
mod cache;
mod deb;
mod dirs;
mod fixtures;
mod fuzz;
mod guest;
mod initrd;
mod lab;
mod setup;
mod sh;
mod test;
mod tidy;
mod timing;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Bootyard's automation.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the Debian packages that building, running and testing need.
    Setup(setup::Args),
    /// Do the main job: import a Debian cloud image over HTTP, seed it, boot it, judge the result.
    Boot(boot::Args),
    /// Pass everything that a change must pass: format, lints, tests, guests.
    #[command(alias = "ci")]
    Test(test::Args),
    /// Check the rules of CONTRIBUTING.md that a program can check.
    Tidy,
    /// Build the Debian 12 cloud guest, or find it built, and print its path.
    Guest,
    /// Build small disks laid out as distributions lay out theirs, and print their folder.
    Fixtures,
    /// Fetch an Alpine Linux image from PyPI, or find it fetched, and print its folder.
    Alpine,
    /// Make a small guest of Debian's kernel, busybox and an init script.
    Initrd(initrd::Args),
    /// Run a command on an emulated host that has a complete `/dev/kvm`.
    Lab(lab::Args),
    /// Run the parsers against a fuzzer.
    Fuzz(fuzz::Args),
    /// Measure Bootyard against the tools that one would use instead.
    Bench(bench::Args),
    /// The parts of a bench that run in the lab.
    #[command(subcommand, hide = true)]
    Inside(bench::Inside),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Setup(args) => setup::main(&args),
        Command::Boot(args) => boot::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Tidy => tidy::main(),
        Command::Guest => guest::main(),
        Command::Fixtures => fixtures::main(),
        Command::Alpine => alpine::main(),
        Command::Initrd(args) => initrd::main(&args),
        Command::Lab(args) => return lab::main(&args),
        Command::Fuzz(args) => fuzz::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Inside(what) => bench::inside(&what),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Reports a failure with its causes.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
