//! Whole machines in the lab: ours, and QEMU's `microvm` and `q35` on the same nested KVM, with Debian's
//! kernel and the same small userland. Emulation slows all of them down alike; ratios remain.
//!
//! | figure          | what it is                                                    | beside   |
//! |-----------------|---------------------------------------------------------------|----------|
//! | `init-ms`       | from exec to the first word of the guest's `/init`            | microvm  |
//! | `resident-mib`  | resident memory of the machine's process beside the guest's   | microvm  |
//! | `raw-read`, …   | MiB/s of 1 MiB requests past the guest's page cache           | q35      |
//! | `raw-iops`      | random reads of 4 KiB each second, eight under way            | q35      |
//! | `tcp-sent`, …   | MB/s through user-mode network, to and from a loopback server | q35      |
//!
//! The host has a disk in its page cache before each job on it: who comes first would otherwise wait for
//! the lab's storage, and the others not.

mod guest;
mod host;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::measure::word;
use crate::lab::{self, Disk, Lab};
use crate::setup::{self, Need};
use crate::{dirs, sh};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each side runs.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// This build of `bootyard` instead of one made for the lab.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Only these figures.
    #[arg(long, value_enum)]
    only: Option<Job>,
}

/// What the guests of a run do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Job {
    /// Nothing: how long they start counts, and what that takes.
    Init,
    /// Read and write a disk.
    Disk,
    /// Send and receive over the network.
    Tcp,
}

impl Job {
    /// The name of it on a command line.
    const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Disk => "disk",
            Self::Tcp => "tcp",
        }
    }
}

/// The parts that run elsewhere than on this machine: in the lab, and in its guests.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Inside {
    /// In the lab: start machines and take their figures.
    Host {
        /// How often each side runs.
        runs: usize,
        /// Only these figures.
        only: Option<Job>,
    },
    /// In a guest: put the disk to work.
    Disk {
        /// The disk.
        path: PathBuf,
    },
    /// In a guest: put the network to work.
    Net {
        /// The host.
        gateway: IpAddr,
        /// Where it takes bytes; at the next port it gives some.
        port: u16,
    },
}

/// What the guest's `/init` says first.
const READY: &str = "INIT-REACHED";

/// What stands before a figure.
const FIGURE: &str = "FIGURE";

/// Size of the disks that are measured.
const DISK_MIB: u64 = 192;

/// MiB and processors of the lab.
const LAB_MEMORY: u32 = 2560;
const LAB_CPUS: u32 = 2;

/// The first process of the measured guest.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox echo INIT-REACHED
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do case $word in job=* | address=* | gateway=* | port=*) export "$word" ;; esac; done
[ "$job" = idle ] && while :; do sleep 1000; done
while read -r module; do insmod "/lib/modules/$module"; done </modules
case $job in
disk) until [ -b /dev/vda ]; do sleep 0.1; done; xtask inside disk /dev/vda ;;
net)
    until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
    ip addr add "$address/24" dev eth0
    ip link set eth0 up
    xtask inside net "$gateway" "$port"
    ;;
esac
poweroff -f
"#;

/// What the lab does. The guest's files are read once, so that the first side finds them in memory as the
/// others do.
const SCRIPT: &str = "mkdir /tools && mount -t ext4 /dev/vda /tools && \
    cp -r /tools/lib/. /lib/ && cp /tools/qemu-system-x86_64 /bin/ && \
    cat /tools/vmlinuz /tools/initrd >/dev/null && \
    xtask inside host \"$@\"\n";

