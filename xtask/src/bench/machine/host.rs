//! What runs in the lab: starts the machines of all sides in turn and takes their figures.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{FIGURE, Job, READY};
use crate::sh;

/// Where the tools' disk is mounted.
const TOOLS: &str = "/tools";

/// Guest memory in MiB. Mappings of this size are the guest's, all others the machine's own.
const MEMORY_MIB: u64 = 256;

/// A side: its name, and its command line without what each job adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Bootyard,
    Microvm,
    Q35,
}

impl Side {
    const fn name(self) -> &'static str {
        match self {
            Self::Bootyard => "bootyard",
            Self::Microvm => "microvm",
            Self::Q35 => "q35",
        }
    }

    /// The address of a guest of this side, and that under which it reaches its host.
    const fn addresses(self) -> (&'static str, &'static str) {
        match self {
            Self::Bootyard => ("10.0.2.2", "10.0.2.1"),
            Self::Microvm | Self::Q35 => ("10.0.2.15", "10.0.2.2"),
        }
    }

    /// A machine whose guest does `job`, with a disk or a network if it needs one.
    fn command(self, job: &str, disk: Option<&str>, net: bool) -> Command {
        let cmdline = format!("console=ttyS0 quiet rdinit=/init panic=-1 job={job}");
        let (kernel, initrd) = (format!("{TOOLS}/vmlinuz"), format!("{TOOLS}/initrd"));
        let memory = MEMORY_MIB.to_string();
        if self == Self::Bootyard {
            let mut run = sh::cmd("bootyard");
            run.args(["run", "--engine", "kvm", "--run-strategy", "Once"]);
            run.args(["--kernel", &kernel, "--initrd", &initrd, "--cmdline", &cmdline]);
            run.args(["--memory", &format!("{memory}Mi"), "--cpus", "1"]);
            run.args(["--net", if net { "user" } else { "none" }]);
            run.args(disk.iter().flat_map(|disk| ["--disk", disk]));
            return run;
        }
        let mut qemu = sh::cmd("qemu-system-x86_64");
        let machine = match self {
            Self::Microvm => "microvm,acpi=on,rtc=on,isa-serial=on",
            Self::Bootyard | Self::Q35 => "q35",
        };
        qemu.args(["-L", &format!("{TOOLS}/share"), "-M", machine, "-accel", "kvm"]);
        qemu.args(["-cpu", "host", "-smp", "1", "-m", &memory, "-nodefaults", "-no-user-config"]);
        qemu.args(["-display", "none", "-serial", "stdio", "-no-reboot"]);
        qemu.args(["-kernel", &kernel, "-initrd", &initrd, "-append", &cmdline]);
        if let Some(disk) = disk {
            let format = if disk.ends_with(".qcow2") { "qcow2" } else { "raw" };
            qemu.arg("-drive");
            qemu.arg(format!("file={disk},format={format},if=none,id=disk,aio=io_uring"));
            qemu.args(["-device", "virtio-blk-pci,drive=disk"]);
        }
        if net {
            qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        qemu
    }
}

/// The jobs, or `only` one, `runs` times, the sides in turn. The figures go to standard output as they come.
pub(super) fn main(runs: usize, only: Option<Job>) -> Result<()> {
    let does = |job| only.is_none_or(|only| only == job);
    serve_net()?;
    for _ in 0..runs {
        if does(Job::Init) {
            [Side::Bootyard, Side::Microvm, Side::Q35].into_iter().try_for_each(boot)?;
        }
        for side in [Side::Bootyard, Side::Q35] {
            if does(Job::Disk) {
                disks(side)?;
            }
            if does(Job::Tcp) {
                tcp(side)?;
            }
        }
    }
    Ok(())
}

fn disks(side: Side) -> Result<()> {
    for disk in ["raw.img", "disk.qcow2"] {
        let path = format!("{TOOLS}/{disk}");
        std::io::copy(&mut fs_err::File::open(&path)?, &mut std::io::sink())?;
        let figures = job(&mut side.command("disk", Some(&path), false))?;
        let format = disk.rsplit('.').next().unwrap_or(disk).replace("img", "raw");
        for (name, value) in figures {
            super::figure(&format!("{} {format}-{name}", side.name()), value);
        }
    }
    Ok(())
}

