//! Clones of a sparse disk, against the tools that copy one.
//!
//! A clone of ours is durable when the command ends, and was compared with its original; theirs is
//! neither. They are therefore run twice: as they are, and with `sync FILE` behind them, which is what
//! a user who wants to keep the copy would add and what the target is about. Clones that share blocks
//! are made on an XFS of their own.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use bootyard_testkit::Mount;

use super::images;
use super::measure::{self, word};
use crate::setup::{self, Need};
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each side runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Our wall time as a part of the faster durable one of theirs.
const WALL_RATIO_MAX: f64 = 0.8;
/// What a clone that shares its blocks may take, in seconds.
const REFLINK_MAX: f64 = 0.02;
/// What the disk needs on a file system of its own, in MiB.
const XFS_MIB: u64 = 3 << 10;

const CP: &str = "cp --sparse=always --reflink=auto $RAW $OUT";
const CP_SYNC: &str = "cp --sparse=always --reflink=auto $RAW $OUT && sync $OUT";
const QEMU: &str = "qemu-img convert -m 16 -W -f raw -O raw $RAW $OUT";
const QEMU_SYNC: &str = "qemu-img convert -m 16 -W -f raw -O raw $RAW $OUT && sync $OUT";

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    sh::run(sh::cargo().args(["build", "--release", "--locked", "--package", "bootyard"]))?;
    let bootyard = dirs::target().join("release/bootyard");
    let raw = images::all()?.join("raw");
    let dir = dirs::target().join("bench/clone");
    fs_err::create_dir_all(&dir)?;
    let copied = copy(&bootyard, &raw, &dir, args.runs)?;
    let shared = reflink(&bootyard, &raw, args.runs)?;
    println!("{} runs of each, alternately; page cache as it is\n\n{copied}\n{shared}", args.runs);
    Ok(())
}

fn copy(bootyard: &Path, raw: &Path, dir: &Path, runs: usize) -> Result<String> {
    let checked = tempfile::tempdir_in(dir)?;
    sh::output(&mut ours(bootyard, raw, checked.path()))?;
    sh::output(sh::cmd("cmp").arg(raw).arg(checked.path().join("out")))?;
    drop(checked);
    let names = ["bootyard clone", "cp, sync", "qemu-img, sync", "cp", "qemu-img"];
    let sides = measure::alternately(names, runs, dir, |index, place| match index {
        0 => ours(bootyard, raw, place),
        1 => images::shell(CP_SYNC, raw, raw, &place.join("out")),
        2 => images::shell(QEMU_SYNC, raw, raw, &place.join("out")),
        3 => images::shell(CP, raw, raw, &place.join("out")),
        _ => images::shell(QEMU, raw, raw, &place.join("out")),
    })?;
    println!("copy\n{}\n", measure::table(&sides));
    let [ours, theirs @ .., _, _] = &sides;
    let ratio = theirs.iter().map(|side| ours.wall_ratio(side)).fold(0.0, f64::max);
    let reached = word(ratio <= WALL_RATIO_MAX);
    Ok(format!("copy         wall {ratio:>5.2}, target {WALL_RATIO_MAX:.2}: {reached}"))
}

fn reflink(bootyard: &Path, raw: &Path, runs: usize) -> Result<String> {
    let Some(mount) = Mount::new("xfs", XFS_MIB) else {
        return Ok("reflink      not measured: no XFS can be mounted".to_owned());
    };
    let original = mount.path().join("original.raw");
    sh::output(sh::cmd("cp").arg("--sparse=always").arg(raw).arg(&original))?;
    sh::output(sh::cmd("sync").arg(&original))?;
    let names = ["bootyard clone", "cp"];
    let dir = mount.path();
    let sides = measure::alternately(names, runs, &dir, |index, place| match index {
        0 => ours(bootyard, &original, place),
        _ => images::shell(CP, &original, &original, &place.join("out")),
    })?;
    println!("reflink\n{}\n", measure::table(&sides));
    let took = sides[0].runs.iter().map(|run| run.wall).fold(f64::INFINITY, f64::min);
    let reached = word(took <= REFLINK_MAX);
    Ok(format!(
        "reflink      wall {:>5.1} ms, target {:.0}: {reached}",
        took * 1e3,
        REFLINK_MAX * 1e3
    ))
}

fn ours(bootyard: &Path, original: &Path, work: &Path) -> Command {
    let mut command = sh::cmd(bootyard);
    command.arg("clone").arg(original).arg("--to").arg(work.join("out"));
    command
}
