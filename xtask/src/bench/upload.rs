//! An upload over loopback, against the same bytes sent by `curl -T` to nginx's DAV.
//!
//! Ours is hashed on both sides, compared, decoded, and durable when the command ends. Theirs is the file
//! as it was sent: with `sync FILE` behind it in a side of its own, which is what makes them alike. The
//! server's start is a part of our time.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use bootyard_testkit::{Nginx, NginxOptions};

use super::images;
use super::measure::{self, word};
use crate::setup::{self, Need};
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which uploads, by name; all, if none is given.
    names: Vec<String>,
    /// How often each side runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The disk to send instead of the usual one: a raw file.
    #[arg(long, value_name = "FILE")]
    disk: Option<std::path::PathBuf>,
    /// The program to measure instead of a release build.
    #[arg(long, value_name = "FILE")]
    bootyard: Option<std::path::PathBuf>,
}

/// The target: our wall time as a part of theirs.
const WALL_RATIO_MAX: f64 = 1.2;
/// Peak memory that we allow ourselves, in MiB.
const RSS_MIB_MAX: f64 = 64.0;

const NAMES: &[&str] = &["raw", "qcow2"];

/// Starts a server, waits until it tells its address, sends, and waits for its end.
const SERVER: &str = "$BOOTYARD upload-server --to $OUT --listen 127.0.0.1:0 --json >$LOG 2>&1 & \
     until URL=$(sed -n 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/p' $LOG) && [ -n \"$URL\" ]; \
     do sleep 0.01; done";
const OURS: &str = "$BOOTYARD upload $IMAGE --to $URL && wait";
const OURS_CURL: &str = "curl -sf -X POST -T $IMAGE $URL/v1beta1/upload && wait";
const THEIRS: &str = "curl -sf -T $IMAGE $DAV";
const THEIRS_SYNC: &str = "curl -sf -T $IMAGE $DAV && sync $OUT";

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    let names = measure::chosen(&args.names, NAMES, |name| name)?;
    let bootyard = match &args.bootyard {
        Some(program) => program.clone(),
        None => {
            sh::run(sh::cargo().args(["build", "--release", "--locked", "--package", "bootyard"]))?;
            dirs::target().join("release/bootyard")
        }
    };
    let dir = dirs::target().join("bench/upload");
    fs_err::create_dir_all(&dir)?;
    let own = tempfile::tempdir_in(&dir)?;
    let (raw, qcow2) = match &args.disk {
        None => (images::all()?.join("raw"), images::all()?.join("plain.qcow2")),
        Some(disk) => {
            let qcow2 = own.path().join("plain.qcow2");
            let line = "qemu-img convert -O qcow2 $RAW $IMAGE";
            sh::run(&mut images::shell(line, disk, &qcow2, Path::new("")))?;
            (disk.clone(), qcow2)
        }
    };
    // The bodies are set aside on the file system of the target, as one would set it up: then they are
    // renamed, not copied.
    let directives = format!(
        "client_max_body_size 0; client_body_temp_path {}/body; dav_methods PUT;",
        own.path().display()
    );
    let nginx = Nginx::serve_with(&dir, &NginxOptions { directives, ..NginxOptions::default() });
    let bench = Bench { bootyard: &bootyard, dir: &dir, raw: &raw, nginx: &nginx };
    let mut lines = Vec::new();
    for name in names {
        let image = if *name == "raw" { &raw } else { &qcow2 };
        lines.push(bench.compare(name, image, args.runs)?);
    }
    let runs = args.runs;
    println!("{runs} runs of each, alternately; page cache as it is\n\n{}", lines.join("\n"));
    Ok(())
}

struct Bench<'a> {
    bootyard: &'a Path,
    /// Where all sides write, and what nginx serves.
    dir: &'a Path,
    raw: &'a Path,
    nginx: &'a Nginx,
}

impl Bench<'_> {
    /// Compares our disk with the original first, then runs all sides. A missed target is told.
    fn compare(&self, name: &str, image: &Path, runs: usize) -> Result<String> {
        let checked = tempfile::tempdir_in(self.dir)?;
        sh::output(&mut self.ours(OURS, image, checked.path()))?;
        sh::output(sh::cmd("cmp").arg(self.raw).arg(checked.path().join("out")))?;
        drop(checked);
        let sides = ["bootyard upload", "curl, bootyard", "curl, nginx, sync", "curl, nginx"];
        let sides = measure::alternately(sides, runs, self.dir, |index, place| match index {
            0 => self.ours(OURS, image, place),
            1 => self.ours(OURS_CURL, image, place),
            2 => self.shell(THEIRS_SYNC, image, place),
            _ => self.shell(THEIRS, image, place),
        })?;
        println!("{name}\n{}\n", measure::table(&sides));
        let [ours, curl, durable, plain] = &sides;
        let (ratio, rss) = (ours.wall_ratio(plain), ours.peak_rss().max(curl.peak_rss()));
        Ok(format!(
            "{name:<12} wall {ratio:>5.2}, target {WALL_RATIO_MAX:.2}: {:<8} durable {:>5.2} peak \
             {rss:>5.1} MiB, target {RSS_MIB_MAX:.0}: {}",
            word(ratio <= WALL_RATIO_MAX),
            ours.wall_ratio(durable),
            word(rss <= RSS_MIB_MAX),
        ))
    }

    fn ours(&self, line: &str, image: &Path, work: &Path) -> Command {
        self.shell(&format!("{SERVER}; {line}"), image, work)
    }

    fn shell(&self, line: &str, image: &Path, work: &Path) -> Command {
        let out = work.join("out");
        let mut command = images::shell(line, self.raw, image, &out);
        let path = out.strip_prefix(self.dir).unwrap_or(&out).display().to_string();
        command.env("BOOTYARD", self.bootyard).env("LOG", work.join("log"));
        command.env("DAV", self.nginx.url(&path));
        command
    }
}
