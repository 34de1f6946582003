//! Engines with real child processes: QEMU with guests of one boot sector, and the exit codes of a
//! `machine` subcommand.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test looks for QEMU and kills it; a helper that fails ends its test"
)]

use std::io::{self, Write};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bootyard_spec::{
    BootSpec, ByteSize, Class, CpuModel, CpuTopology, Explain, Firmware, GuestEnd, RebootPolicy,
    RunStrategy, Uuid,
};
use bootyard_supervise::control::wire::ErrorBody;
use bootyard_supervise::strategy::{BackOff, Policy, State};
use bootyard_supervise::{
    Cancel, DiskFormat, DiskUsage, Ended, Engine, Error, KvmEngine, LaunchPlan, Observer, Outcome,
    PlanDisk, QemuEngine, Serial, Woken, run,
};
use bootyard_testkit::require_tool;
use fs_err::File;
use rustix::process::{Pid, getpgid};
use tempfile::TempDir;

/// Generous for a software-emulated BIOS on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Real-mode code: writes `A` to the first serial port.
const HELLO: &[u8] = &[0xb0, b'A', 0xba, 0xf8, 0x03, 0xee];
/// ACPI S5 on q35: 0x2000 to PM1a control at 0x604.
const POWER_OFF: &[u8] = &[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xeb, 0xfd];
/// The pvpanic device: 1 to port 0x505.
const PANIC: &[u8] = &[0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd];
/// The BIOS's disk service: writes the second sector.
const WRITE_SECTOR: &[u8] =
    &[0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, 0xba, 0x80, 0x00, 0xbb, 0x00, 0x7c, 0xcd, 0x13];
/// `cli; hlt` for ever.
const HANG: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfc];
/// Unless CMOS byte 0x7f is set: sets it and resets by port 0xcf9. What follows runs after that.
const RESET_ONCE: &[u8] = &[
    0xb0, 0x7f, 0xe6, 0x70, 0xe4, 0x71, 0x84, 0xc0, 0x75, 0x11, // skip the rest if set
    0xb0, 0x7f, 0xe6, 0x70, 0xb0, 0x01, 0xe6, 0x71, // set
    0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd, // reset
];

/// A guest of one boot sector in a directory of its own.
struct Guest {
    dir: TempDir,
    plan: LaunchPlan,
}

impl Guest {
    fn new(code: &[&[u8]]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // QEMU's options are separated by commas.
        let path = dir.path().join("disk,1.raw");
        write_boot_sector(&path, code);
        let disk = PlanDisk {
            path,
            usage: DiskUsage::Write,
            format: DiskFormat::Raw,
            backing: None,
            attachment: bootyard_spec::DiskAttachment::default(),
        };
        let plan = LaunchPlan {
            name: "guest".to_owned(),
            cpus: CpuTopology::of_cores(NonZeroU32::MIN),
            cpu_model: CpuModel::Host,
            memory: ByteSize::from_mib(64),
            huge_pages: None,
            firmware: Firmware { uuid: Uuid::from_bytes([7; 16]), texts: Vec::new() },
            sandbox: true,
            disks: vec![disk],
            networks: Vec::new(),
            services: bootyard_spec::GuestServices::default(),
            boot: BootSpec::default(),
            reboot_policy: RebootPolicy::Reboot,
            start_paused: false,
        };
        Self { dir, plan }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("serial.log")
    }

    fn serial(&self) -> Serial {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        Serial { input: Stdio::null(), output: Box::new(log) }
    }

    fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs_err::read(self.log()).unwrap()).into_owned()
    }

    /// What the guest wrote to its serial port in all runs; the BIOS writes no `A`.
    fn written(&self) -> String {
        self.log_text().matches('A').collect()
    }
}

fn write_boot_sector(path: &Path, code: &[&[u8]]) {
    let mut sector = code.concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    fs_err::write(path, sector).unwrap();
}

/// Does something at the end of each run, counted from 1.
struct Watcher<'a> {
    guest: &'a Guest,
    ends: Vec<GuestEnd>,
    after: &'a dyn Fn(usize),
}

impl Observer for Watcher<'_> {
    fn changed(&mut self, _: State) {}

    fn ended(&mut self, ended: &Ended) {
        self.ends.push(ended.end);
        (self.after)(self.ends.len());
    }

    fn serial(&mut self) -> Result<Serial, Error> {
        Ok(self.guest.serial())
    }
}

