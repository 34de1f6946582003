//! Whole processes that make a seed from the same files: ours, which also writes the meta-data, and the
//! tools that people use: `cloud-localds`, `genisoimage`, `xorrisofs`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::measure::{self, Side, word};
use crate::setup::{self, Need};
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each side runs.
    #[arg(long, default_value_t = 30)]
    runs: usize,
}

/// The target: our wall time as a part of the fastest other one's.
const WALL_RATIO_MAX: f64 = 0.4;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me\n";
const USER_DATA: &str =
    "#cloud-config\npackages: [nginx]\nruncmd:\n  - [systemctl, enable, nginx]\n";
const NETWORK: &str = "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n";

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    sh::run(sh::cargo().args(["build", "--release", "--locked", "--package", "bootyard"]))?;
    let dir = dirs::target().join("bench/seed");
    fs_err::create_dir_all(&dir)?;
    let inputs = Inputs::new(&dir)?;
    let iso = ["bootyard seed build", "genisoimage", "xorrisofs", "cloud-localds"];
    let fat = ["bootyard seed build, FAT", "cloud-localds, FAT"];
    let makers: [fn(&Inputs, &Path) -> Command; 4] =
        [Inputs::ours, Inputs::genisoimage, Inputs::xorrisofs, Inputs::cloud_localds];
    let isos = inputs.compare(iso, args.runs, &dir, |index, seed| makers[index](&inputs, seed))?;
    let fats = inputs.compare(fat, args.runs, &dir, |index, seed| {
        let mut command = makers[[0, 3][index]](&inputs, seed);
        command.args([["--format", "fat"], ["-f", "vfat"]][index]);
        command
    })?;
    println!("{} runs of each, alternately", args.runs);
    report(&isos);
    report(&fats);
    Ok(())
}

/// Prints our time beside the fastest other one's.
fn report(sides: &[Side]) {
    let [ours, others @ ..] = sides else { return };
    let Some(fastest) = others.iter().min_by(|a, b| a.wall_min().total_cmp(&b.wall_min())) else {
        return;
    };
    let ratio = ours.wall_ratio(fastest);
    println!(
        "\n{}\nwall {:.1} ms to {:.1} ms of {}: {ratio:.2}, target {WALL_RATIO_MAX:.2}: {}",
        measure::table(sides),
        ours.wall_min() * 1000.0,
        fastest.wall_min() * 1000.0,
        fastest.name,
        word(ratio <= WALL_RATIO_MAX),
    );
}

/// What all sides are given.
struct Inputs {
    bootyard: PathBuf,
    /// Where `key.pub`, `meta-data`, `user-data` and `network-config` are.
    dir: PathBuf,
}

impl Inputs {
    fn new(dir: &Path) -> Result<Self> {
        let inputs =
            Self { bootyard: dirs::target().join("release/bootyard"), dir: dir.join("inputs") };
        fs_err::create_dir_all(&inputs.dir)?;
        fs_err::write(inputs.file("key.pub"), KEY)?;
        fs_err::write(inputs.file("user-data"), USER_DATA)?;
        fs_err::write(inputs.file("network-config"), NETWORK)?;
        // The others cannot make it: they get what ours is.
        let seed = inputs.file("seed.iso");
        sh::output(&mut inputs.ours(&seed))?;
        let show = ["seed", "show", "--file", "meta-data"];
        let meta_data = sh::output(sh::cmd(&inputs.bootyard).args(show).arg(&seed))?;
        fs_err::write(inputs.file("meta-data"), meta_data)?;
        Ok(inputs)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Runs the sides, once they have been found to make the same seed.
    fn compare<const N: usize>(
        &self,
        names: [&'static str; N],
        runs: usize,
        dir: &Path,
        make: impl Fn(usize, &Path) -> Command,
    ) -> Result<[Side; N]> {
        let place = tempfile::tempdir_in(dir)?;
        for (index, name) in names.iter().enumerate() {
            let seed = place.path().join(index.to_string());
            sh::output(&mut make(index, &seed))?;
            let diff = ["seed", "diff"];
            let first = place.path().join("0");
            sh::output(sh::cmd(&self.bootyard).args(diff).args([&first, &seed]))?;
            let label =
                sh::output(sh::cmd("blkid").args(["-p", "-o", "value", "-s", "LABEL"]).arg(&seed))?;
            ensure!(label.trim().eq_ignore_ascii_case("cidata"), "{name}: got `{label}`");
        }
        measure::briefly(names, runs, dir, |index, place| make(index, &place.join("seed")))
    }

    fn ours(&self, seed: &Path) -> Command {
        let mut command = sh::cmd(&self.bootyard);
        command
            .args(["seed", "build", "--hostname", "web-1", "--ssh-key"])
            .arg(self.file("key.pub"));
        command.arg("--user-data").arg(self.file("user-data"));
        command.arg("--network-config").arg(self.file("network-config")).arg("-o").arg(seed);
        command
    }

    fn genisoimage(&self, seed: &Path) -> Command {
        self.mkisofs("genisoimage", seed)
    }

    fn xorrisofs(&self, seed: &Path) -> Command {
        self.mkisofs("xorrisofs", seed)
    }

    fn mkisofs(&self, program: &str, seed: &Path) -> Command {
        let mut command = sh::cmd(program);
        command.args(["-quiet", "-volid", "CIDATA", "-joliet", "-rock", "-o"]).arg(seed);
        command.args(["meta-data", "user-data", "network-config"].map(|name| self.file(name)));
        command
    }

    fn cloud_localds(&self, seed: &Path) -> Command {
        let mut command = sh::cmd("cloud-localds");
        command.arg("-N").arg(self.file("network-config")).arg(seed);
        command.args([self.file("user-data"), self.file("meta-data")]);
        command
    }
}
