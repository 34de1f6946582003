//! Imports from real servers on loopback, in one pass against the tools that would be chained instead.
//!
//! The images are those of [`images`]; nginx serves them, and a registry a container image
//! with the compressed qcow2 in a gzip layer. Nothing is dropped from the page cache; all sides write
//! files that did not exist before. Ours hashes every byte, compares the digest, and waits until the
//! disk has the volume; theirs do not.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use bootyard_testkit::{ImageLayout, Nginx, Registry, sha256_file};

use super::images;
use super::measure::{self, Side, word};
use crate::setup::{self, Need};
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which imports, by name; all, if none is given.
    names: Vec<String>,
    /// How often each side runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Peak memory that we allow ourselves, in MiB.
const RSS_MIB_MAX: f64 = 64.0;
/// How much more than the volume occupies may be written, in MiB: the file system's own notes.
const EXTRA_MIB_MAX: f64 = 16.0;

/// An import.
struct Case {
    name: &'static str,
    /// The image's file name.
    file: &'static str,
    /// The commands of the shell that would be used instead, from `$URL` to `$OUT`, with `$TMP` for a
    /// file or folder in between.
    theirs: &'static str,
    /// The target: our wall time as a part of theirs.
    wall_ratio_max: f64,
}

const QEMU: &str = "curl -sf -o $TMP $URL && qemu-img convert -m 16 -W -O raw $TMP $OUT";
const REGISTRY: &str = "registry";

const CASES: &[Case] = &[
    Case { name: "qcow2 zlib", file: "zlib.qcow2", theirs: QEMU, wall_ratio_max: 0.35 },
    Case { name: "qcow2 zstd", file: "zstd.qcow2", theirs: QEMU, wall_ratio_max: 0.5 },
    Case { name: "qcow2 plain", file: "plain.qcow2", theirs: QEMU, wall_ratio_max: 0.4 },
    Case {
        name: "xz",
        file: "raw.xz",
        theirs: "curl -sf $URL | xz -dc | dd of=$OUT bs=1M iflag=fullblock conv=sparse status=none",
        wall_ratio_max: 0.6,
    },
    Case {
        name: "gzip",
        file: "raw.gz",
        theirs: "curl -sf $URL | pigz -dc > $OUT",
        wall_ratio_max: 0.5,
    },
    Case {
        name: "zstd",
        file: "raw.zst",
        theirs: "curl -sf $URL | zstd -dc > $OUT",
        wall_ratio_max: 1.0,
    },
    Case {
        name: REGISTRY,
        file: "zlib.qcow2",
        theirs: "skopeo --insecure-policy copy -q --src-tls-verify=false $URL dir:$TMP && \
                 for f in $TMP/*; do tar -xzf $f -C $TMP disk 2>/dev/null || true; done && \
                 qemu-img convert -m 16 -W -O raw $TMP/disk/* $OUT",
        wall_ratio_max: 0.25,
    },
];

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    let cases = measure::chosen(&args.names, CASES, |case| case.name)?;
    sh::run(sh::cargo().args(["build", "--release", "--locked", "--package", "bootyard"]))?;
    let bootyard = dirs::target().join("release/bootyard");
    let images = images::all()?;
    let nginx = Nginx::serve(&images);
    let dir = dirs::target().join("bench/import");
    fs_err::create_dir_all(&dir)?;
    let mut lines = Vec::new();
    for case in cases {
        let registry = (case.name == REGISTRY).then(Registry::start);
        let url = match &registry {
            None => nginx.url(case.file),
            Some(registry) => push(&images.join(case.file), registry),
        };
        let bench = Bench { bootyard: &bootyard, images: &images, dir: &dir, url: &url };
        let (sides, stored) = bench.compare(case, args.runs)?;
        println!("{}\n{}\n", case.name, measure::table(&sides));
        lines.push(verdict(case, &sides, stored));
    }
    println!(
        "{} runs of each, alternately; page cache as it is\n\n{}",
        args.runs,
        lines.join("\n")
    );
    Ok(())
}

/// Puts an image into a registry as a containerDisk, in a gzip layer.
fn push(image: &Path, registry: &Registry) -> String {
    let url = registry.image("bench:latest");
    let layout = ImageLayout::new();
    layout.add("latest", &[&[("disk/disk.qcow2", image)]]);
    layout.copy("latest", &url, &[]);
    url
}

struct Bench<'a> {
    bootyard: &'a Path,
    images: &'a Path,
    /// Where all sides write.
    dir: &'a Path,
    url: &'a str,
}

impl Bench<'_> {
    /// Runs both sides alternately. Before, ours is compared with the disk. Gives also how much our
    /// volume occupies, in MiB.
    fn compare(&self, case: &Case, runs: usize) -> Result<([Side; 2], f64)> {
        let checksum = match case.name {
            REGISTRY => None,
            _ => Some(format!("sha256:{}", sha256_file(self.images.join(case.file)))),
        };
        let checked = tempfile::tempdir_in(self.dir)?;
        sh::output(&mut self.ours(checksum.as_deref(), checked.path()))?;
        let out = checked.path().join("out");
        sh::output(sh::cmd("cmp").arg(self.images.join("raw")).arg(&out))?;
        let stored = std::os::unix::fs::MetadataExt::blocks(&fs_err::metadata(&out)?);
        drop(checked);

        let theirs = case.theirs.split(' ').next().unwrap_or_default();
        let names = ["bootyard import", theirs];
        let sides = measure::alternately(names, runs, self.dir, |index, place| match index {
            0 => self.ours(checksum.as_deref(), place),
            _ => self.theirs(case.theirs, place),
        })?;
        Ok((sides, stored as f64 / 2048.0))
    }

    fn ours(&self, checksum: Option<&str>, work: &Path) -> Command {
        let mut command = sh::cmd(self.bootyard);
        command.args(["import", self.url, "--to"]).arg(work.join("out"));
        match checksum {
            Some(checksum) => command.args(["--checksum", checksum]),
            None => command.arg("--insecure"),
        };
        command
    }

    fn theirs(&self, line: &str, work: &Path) -> Command {
        let mut command = sh::cmd("sh");
        command.args(["-c", line]).env("URL", self.url);
        command.env("OUT", work.join("out")).env("TMP", work.join("tmp"));
        command
    }
}

/// A line per import. A missed target is told, not punished: machines differ.
fn verdict(case: &Case, [ours, theirs]: &[Side; 2], stored: f64) -> String {
    let (ratio, rss, written) = (ours.wall_ratio(theirs), ours.peak_rss(), ours.written());
    format!(
        "{:<12} wall {ratio:>5.2}, target {:>4.2}: {:<8} peak {rss:>5.1} MiB, target \
         {RSS_MIB_MAX:>5.1}: {:<8} written {written:>7.1} MiB of {stored:>7.1}: {}",
        case.name,
        case.wall_ratio_max,
        word(ratio <= case.wall_ratio_max),
        word(rss <= RSS_MIB_MAX),
        word(written <= stored + EXTRA_MIB_MAX),
    )
}
