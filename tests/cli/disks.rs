//! Disks that live as long as their machine, with guests of one boot sector on QEMU.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bootyard_testkit::{Cli, Output, require_tool, sha256_file};

/// Generous for a software-emulated BIOS on a busy machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// A guest that looks at the second sector of the BIOS's disk `drive`. It says `A` on the serial port,
/// fills the sector and reboots if that is empty; else it says `B` and powers off.
fn remembering_sector(drive: u8) -> Vec<u8> {
    let look =
        [0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0xba, drive, 0x00, 0xbb, 0x00, 0x80, 0xcd, 0x13];
    let skip_if_filled = [0x80, 0x3e, 0x00, 0x80, 0x00, 0x75, 6 + 14 + 9];
    let say = |letter: u8| [0xb0, letter, 0xba, 0xf8, 0x03, 0xee];
    let fill =
        [0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, 0xba, drive, 0x00, 0xbb, 0x00, 0x7c, 0xcd, 0x13];
    let reboot = [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd];
    let power_off = [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];
    let mut sector = [&look[..], &skip_if_filled, &say(b'A'), &fill, &reboot].concat();
    sector.extend([&say(b'B')[..], &power_off].concat());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

fn guest(cli: &Cli, name: &str, drive: u8) {
    let mut disk = remembering_sector(drive);
    disk.resize(1 << 20, 0);
    fs_err::write(cli.work().join(name), disk).expect("a disk");
}

fn run(cli: &Cli, disks: &[&str]) -> Output {
    cli.run([&["run", "--engine", "qemu", "--timeout", "100s", "--memory", "64Mi"], disks].concat())
}

/// What the guest said.
#[track_caller]
fn said(output: &Output) -> String {
    assert_eq!(output.code, Some(0), "{output}");
    letters(&output.stdout)
}

/// The first of the two letters behind each of the BIOS's last words, whose own dots may come late.
fn letters(stdout: &str) -> String {
    let boots = stdout.split("Booting from Hard Disk").skip(1);
    boots.filter_map(|text| text.chars().take(8).find(|c| matches!(c, 'A' | 'B'))).collect()
}

#[track_caller]
fn assert_no_scratch(cli: &Cli) {
    let left = fs_err::read_dir(cli.store().join("run")).expect("the folder of runs").count();
    assert_eq!(left, 0, "nothing of a machine's life stays");
}

#[test]
fn what_a_guest_writes_to_an_ephemeral_disk_outlives_a_reboot_only() {
    if !require_tool("qemu-system-x86_64") || !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    guest(&cli, "a,b.raw", 0x80);
    let base = cli.work().join("a,b.raw");
    let digest = sha256_file(&base);
    for disk in ["./a,b.raw,ephemeral", "./a,b.raw,ephemeral,size=20Gi"] {
        assert_eq!(said(&run(&cli, &["--disk", disk])), "AB", "{disk}");
        assert_eq!(sha256_file(&base), digest, "{disk}");
        assert_no_scratch(&cli);
    }
    let small = run(&cli, &["--disk", "./a,b.raw,ephemeral,size=512Ki"]);
    assert_eq!(small.code, Some(2), "{small}");
    assert_eq!(small.stderr, "error: the size 512Ki is too small: `./a,b.raw` has 1Mi\n");
    // A qcow2 below, by the name that says so; and the same disk to be kept.
    let from = base.display().to_string();
    let to = cli.work().join("c.qcow2").display().to_string();
    bootyard_testkit::qemu_img(["convert", "-f", "raw", "-O", "qcow2", &from, &to]);
    let digest = sha256_file(&to);
    assert_eq!(said(&run(&cli, &["--disk", "./c.qcow2,ephemeral"])), "AB");
    assert_eq!(sha256_file(&to), digest);
    assert_eq!(said(&run(&cli, &["--disk", "./a,b.raw"])), "AB");
    assert_eq!(said(&run(&cli, &["--disk", "./a,b.raw"])), "B", "what is kept is kept");
}

#[test]
fn an_empty_disk_lives_as_long_as_its_machine() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    guest(&cli, "disk.raw", 0x81);
    for _ in 0..2 {
        let output = run(&cli, &["--disk", "./disk.raw", "--empty-disk", "10Gi"]);
        assert_eq!(said(&output), "AB");
        assert_no_scratch(&cli);
    }
    let small = run(&cli, &["--disk", "./disk.raw", "--empty-disk", "1000"]);
    assert_eq!(small.code, Some(2), "{small}");
    assert!(small.stderr.contains("the size for volume empty-disk-0 is too low"), "{small}");
}

