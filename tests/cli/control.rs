//! A machine on the QEMU engine, reached through its control socket.
#![expect(clippy::unwrap_used, reason = "a helper that fails ends its test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bootyard_testkit::{Cli, require_tool};

/// Generous for a software-emulated BIOS on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Real-mode code: writes `A` to the serial port, and then whatever it reads there. At a `!` it resets by
/// port 0xcf9, at a `.` it powers off (ACPI S5 on q35).
const ECHO: &[u8] = &[
    0xfa, // the BIOS shall not read the port meanwhile
    0xb0, b'A', 0xba, 0xf8, 0x03, 0xee, // write `A`
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf8, // wait for a byte
    0xba, 0xf8, 0x03, 0xec, // read it
    0x3c, b'!', 0x74, 0x07, // reset?
    0x3c, b'.', 0x74, 0x0a, // power off?
    0xee, 0xeb, 0xe9, // write it, and go on
    0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, // reset
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, // power off
];

/// Real-mode code: writes `A` to the serial port, and then for whatever it reads there the first byte of the
/// CD-ROM, or `-` if the BIOS cannot read it (INT 13h, function 42h).
const READ: &[u8] = &[
    0xfa, // the BIOS shall not read the port meanwhile
    0xb0, b'A', 0xba, 0xf8, 0x03, 0xee, // write `A`
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf8, // wait for a byte
    0xba, 0xf8, 0x03, 0xec, // read it
    0xc7, 0x06, 0x2e, 0x7c, 0x01,
    0x00, // one sector, where the BIOS tells how many it has read
    0xbe, 0x2c, 0x7c, 0xb8, 0x00, 0x42, 0xb2, 0xe0, 0xcd, 0x13, // read the CD-ROM
    0xb0, b'-', 0x72, 0xdc, // write `-` if that went wrong
    0xa0, 0x00, 0x80, 0xeb, 0xd7, // write what was read
    0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // the first sector, to 0x8000
];

/// A machine that runs in the background.
struct Machine {
    cli: Cli,
    run: Child,
}

impl Machine {
    /// `None` where there is no QEMU.
    fn start(flags: &[&str]) -> Option<Self> {
        Self::start_with(ECHO, &[], flags)
    }

    /// One whose boot sector is `code`, beside images of one byte each.
    fn start_with(code: &[u8], images: &[(&str, u8)], flags: &[&str]) -> Option<Self> {
        if !require_tool("qemu-system-x86_64") {
            return None;
        }
        let cli = Cli::from_env();
        let mut sector = vec![0; 1 << 20];
        sector[..code.len()].copy_from_slice(code);
        sector[510..512].copy_from_slice(&[0x55, 0xaa]);
        fs_err::write(cli.work().join("web.raw"), sector).unwrap();
        for (name, byte) in images {
            fs_err::write(cli.work().join(name), vec![*byte; 64 << 10]).unwrap();
        }
        let run = ["run", "--disk", "./web.raw", "--engine", "qemu", "--control", "web.sock"];
        let run =
            [&run[..], &["--serial-log", "web.log", "--net", "none", "--timeout", "90s"], flags]
                .concat();
        let create = |name| fs_err::File::create(cli.work().join(name)).unwrap().into_file();
        let mut command = cli.command(run);
        command.stdin(Stdio::null()).stdout(create("out")).stderr(create("err"));
        let run = command.spawn().unwrap();
        let machine = Self { cli, run };
        machine.wait_for("a socket", || machine.cli.work().join("web.sock").exists());
        Some(machine)
    }

    fn control(&self, words: &[&str]) -> String {
        let output = self.cli.run([&["control", "web.sock"], words].concat());
        assert_eq!(output.code, Some(0), "{words:?}: {output}");
        output.stdout
    }

