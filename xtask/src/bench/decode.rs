//! One disk in every format and compression into a sparse raw file, against the tool of each.
//!
//! Nothing is dropped from the page cache; all sides write files that did not exist before.
//!
//! Our side is the example `decode` of the crate `image`, which only decodes, as theirs does. Beside
//! it stands `bootyard import`, which hashes what it reads and waits until the disk has it.

use std::path::Path;

use anyhow::{Result, ensure};

use super::images;
use super::measure::{self, Side, word};
use crate::setup::{self, Need};
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which images, by name; all, if none is given.
    names: Vec<String>,
    /// How often each side runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Peak memory that we allow ourselves, in MiB.
const RSS_MIB_MAX: f64 = 64.0;

/// An image of the disk.
struct Case {
    name: &'static str,
    /// The file's name.
    file: &'static str,
    /// The command that it would be decoded with instead, from `$IMAGE` to `$OUT`.
    theirs: &'static str,
    /// The target: our wall time as a part of theirs.
    wall_ratio_max: f64,
}

const QEMU: &str = "qemu-img convert -m 16 -W -O raw $IMAGE $OUT";

const CASES: &[Case] = &[
    qemu("qcow2 zlib", "zlib.qcow2", 0.35),
    qemu("qcow2 zstd", "zstd.qcow2", 0.5),
    qemu("qcow2 plain", "plain.qcow2", 0.5),
    qemu("vmdk sparse", "sparse.vmdk", 0.5),
    qemu("vmdk streamOptimized", "stream.vmdk", 0.35),
    qemu("vdi", "plain.vdi", 0.5),
    qemu("vhdx", "plain.vhdx", 0.5),
    Case {
        name: "xz, several blocks",
        file: "raw.xz",
        theirs: "xz -dc $IMAGE > $OUT",
        wall_ratio_max: 0.6,
    },
    Case { name: "gzip", file: "raw.gz", theirs: "pigz -dc $IMAGE > $OUT", wall_ratio_max: 0.5 },
    Case { name: "zstd", file: "raw.zst", theirs: "zstd -dc $IMAGE > $OUT", wall_ratio_max: 1.0 },
];

const fn qemu(name: &'static str, file: &'static str, wall_ratio_max: f64) -> Case {
    Case { name, file, theirs: QEMU, wall_ratio_max }
}

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    let cases = measure::chosen(&args.names, CASES, |case| case.name)?;
    let build = ["build", "--release", "--locked", "--package"];
    sh::run(sh::cargo().args(build).args(["bootyard-image", "--example", "decode"]))?;
    sh::run(sh::cargo().args(build).arg("bootyard"))?;
    let release = dirs::target().join("release");
    let images = images::all()?;
    let mut lines = Vec::new();
    for case in cases {
        let sides = compare(case, &release, &images, args.runs)?;
        println!("{}\n{}\n", case.name, measure::table(&sides));
        lines.push(verdict(case, &sides));
    }
    println!(
        "{} runs of each, alternately; page cache as it is\n\n{}",
        args.runs,
        lines.join("\n")
    );
    Ok(())
}

/// Runs all sides alternately. Before, ours is compared with the disk.
fn compare(case: &Case, release: &Path, images: &Path, runs: usize) -> Result<[Side; 3]> {
    let (image, raw) = (images.join(case.file), images.join("raw"));
    let ours = |work: &Path| {
        let mut command = sh::cmd(release.join("examples/decode"));
        command.arg(&image).arg(work.join("out"));
        command
    };
    let import = |work: &Path| {
        let mut command = sh::cmd(release.join("bootyard"));
        command.args(["import", "--to"]).arg(work.join("out")).arg(&image);
        command
    };
    let checked = tempfile::tempdir_in(images)?;
    sh::output(&mut ours(checked.path()))?;
    sh::output(sh::cmd("cmp").arg(&raw).arg(checked.path().join("out")))?;
    drop(checked);

    let theirs = case.theirs.split(' ').next().unwrap_or_default();
    let dir = images.parent().unwrap_or(images);
    measure::alternately(["decode", "bootyard import", theirs], runs, dir, |index, place| {
        match index {
            0 => ours(place),
            1 => import(place),
            _ => images::shell(case.theirs, &raw, &image, &place.join("out")),
        }
    })
}

/// A line per image. A missed target is told, not punished: machines differ.
fn verdict(case: &Case, [ours, _, theirs]: &[Side; 3]) -> String {
    let (ratio, rss) = (ours.wall_ratio(theirs), ours.peak_rss());
    format!(
        "{:<22} wall {ratio:>5.2}, target {:>4.2}: {:<8} peak {rss:>5.1} MiB, target {RSS_MIB_MAX:>5.1}: {}",
        case.name,
        case.wall_ratio_max,
        word(ratio <= case.wall_ratio_max),
        word(rss <= RSS_MIB_MAX),
    )
}
