//! Whole processes that make an empty disk: ours and `qemu-img`. Neither waits until the disk has it.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::measure::{self, word};
use crate::setup::{self, Need};
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each side runs.
    #[arg(long, default_value_t = 30)]
    runs: usize,
}

/// The target: our wall time as a part of theirs.
const WALL_RATIO_MAX: f64 = 0.4;
const SIZE: &str = "10G";
const CAPACITY: &str = "10Gi";

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    sh::run(sh::cargo().args(["build", "--release", "--locked", "--package", "bootyard"]))?;
    let bootyard = dirs::target().join("release/bootyard");
    let dir = dirs::target().join("bench/create");
    fs_err::create_dir_all(&dir)?;
    check(&bootyard, &dir)?;
    let names = ["bootyard create empty-disk", "qemu-img create"];
    let sides = measure::briefly(names, args.runs, &dir, |index, place| {
        let disk = place.join("disk.qcow2");
        if index == 0 { ours(&bootyard, &disk) } else { theirs(&disk) }
    })?;
    let [our, their] = &sides;
    let ratio = our.wall_ratio(their);
    println!(
        "{}\n\n{} runs of each, alternately\nwall {:.1} ms to {:.1} ms: {ratio:.2}, target \
         {WALL_RATIO_MAX:.2}: {}",
        measure::table(&sides),
        args.runs,
        our.wall_min() * 1000.0,
        their.wall_min() * 1000.0,
        word(ratio <= WALL_RATIO_MAX),
    );
    Ok(())
}

/// Both make the same disk.
fn check(bootyard: &Path, dir: &Path) -> Result<()> {
    let place = tempfile::tempdir_in(dir)?;
    let [a, b] = ["a.qcow2", "b.qcow2"].map(|name| place.path().join(name));
    sh::output(&mut ours(bootyard, &a))?;
    sh::output(&mut theirs(&b))?;
    sh::output(sh::cmd("qemu-img").args(["check", "-q"]).arg(&a))?;
    sh::output(sh::cmd("qemu-img").args(["compare", "-q", "-s"]).args([&a, &b]))?;
    Ok(())
}

fn ours(bootyard: &Path, disk: &Path) -> Command {
    let mut command = sh::cmd(bootyard);
    command.args(["create", "empty-disk", "--capacity", CAPACITY]).arg(disk);
    command
}

fn theirs(disk: &Path) -> Command {
    let mut command = sh::cmd("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(disk).arg(SIZE);
    command
}