fn open_medium(_: &Path) -> Result<OwnedFd, ErrorBody> {
    panic!("nobody inserts anything")
}

fn qemu() -> Option<QemuEngine> {
    let program = PathBuf::from("/usr/bin/qemu-system-x86_64");
    require_tool("qemu-system-x86_64").then_some(QemuEngine { program, kvm: false, open_medium })
}

fn supervise(
    engine: &dyn Engine,
    guest: &Guest,
    strategy: RunStrategy,
    time_limit: Duration,
    cancel: &Cancel,
    after: &dyn Fn(usize),
) -> Outcome {
    let base = Duration::from_millis(10);
    let back_off = BackOff { base, ..BackOff::default() };
    let policy = Policy { strategy, time_limit: Some(time_limit), back_off };
    let mut watcher = Watcher { guest, ends: Vec::new(), after };
    run(&policy, &guest.plan, engine, &mut watcher, cancel).unwrap()
}

#[track_caller]
fn ends_once(code: &[&[u8]], limit: Duration, end: GuestEnd, written: &str) {
    let Some(engine) = qemu() else { return };
    let (guest, cancel) = (Guest::new(code), Cancel::new().unwrap());
    let outcome = supervise(&engine, &guest, RunStrategy::Once, limit, &cancel, &|_| {});
    assert_eq!(outcome, Outcome { end, runs: 1, failure: None, note: None });
    assert_eq!(guest.written(), written);
}

#[test]
fn a_guest_that_powers_off_is_done() {
    ends_once(&[HELLO, POWER_OFF], PATIENCE, GuestEnd::PowerOff, "A");
}

#[test]
fn a_guest_that_resets_starts_again_in_place() {
    ends_once(&[HELLO, RESET_ONCE, POWER_OFF], PATIENCE, GuestEnd::PowerOff, "AA");
}

#[test]
fn a_guest_that_panics_crashed() {
    ends_once(&[HELLO, PANIC], PATIENCE, GuestEnd::Crash, "A");
}

#[test]
fn a_guest_that_hangs_is_killed_when_its_time_is_over() {
    ends_once(&[HELLO, HANG], Duration::from_secs(8), GuestEnd::TimedOut, "A");
}

#[test]
fn a_guest_is_stopped_when_the_user_says_so() {
    let Some(engine) = qemu() else { return };
    let (guest, cancel) = (Guest::new(&[HELLO, HANG]), Cancel::new().unwrap());
    cancel.cancel();
    let outcome = supervise(&engine, &guest, RunStrategy::Always, PATIENCE, &cancel, &|_| {});
    assert_eq!(outcome, Outcome { end: GuestEnd::Stopped, runs: 1, failure: None, note: None });
}

#[test]
fn always_starts_again_until_the_user_stops_it() {
    let Some(engine) = qemu() else { return };
    let (guest, cancel) = (Guest::new(&[HELLO, POWER_OFF]), Cancel::new().unwrap());
    let stop_after_two = |runs| {
        if runs == 2 {
            cancel.cancel();
        }
    };
    let strategy = RunStrategy::Always;
    let outcome = supervise(&engine, &guest, strategy, PATIENCE, &cancel, &stop_after_two);
    assert_eq!(outcome, Outcome { end: GuestEnd::Stopped, runs: 3, failure: None, note: None });
    assert!(guest.written().starts_with("AA"));
}

#[test]
fn rerun_on_failure_starts_again_until_the_guest_powers_off() {
    let Some(engine) = qemu() else { return };
    let (guest, cancel) = (Guest::new(&[HELLO, PANIC]), Cancel::new().unwrap());
    let heal_after_two = |runs| {
        if runs == 2 {
            write_boot_sector(&guest.plan.disks[0].path, &[HELLO, POWER_OFF]);
        }
    };
    let strategy = RunStrategy::RerunOnFailure;
    let outcome = supervise(&engine, &guest, strategy, PATIENCE, &cancel, &heal_after_two);
    assert_eq!(outcome, Outcome { end: GuestEnd::PowerOff, runs: 3, failure: None, note: None });
    assert_eq!(guest.written(), "AAA");
}