fn tcp(side: Side) -> Result<()> {
    let (address, gateway) = side.addresses();
    let net = format!("net address={address} gateway={gateway} port={SINK_PORT}");
    for (name, value) in job(&mut side.command(&net, None, true))? {
        super::figure(&format!("{} tcp-{name}", side.name()), value);
    }
    Ok(())
}

/// From exec to the first word of the guest's `/init`, and what the machine then takes beside the
/// guest's memory.
fn boot(side: Side) -> Result<()> {
    let mut command = side.command("idle", None, false);
    let start = Instant::now();
    let mut child = spawn(&mut command)?;
    let mut lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
    let ready = lines.by_ref().find(|line| line.as_ref().is_ok_and(|line| line.contains(READY)));
    let took = start.elapsed();
    ensure!(ready.is_some(), "the guest of {} said nothing of `{READY}`", side.name());
    super::figure(&format!("{} init-ms", side.name()), took.as_secs_f64() * 1000.0);
    std::thread::sleep(Duration::from_secs(1));
    let (own, all) = resident(child.id())?;
    super::figure(&format!("{} resident-mib", side.name()), own);
    super::figure(&format!("{} resident-all-mib", side.name()), all);
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Runs a guest to its end and gives its figures.
fn job(command: &mut Command) -> Result<BTreeMap<String, f64>> {
    let child = spawn(command)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: BTreeMap<_, _> = text.lines().filter_map(super::parse).collect();
    ensure!(!figures.is_empty(), "`{}` gave no `{FIGURE}`: {text}", sh::line(command));
    Ok(figures)
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().with_context(|| format!("cannot start `{}`", sh::line(command)))
}

/// Resident MiB beside the guest's memory: of the process of the family that holds the guest, and of
/// all of them.
fn resident(root: u32) -> Result<(f64, f64)> {
    let mut family = vec![root];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        let children = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        family.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        next += 1;
    }
    let (mut own, mut all) = (0.0, 0.0);
    for pid in family {
        let (beside, holds_guest) =
            beside_guest(&fs_err::read_to_string(format!("/proc/{pid}/smaps"))?);
        all += beside;
        if holds_guest {
            own += beside;
        }
    }
    Ok((own, all))
}

/// Resident MiB of the mappings in an smaps file that are smaller than the guest's memory, and whether
/// one is as large.
fn beside_guest(smaps: &str) -> (f64, bool) {
    let (mut resident, mut size, mut holds_guest) = (0, 0, false);
    for line in smaps.lines() {
        let kib = |rest: &str| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
        if let Some(rest) = line.strip_prefix("Size:") {
            size = kib(rest);
            // A guest below the gap for devices may be cut where its low memory ends.
            holds_guest |= size >= MEMORY_MIB * 1024 - 2048;
        } else if let Some(rest) = line.strip_prefix("Rss:")
            && size < MEMORY_MIB * 1024 - 2048
        {
            resident += kib(rest);
        }
    }
    (resident as f64 / 1024.0, holds_guest)
}

/// The sink is here, the source at the next port.
const SINK_PORT: u16 = 5000;

/// Takes what guests send and says how much it was; sends to those who connect to the next port until they
/// have enough.
fn serve_net() -> Result<()> {
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, SINK_PORT))?;
    let source = TcpListener::bind((Ipv4Addr::LOCALHOST, SINK_PORT + 1))?;
    std::thread::spawn(move || {
        for mut stream in sink.incoming().map_while(Result::ok) {
            let count = std::io::copy(&mut stream, &mut std::io::sink()).unwrap_or(0);
            let _gone = stream.write_all(count.to_string().as_bytes());
        }
    });
    let chunk = vec![7; 128 << 10];
    std::thread::spawn(move || {
        for mut stream in source.incoming().map_while(Result::ok) {
            while stream.write_all(&chunk).is_ok() {}
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_not_the_machines() {
        let smaps = "7f00-7f01 rw-p 0 0:0 0\nSize:  262144 kB\nRss:  90000 kB\n\
                     55-56 r-xp 0 0:0 0 /bin/vmm\nSize:  4096 kB\nRss:  1024 kB\n\
                     57-58 rw-p 0 0:0 0\nSize:  512 kB\nRss:  512 kB\n";
        assert_eq!(beside_guest(smaps), (1.5, true));
        assert_eq!(beside_guest("Size: 4 kB\nRss: 4 kB\n"), (4.0 / 1024.0, false));
    }
}