pub(crate) fn main(args: &Args) -> Result<()> {
    ensure!(args.runs > 0, "expected at least one run");
    setup::ensure_installed(&[Need::Boot, Need::Test])?;
    let dir = dirs::target().join("bench/machine");
    fs_err::create_dir_all(&dir)?;
    let script = dir.join("bench.sh");
    fs_err::write(&script, SCRIPT)?;
    let binary = args.binary.clone().map_or_else(lab::build, Ok)?;
    let mut files = lab::with_libraries(&binary, "bin/bootyard", &dir)?;
    files.extend(lab::with_libraries(&std::env::current_exe()?, "bin/xtask", &dir)?);
    files.push((script, "bench.sh".to_owned()));
    let words = ["sh".to_owned(), "/bench.sh".to_owned(), args.runs.to_string()];
    let lab = Lab {
        memory: LAB_MEMORY,
        cpus: LAB_CPUS,
        timeout: 300 + 240 * u32::try_from(args.runs)?,
        disks: vec![Disk::new(tools(&dir)?, false)],
        files,
        command: words.into_iter().chain(args.only.map(|job| job.name().to_owned())).collect(),
        logs: dir.clone(),
    };
    let code = lab.run()?;
    let output = fs_err::read(lab.logs.join("output.log"))?;
    ensure!(code == 0, "the lab's command ended with exit code {code}");
    report(&Figures::read(&String::from_utf8_lossy(&output)), args.only);
    Ok(())
}

pub(crate) fn inside(what: &Inside) -> Result<()> {
    match what {
        Inside::Host { runs, only } => host::main(*runs, *only),
        Inside::Disk { path } => guest::disk(path),
        Inside::Net { gateway, port } => guest::net(SocketAddr::new(*gateway, *port)),
    }
}

/// A disk with QEMU, its libraries and firmware, the guest's kernel and userland, and what it works on.
fn tools(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("tree");
    if tree.exists() {
        fs_err::remove_dir_all(&tree)?;
    }
    fs_err::create_dir_all(tree.join("lib/x86_64-linux-gnu"))?;
    let qemu = sh::output(sh::cmd("which").arg("qemu-system-x86_64"))?;
    for (from, to) in lab::with_libraries(Path::new(qemu.trim()), "qemu-system-x86_64", dir)? {
        // The lab has its loader from our own programs.
        if !to.starts_with("lib64") {
            let to = tree.join(to.trim_start_matches("usr/"));
            fs_err::create_dir_all(to.parent().context("a file without a folder")?)?;
            fs_err::copy(from, to)?;
        }
    }
    fs_err::create_dir_all(tree.join("share"))?;
    for name in
        ["bios-256k.bin", "bios-microvm.bin", "qboot.rom", "linuxboot_dma.bin", "kvmvapic.bin"]
    {
        let found = ["/usr/share/qemu", "/usr/share/seabios"]
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.exists());
        fs_err::copy(
            found.with_context(|| format!("QEMU's `{name}` is missing"))?,
            tree.join("share").join(name),
        )?;
    }
    let program = lab::with_libraries(&std::env::current_exe()?, "bin/xtask", dir)?;
    let (kernel, initrd) =
        lab::small_guest(INIT, &["virtio_pci", "virtio_blk", "virtio_net"], &program)?;
    fs_err::copy(kernel, tree.join("vmlinuz"))?;
    fs_err::write(tree.join("initrd"), initrd)?;
    make_disks(&tree)?;
    let image = dir.join("tools.img");
    if image.exists() {
        fs_err::remove_file(&image)?;
    }
    let mut mke2fs = sh::cmd("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&tree).arg(&image);
    sh::run(mke2fs.arg("1200M"))?;
    Ok(image)
}

/// Disks full of data, so that no read is answered without looking.
fn make_disks(tree: &Path) -> Result<()> {
    let raw = tree.join("raw.img");
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()
    });
    let bytes: Vec<u8> = noise.take((DISK_MIB << 20) as usize / 8).flatten().collect();
    fs_err::write(&raw, bytes)?;
    let mut convert = sh::cmd("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(tree.join("disk.qcow2"));
    sh::run(&mut convert)
}

/// Says a figure of `name`.
#[expect(clippy::print_stdout, reason = "the way out of the guest")]
fn figure(name: &str, value: f64) {
    println!("{FIGURE} {name} {value:.3}");
}

