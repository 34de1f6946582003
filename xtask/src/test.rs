//! `cargo xtask test`: what a change must pass. CI runs exactly this.
//!
//! Stops at the first stage that fails and names it. With `CI` set, a test whose tool is missing
//! fails instead of being skipped.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::{self, Need};
use crate::timing::Stages;
use crate::{dirs, fuzz, guest, lab, sh, tidy};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the guest tests, which take minutes.
    #[arg(long)]
    fast: bool,
}

/// The package of the tests that span crates, whose binary `guest` boots machines.
const TESTS: &str = "bootyard-tests";

pub(crate) fn main(args: &Args) -> Result<()> {
    let mut stages = Stages::default();
    let result = run(args.fast, &mut stages);
    let verdict = if result.is_ok() { "passed" } else { "FAILED" };
    eprint!("\n{}{verdict}\n", stages.table());
    result
}

fn run(fast: bool, stages: &mut Stages) -> Result<()> {
    // Building the workspace replaces this program's file; its place stays the same.
    let xtask = std::env::current_exe().context("cannot find this program")?;
    let nextest = sh::answers(sh::cargo().args(["nextest", "--version"]));
    let runner = Runner { nextest, is_ci: std::env::var_os("CI").is_some(), xtask };
    stages.run("setup", || {
        setup::ensure_installed(&[Need::Boot, Need::Test])?;
        setup::ensure_cloud_init()
    })?;
    stages.run("format", || sh::run(sh::cargo().args(["fmt", "--all", "--check"])))?;
    stages.run("tidy", tidy::main)?;
    stages.run("lints", lints)?;
    stages.run("build", || sh::run(sh::cargo().args(["build", "--workspace", "--all-targets"])))?;
    if !fast {
        stages.run("guest", || guest::build_once().map(drop))?;
    }
    stages.run("tests", || runner.quick())?;
    stages.run("doc tests", || {
        sh::run(sh::cargo().args(["test", "--quiet", "--workspace", "--doc"]))
    })?;
    if !fast {
        stages.run("fuzz", fuzz::briefly)?;
        stages.run("guest tests", || runner.guests())?;
    }
    Ok(())
}

fn lints() -> Result<()> {
    let mut clippy = sh::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    sh::run(&mut clippy)
}

/// How tests are run: by nextest where it is installed, by cargo's own runner elsewhere.
struct Runner {
    nextest: bool,
    is_ci: bool,
    xtask: PathBuf,
}

impl Runner {
    fn quick(&self) -> Result<()> {
        if self.nextest {
            let others = format!("not (package({TESTS}) and binary(guest))");
            return sh::run(self.nextest().args(["--workspace", "-E", &others]));
        }
        sh::run(self.cargo_test().args(["--workspace", "--tests", "--exclude", TESTS]))?;
        sh::run(self.cargo_test().args(["--package", TESTS, "--test", "cli", "--test", "import"]))
    }

    fn guests(&self) -> Result<()> {
        let guests = ["--package", TESTS, "--test", "guest"];
        if self.nextest {
            return sh::run(self.nextest().args(guests));
        }
        sh::run(self.cargo_test().args(guests).args(["--", "--test-threads", "1"]))
    }

    fn nextest(&self) -> Command {
        let mut command = self.with_environment(&["nextest", "run"]);
        if self.is_ci {
            command.args(["--profile", "ci"]);
        }
        command
    }

    fn cargo_test(&self) -> Command {
        self.with_environment(&["test"])
    }

    fn with_environment(&self, arguments: &[&str]) -> Command {
        let mut command = sh::cargo();
        command.args(arguments).env("BOOTYARD_XTASK", &self.xtask);
        command.env(lab::BINARY, dirs::target().join("debug/bootyard"));
        if self.is_ci {
            command.env("BOOTYARD_NO_SKIP", "1");
        }
        command
    }
}