#[test]
fn signals_from_outside_are_told_apart() {
    let Some(engine) = qemu() else { return };
    let cancel = Cancel::new().unwrap();
    for (signal, end) in [("-KILL", GuestEnd::EngineFailed), ("-TERM", GuestEnd::Stopped)] {
        let guest = Guest::new(&[HELLO, HANG]);
        let mut machine = engine.spawn(&guest.plan, guest.serial()).unwrap();
        while guest.written().is_empty() {
            let woken = machine.wait(&cancel, Some(Duration::from_millis(50))).unwrap();
            assert_eq!(woken, Woken::TimedOut);
        }
        let pid = machine.pid().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let ended = machine.join().unwrap();
        assert_eq!(ended.end, end);
        assert_eq!(ended.failure.is_some(), end == GuestEnd::EngineFailed);
        assert_eq!(machine.wait(&cancel, None).unwrap(), Woken::Ended(ended));
    }
}

#[test]
fn what_qemu_complains_about_is_reported() {
    let Some(engine) = qemu() else { return };
    let mut guest = Guest::new(&[HANG]);
    guest.plan.disks[0].path = "/nonexistent/disk".into();
    let ended = engine.spawn(&guest.plan, guest.serial()).unwrap().join().unwrap();
    let failure = ended.failure.unwrap();
    assert_eq!((ended.end, failure.class), (GuestEnd::EngineFailed, Class::Engine));
    assert!(failure.stderr.contains("/nonexistent/disk"), "{}", failure.stderr);
}

#[test]
fn what_cannot_start_is_an_error_with_a_remedy() {
    let mut guest = Guest::new(&[HANG]);
    let engine = QemuEngine { program: "/nonexistent/qemu".into(), kvm: false, open_medium };
    let error = engine.spawn(&guest.plan, guest.serial()).err().unwrap();
    assert_eq!(error.to_string(), "starting `/nonexistent/qemu` failed");
    assert_eq!(error.class(), Class::Engine);
    guest.plan.boot.append = Some("quiet".to_owned());
    let error = engine.spawn(&guest.plan, guest.serial()).err().unwrap();
    assert_eq!(error.hint().unwrap(), "leave `--append` out, or use `--engine kvm`");
}

/// A program that does what `script` says where the `machine` subcommand would run a guest.
fn machine(guest: &Guest, script: &str) -> KvmEngine {
    let (text, program) = (guest.dir.path().join("script"), guest.dir.path().join("machine"));
    fs_err::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Not written by this process, whose other children might hold it open while they start: a
    // program that is open for writing cannot be executed.
    bootyard_testkit::run(Command::new("install").args(["-m", "755"]).arg(text).arg(&program));
    KvmEngine { program, open_medium }
}

#[test]
fn a_machines_exit_code_tells_the_end() {
    let guest = Guest::new(&[HANG]);
    for (script, end, class) in [
        ("echo a warning >&2; exit 0", GuestEnd::PowerOff, None),
        ("exit 64", GuestEnd::Reset, None),
        ("echo triple fault >&2; exit 65", GuestEnd::Crash, None),
        ("echo 'error: no kernel' >&2; exit 7", GuestEnd::EngineFailed, Some(Class::Boot)),
        ("kill -SEGV $$", GuestEnd::EngineFailed, Some(Class::Engine)),
    ] {
        let engine = machine(&guest, script);
        let ended = engine.spawn(&guest.plan, guest.serial()).unwrap().join().unwrap();
        assert_eq!((ended.end, ended.failure.as_ref().map(|failure| failure.class)), (end, class));
        if class == Some(Class::Boot) {
            assert_eq!(ended.failure.unwrap().stderr, "error: no kernel");
        }
        assert_eq!(ended.note.as_deref(), (end == GuestEnd::Crash).then_some("triple fault"));
    }
}

#[test]
fn a_machine_is_asked_to_end_before_it_is_killed() {
    let link = "for word; do case $word in --link=*) link=${word#*=};; esac; done; echo up";
    // Not every shell takes descriptors of two digits.
    let asked = format!("{link}; bash -c \"head -n 1 <&$link\"; echo stored");
    let deaf = "echo up; exec sleep 60";
    for (script, written) in
        [(&*asked, "up\n{\"id\":1,\"command\":\"stop\"}\nstored\n"), (deaf, "up\n")]
    {
        let guest = Guest::new(&[HANG]);
        let engine = machine(&guest, script);
        let mut machine = engine.spawn(&guest.plan, guest.serial()).unwrap();
        while guest.log_text().is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        machine.kill().unwrap();
        machine.join().unwrap();
        assert_eq!(guest.log_text(), written);
    }
}