#[test]
fn a_container_disk_is_fetched_once() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    guest(&cli, "disk.raw", 0x80);
    let pushed = cli.run(["push", "./disk.raw", "oci:images:web"]);
    assert_eq!(pushed.code, Some(0), "{pushed}");
    let fetched = || {
        let entries = fs_err::read_dir(cli.store().join("containerdisks")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let disks = paths.filter(|path| path.extension().is_some_and(|name| name == "raw"));
        let facts = disks
            .map(|path| (sha256_file(&path), fs_err::metadata(&path).unwrap().modified().unwrap()));
        facts.collect::<Vec<_>>()
    };
    let disk = ["--container-disk", "oci:images:web,size=2Gi"];
    assert_eq!(said(&run(&cli, &disk)), "AB");
    let first = fetched();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].0, sha256_file(cli.work().join("disk.raw")));
    assert_eq!(said(&run(&cli, &disk)), "AB");
    assert_eq!(fetched(), first);
}

/// Starts a machine and waits until the guest has said so much.
fn started(cli: &Cli, more: &[&str], until: &str) -> std::process::Child {
    let log = cli.root().join("serial.log");
    let words = ["run", "--engine", "qemu", "--memory", "64Mi", "--disk", "./disk.raw,ephemeral"];
    let mut command = cli.command([&words, more].concat());
    let file = fs_err::File::create(&log).expect("a log").into_file();
    let child =
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().expect("a machine");
    let deadline = Instant::now() + PATIENCE;
    while !letters(&String::from_utf8_lossy(&fs_err::read(&log).expect("a log"))).contains(until) {
        assert!(Instant::now() < deadline, "the guest does not say `{until}`");
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}

#[test]
fn each_start_is_a_new_life() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    guest(&cli, "disk.raw", 0x80);
    let digest = sha256_file(cli.work().join("disk.raw"));
    let mut machine = started(&cli, &["--run-strategy", "Always"], "ABAB");
    let pid = machine.id().to_string();
    bootyard_testkit::run(std::process::Command::new("kill").args(["-TERM", &pid]));
    assert_eq!(machine.wait().unwrap().code(), Some(130));
    assert_no_scratch(&cli);
    assert_eq!(sha256_file(cli.work().join("disk.raw")), digest);
}

#[test]
fn what_a_killed_command_left_goes_with_the_next_one() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    guest(&cli, "disk.raw", 0x80);
    let mut machine = started(&cli, &["--run-strategy", "Always"], "A");
    machine.kill().unwrap();
    machine.wait().unwrap();
    let left = |path: &Path| fs_err::read_dir(path).unwrap().count();
    assert_eq!(left(&cli.store().join("run")), 1);
    assert_eq!(said(&run(&cli, &["--disk", "./disk.raw,ephemeral"])), "AB");
    assert_no_scratch(&cli);
}

/// A guest that says `A` if its second disk is an ISO 9660 file system, and powers off: it looks for the
/// mark of ECMA-119 §8.1 in the sector 64, which the BIOS has as head 1, sector 2.
fn seeing_sector() -> Vec<u8> {
    let look = [0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0xba, 0x81, 0x01, 0xbb, 0x00, 0x80, 0xcd, 0x13];
    let skip_unless_c = [0x80, 0x3e, 0x01, 0x80, b'C', 0x75, 6];
    let say = [0xb0, b'A', 0xba, 0xf8, 0x03, 0xee];
    let power_off = [0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];
    let mut sector = [&look[..], &skip_unless_c, &say, &power_off].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

#[test]
fn a_seed_of_flags_is_attached_and_goes_with_the_machine() {
    if !require_tool("qemu-system-x86_64") {
        return;
    }
    let cli = Cli::from_env();
    let mut disk = seeing_sector();
    disk.resize(1 << 20, 0);
    fs_err::write(cli.work().join("web.raw"), disk).expect("a disk");
    fs_err::write(cli.work().join("user.yaml"), "#cloud-config\n").expect("a file");
    assert_eq!(said(&run(&cli, &["--disk", "./web.raw"])), "");
    assert_eq!(said(&run(&cli, &["--disk", "./web.raw", "--user-data", "user.yaml"])), "A");
    assert_no_scratch(&cli);
    let both = run(&cli, &["--disk", "./web.raw", "--seed", "x.iso", "--hostname", "web"]);
    assert_eq!(both.code, Some(2));
    assert!(both.stderr.contains("`--seed` is given, and flags that make another seed"), "{both}");
}
