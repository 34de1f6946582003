//! `cargo xtask boot`: the main job on real input, start to end.
//!
//! A Debian 12 cloud image comes from nginx by HTTP, becomes a volume, gets a seed and boots until
//! it powers itself off; the serial log must show that cloud-init applied the seed. The engine
//! `kvm` runs on this host where its `/dev/kvm` can run kernels, and in the lab elsewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use bootyard_testkit::Nginx;

use crate::guest::{self, Guest};
use crate::lab::{self, Disk, Lab};
use crate::setup::{self, Need};
use crate::timing::Stages;
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What runs the guest.
    #[arg(long, value_enum, default_value_t = Engine::Kvm)]
    engine: Engine,
    /// Keep the imported volume.
    #[arg(long)]
    keep: bool,
}

/// What runs the guest.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Engine {
    /// Our own machine.
    Kvm,
    /// QEMU.
    Qemu,
}

impl Engine {
    const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
        }
    }
}

/// The volume's name in the store.
const VOLUME: &str = "debian";

/// Limit for the guest: three times what a quiet machine with two cores needs in the lab.
const GUEST_SECS: u32 = 900;

/// Limit for the lab: the guest's, and what its own start may take.
const LAB_SECS: u32 = GUEST_SECS + 120;

/// MiB of the lab, which holds the guest of 1 GiB.
const LAB_MEMORY: u32 = 2048;

/// Behind the marker stands what the guest found applied.
const MARKER: &str = "SEED-APPLIED";

/// How often the comment of the test key occurs among the guest's authorised keys.
const KEY_COMMENT: &str = "bootyard-test-key";

pub(crate) fn main(args: &Args) -> Result<()> {
    let mut stages = Stages::default();
    let result = run(args.engine, args.keep, &mut stages);
    eprint!("\n{}", stages.table());
    result
}

/// Does the whole job. The logs stay in `target/boot/ENGINE`.
fn run(engine: Engine, keep: bool, stages: &mut Stages) -> Result<()> {
    stages.run("setup", || setup::ensure_installed(&[Need::Boot]))?;
    let bootyard = stages.run("build", lab::build)?;
    let guest = stages.run("guest", guest::build_once)?;
    let job = Job::new(bootyard, engine)?;
    stages.run("import", || job.import(&guest))?;
    stages.run("seed", || job.seed())?;
    stages.run("run", || job.run())?;
    job.judge()?;
    if !keep {
        fs_err::remove_dir_all(job.home())?;
    }
    eprintln!("\nthe guest took its seed and powered itself off; logs in `{}`", job.dir.display());
    Ok(())
}

struct Job {
    bootyard: PathBuf,
    engine: Engine,
    dir: PathBuf,
    /// Unlike any earlier run's, so that an old log proves nothing.
    hostname: String,
}

impl Job {
    fn new(bootyard: PathBuf, engine: Engine) -> Result<Self> {
        let dir = dirs::target().join("boot").join(engine.name());
        if dir.exists() {
            fs_err::remove_dir_all(&dir)?;
        }
        fs_err::create_dir_all(&dir)?;
        Ok(Self { bootyard, engine, dir, hostname: format!("guest-{}", std::process::id()) })
    }

    fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("output.log")
    }

    fn bootyard(&self) -> Command {
        let mut command = sh::tied(&self.bootyard);
        command.env("BOOTYARD_HOME", self.home());
        command
    }

    fn import(&self, guest: &Guest) -> Result<()> {
        let root = guest.qcow2.parent().context("the guest lies in no folder")?;
        let nginx = Nginx::serve(root);
        let checksum = format!("sha256:{}", guest.sha256);
        let mut import = self.bootyard();
        import.args(["import", &nginx.url(guest::FILE_NAME), "--name", VOLUME]);
        sh::run(import.args(["--checksum", &checksum]))
    }

    fn seed(&self) -> Result<()> {
        let key = self.dir.join("key");
        let mut keygen = sh::cmd("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", KEY_COMMENT, "-f"]);
        sh::run(keygen.arg(&key))?;
        let user_data = self.dir.join("user-data");
        fs_err::write(&user_data, user_data_text())?;
        let mut build = self.bootyard();
        build.args(["seed", "build", "--hostname", &self.hostname, "--ssh-key"]);
        build.arg(key.with_extension("pub")).arg("--user-data").arg(user_data);
        sh::run(build.arg("-o").arg(self.seed_path()))
    }

    fn seed_path(&self) -> PathBuf {
        self.dir.join("seed.iso")
    }

    /// Boots the guest and waits for its end.
    fn run(&self) -> Result<()> {
        let seed = self.seed_path();
        let code = match self.engine {
            Engine::Kvm if !self.kvm_runs_here()? => self.run_in_lab()?,
            Engine::Kvm | Engine::Qemu => {
                let mut run = self.bootyard();
                run.args(run_arguments(VOLUME, &seed, self.engine));
                eprintln!("$ {}", sh::line(&run));
                sh::run_teed(&mut run, &self.log())?.code().unwrap_or(-1)
            }
        };
        ensure!(code == 0, "`bootyard run` ended with exit code {code}");
        Ok(())
    }

    /// Asks `bootyard doctor`, and shows what it found.
    fn kvm_runs_here(&self) -> Result<bool> {
        sh::run(self.bootyard().arg("doctor"))?;
        is_kvm_full(&sh::output(self.bootyard().args(["doctor", "--json"]))?)
    }

    fn run_in_lab(&self) -> Result<i32> {
        let volume = self.home().join("volumes").join(VOLUME).join("disk.raw");
        let mut command = vec!["bootyard".to_owned()];
        command.extend(run_arguments("/dev/vda", Path::new("/dev/vdb"), self.engine));
        let lab = Lab {
            memory: LAB_MEMORY,
            cpus: 2,
            timeout: LAB_SECS,
            disks: vec![Disk::new(volume, false), Disk::new(self.seed_path(), true)],
            files: lab::with_libraries(&self.bootyard, "bin/bootyard", &self.dir)?,
            command,
            logs: self.dir.clone(),
        };
        lab.run().map(i32::from)
    }

    fn judge(&self) -> Result<()> {
        let log = fs_err::read(self.log())?;
        let missing = missing_proofs(&String::from_utf8_lossy(&log), &self.hostname);
        if missing.is_empty() {
            return Ok(());
        }
        bail!("the serial log `{}` lacks {}", self.log().display(), missing.join(", "));
    }
}

fn run_arguments(disk: &str, seed: &Path, engine: Engine) -> Vec<String> {
    let seed = seed.to_string_lossy();
    let timeout = format!("{GUEST_SECS}s");
    let words = ["run", "--disk", disk, "--seed", &seed, "--cpus", "1", "--memory", "1Gi"];
    let more = ["--engine", engine.name(), "--run-strategy", "Once", "--timeout", &timeout];
    words.into_iter().chain(more).map(str::to_owned).collect()
}

/// Makes the guest say on its serial console what it found, and power itself off.
fn user_data_text() -> String {
    format!(
        "#cloud-config\n\
         runcmd:\n\
         - echo \"{MARKER} hostname=$(hostname) keys=$(grep -c {KEY_COMMENT} ~debian/.ssh/authorized_keys)\" \
         >/dev/ttyS0\n\
         power_state: {{mode: poweroff, delay: now, timeout: 60}}\n"
    )
}

/// Reads `bootyard doctor --json`.
fn is_kvm_full(json: &str) -> Result<bool> {
    let report: serde_json::Value = serde_json::from_str(json)?;
    let kvm = report["kvm"].as_str().context("`bootyard doctor --json` says nothing of `kvm`")?;
    Ok(kvm == "full")
}

/// What a serial log must show, and this one does not.
fn missing_proofs(log: &str, hostname: &str) -> Vec<String> {
    [
        format!("{MARKER} hostname={hostname} keys=1"),
        " finished at ".to_owned(),
        "reboot: Power down".to_owned(),
    ]
    .into_iter()
    .filter(|proof| !log.contains(proof))
    .map(|proof| format!("`{}`", proof.trim()))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[    2.1] systemd[1]: Hostname set to <localhost>.\r\n\
                        SEED-APPLIED hostname=guest-7 keys=1\r\n\
                        [   60.1] cloud-init[500]: Cloud-init v. 22.4.2 finished at now.\r\n\
                        [   63.5] reboot: Power down\r\n";

    #[test]
    fn a_log_with_every_proof_passes() {
        assert_eq!(missing_proofs(GOOD, "guest-7"), Vec::<String>::new());
    }

    #[test]
    fn each_missing_proof_is_named() {
        for (cut, lacks) in [
            ("keys=1", "`SEED-APPLIED hostname=guest-7 keys=1`"),
            ("guest-7", "`SEED-APPLIED hostname=guest-7 keys=1`"),
            ("finished", "`finished at`"),
            ("Power down", "`reboot: Power down`"),
        ] {
            assert_eq!(missing_proofs(&GOOD.replace(cut, ""), "guest-7"), [lacks]);
        }
    }

    #[test]
    fn the_user_data_itself_is_no_proof() {
        assert_eq!(missing_proofs(&user_data_text(), "guest-7").len(), 3);
    }
}
