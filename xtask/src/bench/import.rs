//! The Debian guest over loopback HTTP into a raw file: one pass against download and convert.
//!
//! Nothing is dropped from the page cache: both sides read from a server whose file is cached, and
//! write to files that did not exist before.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use bootyard_testkit::Nginx;

use super::measure::{self, Side};
use crate::setup::{self, Need};
use crate::{dirs, guest, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each side runs.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// Targets: our wall time as a part of theirs, and our peak memory in MiB.
const WALL_RATIO_MAX: f64 = 0.8;
const RSS_MIB_MAX: f64 = 96.0;

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    sh::run(sh::cargo().args(["build", "--release", "--locked", "--package", "bootyard"]))?;
    let bootyard = dirs::target().join("release/bootyard");
    let guest = guest::build_once()?;
    let dir = dirs::target().join("bench/import");
    fs_err::create_dir_all(&dir)?;
    let root = guest.qcow2.parent().context("the guest lies in no folder")?;
    let nginx = Nginx::serve(root);
    let url = nginx.url(guest::FILE_NAME);

    let side = |name| Side { name, runs: Vec::new() };
    let mut sides =
        [side("bootyard import"), side("curl, qemu-img"), side("curl, sha256sum, qemu-img")];
    for _ in 0..args.runs {
        for (side, with_sum) in sides.iter_mut().zip([None, Some(false), Some(true)]) {
            let work = tempfile::tempdir_in(&dir)?;
            let command = match with_sum {
                None => ours(&bootyard, &url, &guest.sha256, work.path()),
                Some(with_sum) => {
                    theirs(&url, with_sum.then_some(guest.sha256.as_str()), work.path())
                }
            };
            side.runs.push(measure::measure(&command, work.path())?);
        }
    }
    println!("{} runs of each, alternately; page cache as it is\n", args.runs);
    println!("{}\n\n{}", measure::table(&sides), verdicts(&sides));
    Ok(())
}

/// One pass, with the checksum.
fn ours(bootyard: &Path, url: &str, sha256: &str, work: &Path) -> Command {
    let mut command = sh::cmd(bootyard);
    command.args(["import", url, "--checksum", &format!("sha256:{sha256}"), "--to"]);
    command.arg(work.join("disk.raw"));
    command
}

/// Download, check if a digest is given, convert.
fn theirs(url: &str, sha256: Option<&str>, work: &Path) -> Command {
    let [tmp, raw] = ["tmp", "disk.raw"].map(|name| sh::quote(&work.join(name).to_string_lossy()));
    let check =
        sha256.map(|sum| format!("echo {sum}' '{tmp} | sha256sum -c && ")).unwrap_or_default();
    let mut command = sh::cmd("sh");
    command.arg("-c").arg(format!(
        "curl -sf -o {tmp} {} && {check}qemu-img convert -m 16 -W -f qcow2 -O raw {tmp} {raw}",
        sh::quote(url)
    ));
    command
}

/// A line per target. A missed one is told, not punished: machines differ.
fn verdicts(sides: &[Side; 3]) -> String {
    let [ours, theirs, _] = sides;
    let line = |name, value: f64, limit: f64| {
        let verdict = if value <= limit { "reached" } else { "MISSED" };
        format!("{name:<44} {value:>7.2}, target {limit:>6.2}: {verdict}")
    };
    [
        line(
            "wall time, as a part of curl and qemu-img's",
            ours.wall_ratio(theirs),
            WALL_RATIO_MAX,
        ),
        line("peak memory, MiB", ours.peak_rss(), RSS_MIB_MAX),
    ]
    .join("\n")
}