#[test]
fn a_machine_holds_the_lifeline_and_is_killed_with_its_handle() {
    let guest = Guest::new(&[HANG]);
    // The last argument ends in the descriptor's number; reading it blocks as long as we live.
    let engine = machine(&guest, "for fd; do :; done; echo up; eval \"cat <&${fd#*=}\"; echo gone");
    let machine = engine.spawn(&guest.plan, guest.serial()).unwrap();
    let pid = machine.pid();
    // The terminal's signals are not for it.
    let group = getpgid(Some(Pid::from_raw(pid.cast_signed()).unwrap())).unwrap();
    assert_eq!(group.as_raw_nonzero().get().cast_unsigned(), pid);
    while guest.log_text().is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(guest.log_text(), "up\n");
    drop(machine);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn who_is_stopped_while_backing_off_did_not_fail() {
    let (guest, cancel) = (Guest::new(&[HANG]), Cancel::new().unwrap());
    let engine = machine(&guest, "echo broken >&2; exit 7");
    let stop = |_| cancel.cancel();
    let outcome = supervise(&engine, &guest, RunStrategy::Always, PATIENCE, &cancel, &stop);
    assert_eq!(outcome, Outcome { end: GuestEnd::Stopped, runs: 1, failure: None, note: None });
}

#[test]
fn a_disk_that_does_not_boot_says_so() {
    let Some(engine) = qemu() else { return };
    let (guest, cancel) = (Guest::new(&[]), Cancel::new().unwrap());
    fs_err::write(&guest.plan.disks[0].path, vec![0; 1 << 20]).unwrap();
    let mut machine = engine.spawn(&guest.plan, guest.serial()).unwrap();
    while !guest.log_text().contains("No bootable device.") {
        let woken = machine.wait(&cancel, Some(Duration::from_millis(50))).unwrap();
        assert_eq!(woken, Woken::TimedOut);
    }
}

#[test]
fn an_error_of_the_hosts_disk_is_told() {
    let Some(qemu) = qemu() else { return };
    let guest = Guest::new(&[HELLO, WRITE_SECTOR, POWER_OFF]);
    // Files may not grow beyond a sector, nor be written there.
    let script = format!("trap '' XFSZ; ulimit -f 1; exec {} \"$@\"", qemu.program.display());
    let engine = QemuEngine { program: machine(&guest, &script).program, ..qemu };
    let serial = Serial { input: Stdio::null(), output: Box::new(io::sink()) };
    let ended = engine.spawn(&guest.plan, serial).unwrap().join().unwrap();
    let note = Some("writing `disk0` failed: File too large".to_owned());
    assert_eq!(ended, Ended { end: GuestEnd::PowerOff, failure: None, note });
}

#[test]
fn qemu_does_not_outlive_who_started_it() {
    let Some(engine) = qemu() else { return };
    let guest = Guest::new(&[HELLO, HANG]);
    // To the kernel a thread that ends is a parent that ends; a killed process has no thread left.
    let spawn = || {
        let machine = engine.spawn(&guest.plan, guest.serial()).unwrap();
        let pid = machine.pid();
        while guest.written().is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::mem::forget(machine);
        pid
    };
    let pid = std::thread::scope(|scope| scope.spawn(spawn).join().unwrap());
    // Nobody has waited for it: what is left is a process without a command line.
    let line = PathBuf::from(format!("/proc/{pid}/cmdline"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs_err::read(&line).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "QEMU still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Takes its time, as a terminal does.
struct Slow(File);

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(20));
        self.0.write(&bytes[..bytes.len().min(4096)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn all_output_has_arrived_when_a_machine_has_ended() {
    let guest = Guest::new(&[HANG]);
    let engine = machine(&guest, "head -c 200000 /dev/zero");
    let output = Box::new(Slow(File::create(guest.log()).unwrap()));
    let serial = Serial { input: Stdio::null(), output };
    engine.spawn(&guest.plan, serial).unwrap().join().unwrap();
    assert_eq!(fs_err::metadata(guest.log()).unwrap().len(), 200_000);
}