/// The figure of a line, with its name.
fn parse(line: &str) -> Option<(String, f64)> {
    let (name, value) = line.trim().strip_prefix(FIGURE)?.trim().rsplit_once(' ')?;
    Some((name.to_owned(), value.parse().ok()?))
}

/// All values of each figure, by side and name.
#[derive(Debug, Default, PartialEq)]
struct Figures(BTreeMap<String, Vec<f64>>);

/// Which of several values counts: what else happens on a machine only makes things worse.
#[derive(Debug, Clone, Copy)]
enum Better {
    Less,
    More,
}

impl Figures {
    fn read(text: &str) -> Self {
        let mut figures = Self::default();
        for (name, value) in text.lines().filter_map(parse) {
            figures.0.entry(name).or_default().push(value);
        }
        figures
    }

    fn best(&self, side: &str, name: &str, better: Better) -> Option<f64> {
        let values = self.0.get(&format!("{side} {name}"))?.iter().copied();
        match better {
            Better::Less => values.reduce(f64::min),
            Better::More => values.reduce(f64::max),
        }
    }
}

/// A figure, whom it is compared with, and the target.
const TARGETS: [(&str, &str, Better, Target); 10] = [
    ("init-ms", "microvm", Better::Less, Target::Ratio(0.7)),
    ("resident-mib", "microvm", Better::Less, Target::Value(8.0)),
    ("raw-read", "q35", Better::More, Target::Ratio(1.0)),
    ("raw-write", "q35", Better::More, Target::Ratio(1.0)),
    ("raw-iops", "q35", Better::More, Target::Ratio(1.0)),
    ("qcow2-read", "q35", Better::More, Target::Ratio(1.0)),
    ("qcow2-write", "q35", Better::More, Target::Ratio(1.0)),
    ("qcow2-iops", "q35", Better::More, Target::Ratio(1.0)),
    ("tcp-sent", "q35", Better::More, Target::Ratio(1.0)),
    ("tcp-received", "q35", Better::More, Target::Ratio(1.0)),
];

#[derive(Debug, Clone, Copy)]
enum Target {
    /// Ours to theirs: at most for what is better when less, else at least.
    Ratio(f64),
    /// Ours, at most.
    Value(f64),
}

fn report(figures: &Figures, only: Option<Job>) {
    println!(
        "{:<16} {:>10} {:>10} {:>10} {:>7}  target",
        "", "bootyard", "microvm", "q35", "ratio"
    );
    for (name, rival, better, target) in TARGETS {
        let best = |side| figures.best(side, name, better);
        let shown = |side| best(side).map_or("-".to_owned(), |value| format!("{value:.1}"));
        let (Some(ours), Some(theirs)) = (best("bootyard"), best(rival)) else {
            if only.is_none() {
                println!("{name:<16} no figures");
            }
            continue;
        };
        let ratio = ours / theirs;
        let (limit, reached) = match (target, better) {
            (Target::Ratio(limit), Better::Less) => (format!("≤ {limit:.2}"), ratio <= limit),
            (Target::Ratio(limit), Better::More) => (format!("≥ {limit:.2}"), ratio >= limit),
            (Target::Value(limit), _) => (format!("{limit:.0} MiB"), ours <= limit),
        };
        let [ours, microvm, q35] = ["bootyard", "microvm", "q35"].map(shown);
        println!(
            "{name:<16} {ours:>10} {microvm:>10} {q35:>10} {ratio:>7.2}  {limit}: {}",
            word(reached)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_by_side_and_the_best_counts() {
        let figures = Figures::read(
            "noise\r\nFIGURE bootyard init-ms 120.5\r\nFIGURE bootyard init-ms 110\nFIGURE q35 raw-iops 7\n",
        );
        assert_eq!(figures.best("bootyard", "init-ms", Better::Less), Some(110.0));
        assert_eq!(figures.best("bootyard", "init-ms", Better::More), Some(120.5));
        assert_eq!(figures.best("q35", "raw-read", Better::More), None);
        assert_eq!(parse("FIGURE x"), None);
    }
}