    fn state(&self) -> String {
        let status: serde_json::Value =
            serde_json::from_str(&self.control(&["status", "--json"])).unwrap();
        status["state"].as_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs_err::read(self.cli.work().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How often the guest has begun: behind as much of the BIOS's line of dots as was written by then.
    fn starts(&self) -> usize {
        self.read("out").replace(['\r', '\n'], "").matches(".A").count()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !happened() {
            let said = self.read("err");
            assert!(Instant::now() < deadline, "no {what}: {said}\n{}", self.read("out"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its console, on pipes.
    fn console(&self) -> (Child, BufReader<impl Read + use<>>) {
        let mut command = self.cli.command(["console", "web.sock"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut console = command.spawn().unwrap();
        let output = BufReader::new(console.stdout.take().unwrap());
        (console, output)
    }

    /// How `run` ended.
    fn end(mut self) -> (Option<i32>, String) {
        let mut code = None;
        let deadline = Instant::now() + PATIENCE;
        while code.is_none() && Instant::now() < deadline {
            code = self.run.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = self.read("err");
        assert!(!self.cli.work().join("web.sock").exists(), "the socket is left: {said}");
        (code.expect("it ended").code(), said)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.run.kill();
        let _ = self.run.wait();
    }
}

#[test]
fn a_machine_is_paused_resumed_and_reset() {
    let Some(machine) = Machine::start(&["--paused"]) else { return };
    machine.wait_for("paused machine", || machine.state() == "paused");
    assert_eq!(machine.read("out"), "");
    let mut events = machine.cli.command(["control", "web.sock", "events", "--json"]);
    let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
    let heard = BufReader::new(events.stdout.take().unwrap());
    // Whoever is answered after the subscription was made comes after it.
    std::thread::sleep(Duration::from_millis(500));
    machine.control(&["resume"]);
    assert_eq!(machine.state(), "running");
    machine.wait_for("guest", || machine.starts() == 1);
    for _ in 0..2 {
        machine.control(&["pause"]);
        assert_eq!(machine.state(), "paused");
    }
    machine.control(&["reset"]);
    machine.control(&["resume"]);
    machine.wait_for("second start", || machine.starts() == 2);
    let metrics = machine.control(&["statistics"]);
    assert!(metrics.contains(r#"kubevirt_vmi_storage_iops_read_total{name="web",drive="disk0"}"#));
    machine.control(&["nmi"]);
    machine.control(&["power-button"]);
    machine.control(&["stop"]);
    let heard: Vec<serde_json::Value> =
        heard.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(events.wait().unwrap().success());
    let names: Vec<&str> = heard
        .iter()
        .filter_map(|event| event["event"].as_str())
        .filter(|e| *e != "reset")
        .collect();
    assert_eq!(names, ["resumed", "paused", "resumed", "stopped"]);
    assert!(heard.iter().any(|event| event["event"] == "reset" && event["by"] == "user"));
    let (code, said) = machine.end();
    assert_eq!(code, Some(130), "{said}");
}

#[test]
fn consoles_share_the_serial_port_with_the_log_and_standard_output() {
    let Some(machine) = Machine::start(&[]) else { return };
    machine.wait_for("guest", || machine.starts() == 1);
    let (mut first, mut shown) = machine.console();
    // The rest of the BIOS's line comes behind what the guest wrote first.
    let mut len = 0;
    machine.wait_for("silence", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut len, machine.read("out").len()) == machine.read("out").len()
    });
    let mut before = vec![0; len];
    shown.read_exact(&mut before).unwrap();
    assert_eq!(String::from_utf8_lossy(&before), machine.read("out"));
    let (mut second, mut also) = machine.console();
    also.read_exact(&mut before).unwrap();
    second.stdin.as_mut().unwrap().write_all(b"typed\n").unwrap();
    for shown in [&mut shown, &mut also] {
        let mut line = String::new();
        shown.read_line(&mut line).unwrap();
        assert_eq!(line, "typed\n");
    }
    // What is no terminal is typed to its end, and answered.
    let (mut third, mut answer) = machine.console();
    third.stdin.take().unwrap().write_all(b"all of it\n").unwrap();
    let mut answered = String::new();
    answer.read_to_string(&mut answered).unwrap();
    assert!(answered.ends_with("typed\nall of it\n") && third.wait().unwrap().success());
    first.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    machine.wait_for("second start", || machine.starts() == 2);
    first.stdin.as_mut().unwrap().write_all(b".").unwrap();
    // The end of the machine is the end of its consoles.
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    let (out, log) = (machine.read("out"), machine.read("web.log"));
    assert_eq!(out, log);
    let (code, said) = machine.end();
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_guest_may_not_restart_but_the_reset_button_works() {
    let Some(machine) = Machine::start(&["--reboot-policy", "Terminate"]) else { return };
    machine.wait_for("guest", || machine.starts() == 1);
    machine.control(&["reset"]);
    machine.wait_for("second start", || machine.starts() == 2);
    machine.control(&["pause"]);
    machine.control(&["reset"]);
    machine.control(&["resume"]);
    machine.wait_for("third start", || machine.starts() == 3);
    let (mut console, _shown) = machine.console();
    console.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    console.wait().unwrap();
    assert_eq!(machine.starts(), 3);
    let (code, said) = machine.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the guest reset itself"), "{said}");
}

#[test]
fn a_cd_rom_is_taken_out_and_another_one_put_in() {
    let images = [("a.iso", b'a'), ("b.iso", b'b'), ("c.iso", b'c')];
    let flags = ["--cdrom", "./a.iso"];
    let Some(machine) = Machine::start_with(READ, &images, &flags) else { return };
    machine.wait_for("guest", || machine.starts() == 1);
    let (mut console, _shown) = machine.console();
    let mut reads = |expected: u8| {
        // After a change the drive tells of that first.
        machine.wait_for("medium", || {
            console.stdin.as_mut().unwrap().write_all(b"r").unwrap();
            std::thread::sleep(Duration::from_millis(200));
            machine.read("out").as_bytes().last() == Some(&expected)
        });
    };
    reads(b'a');
    machine.control(&["eject", "cdrom0"]);
    reads(b'-');
    machine.control(&["insert", "cdrom0", "b.iso"]);
    reads(b'b');
    let image = |name| fs_err::File::open(machine.cli.work().join(name)).unwrap().into_file();
    assert!(image("b.iso").try_lock().is_err(), "another machine could write to it");
    let theirs = image("c.iso");
    theirs.lock().unwrap();
    for (name, expected) in [("none.iso", "No such file"), ("c.iso", "another machine")] {
        let output = machine.cli.run(["control", "web.sock", "insert", "cdrom0", name]);
        assert_eq!(output.code, Some(1), "{output}");
        assert!(output.stderr.contains(expected), "{output}");
    }
    reads(b'b');
    machine.control(&["eject", "cdrom0"]);
    image("b.iso").try_lock().unwrap();
    machine.control(&["stop"]);
    assert_eq!(machine.end().0, Some(130));
}

/// What a shell on a terminal of its own prints; it is fed `keys`, one each second.
fn on_a_terminal(machine: &Machine, script: &str, keys: &[&str]) -> String {
    let shell = format!("stty -a >before; {script}; stty -a >after");
    let mut command = machine.cli.command(["--version"]);
    let program = command.get_program().to_owned();
    command = {
        let mut typed = Command::new("script");
        typed
            .args(["-qec", &shell, "/dev/null"])
            .envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        typed
    };
    command.current_dir(machine.cli.work()).env("BOOTYARD", program);
    let mut terminal =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a terminal");
    for key in keys {
        std::thread::sleep(Duration::from_secs(1));
        terminal.stdin.as_mut().unwrap().write_all(key.as_bytes()).unwrap();
    }
    let mut shown = String::new();
    terminal.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    terminal.wait().unwrap();
    let (before, after) = (machine.read("before"), machine.read("after"));
    assert!(before.contains("speed"), "{shown}");
    assert_eq!(before, after, "{shown}");
    shown
}

#[test]
fn a_terminal_is_given_back_however_the_console_ends() {
    if !require_tool("script") {
        return;
    }
    let Some(machine) = Machine::start(&[]) else { return };
    machine.wait_for("guest", || machine.starts() == 1);
    // Until the terminal is raw.
    let during = "(until grep -q -e -icanon during; do stty -a </dev/tty >during; sleep 0.1; done) \
                  2>/dev/null & $BOOTYARD console web.sock";
    let shown = on_a_terminal(&machine, during, &["key", "", "\x1d"]);
    assert!(shown.contains("Ctrl-] detaches") && shown.contains("key"), "{shown}");
    assert!(machine.read("during").contains("-icanon"), "{}", machine.read("during"));
    let killed = "timeout --foreground -s TERM 2 $BOOTYARD console web.sock";
    on_a_terminal(&machine, killed, &["key"]);
    let stopped = "(sleep 2; $BOOTYARD control web.sock stop) & $BOOTYARD console web.sock";
    on_a_terminal(&machine, stopped, &["key"]);
    assert_eq!(machine.end().0, Some(130));
}

#[test]
fn what_is_no_socket_of_a_machine_is_said_to_be_none() {
    let cli = Cli::from_env();
    for words in [["control", "none.sock", "status"], ["console", "none.sock", "--no-scrollback"]] {
        let output = cli.run(words);
        assert_eq!(output.code, Some(1));
        assert!(
            output.stderr.contains("error: `none.sock`: cannot connect: No such file"),
            "{output}"
        );
        assert!(output.stderr.contains("hint: name the socket of a machine"), "{output}");
    }
}
