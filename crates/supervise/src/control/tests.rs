//! A server with its clients, over a machine that is not there.

use std::io::{Read, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bootyard_spec::{ByteSize, CpuModel, CpuTopology, Firmware, GuestEnd, RebootPolicy, Uuid};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::wire::{Command, ErrorBody, ErrorCode, Event, LINE_MAX, ResetBy};
use super::{Client, ClientError, EventSink, Remote, Server, Station};
use crate::engine::{Ended, Running, Woken};
use crate::strategy::State;
use crate::{Cancel, Console, Error, LaunchPlan};

/// Does what it is told, by writing it down.
#[derive(Debug, Default)]
struct Fake {
    done: Mutex<Vec<Command>>,
    events: EventSink,
}

impl Remote for Fake {
    fn execute(&self, command: &Command) -> Result<Value, ErrorBody> {
        self.done.lock().unwrap().push(command.clone());
        match command {
            Command::Pause => {
                self.events.send(Event::Paused);
                Ok(json!({}))
            }
            Command::Statistics(_) => Ok(json!({ "restarts": 3 })),
            Command::Nmi => Err(ErrorBody::new(ErrorCode::Failed, "no nerve")),
            _ => Ok(json!({})),
        }
    }

    fn events(&self) -> &EventSink {
        &self.events
    }
}

/// A process that is this one.
struct FakeRun(Arc<Fake>);

impl Running for FakeRun {
    fn remote(&self) -> Option<Arc<dyn Remote>> {
        Some(Arc::clone(&self.0) as Arc<dyn Remote>)
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn wait(&mut self, _: &Cancel, _: Option<Duration>) -> Result<Woken, Error> {
        Ok(Woken::TimedOut)
    }

    fn kill(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn join(&mut self) -> Result<Ended, Error> {
        Ok(ended())
    }
}

fn ended() -> Ended {
    Ended { end: GuestEnd::Crash, failure: None, note: Some("triple fault".to_owned()) }
}

struct Served {
    folder: TempDir,
    cancel: Cancel,
    console: Console,
    machine: Arc<Fake>,
    station: Station,
    server: Option<Server>,
}

impl Served {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = LaunchPlan {
            name: "web".to_owned(),
            cpus: CpuTopology::of_cores(NonZeroU32::MIN),
            cpu_model: CpuModel::Host,
            memory: ByteSize::from_mib(64),
            huge_pages: None,
            firmware: Firmware { uuid: Uuid::from_bytes([7; 16]), texts: Vec::new() },
            sandbox: true,
            disks: Vec::new(),
            networks: Vec::new(),
            services: bootyard_spec::GuestServices::default(),
            boot: bootyard_spec::BootSpec::default(),
            reboot_policy: RebootPolicy::Reboot,
            start_paused: false,
        };
        let (cancel, console) = (Cancel::new().unwrap(), Console::new(None));
        let station = Station::new(&plan, "kvm", console.clone(), cancel.clone());
        let path = folder.path().join("control.sock");
        let server = Some(Server::listen(&path, station.clone()).unwrap());
        Self { folder, cancel, console, machine: Arc::default(), station, server }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    fn run(&self) {
        self.station.changed(State::Starting { failures: 0 });
        self.station.launched(&FakeRun(self.machine.clone()));
        self.station.changed(State::Running { since: Duration::ZERO, failures: 0 });
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    fn state(&self) -> Value {
        self.client().ask(Command::Status).unwrap()["state"].take()
    }
}

fn refused(result: Result<Value, ClientError>) -> ErrorCode {
    match result {
        Err(ClientError::Refused(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_is_controlled_through_its_life() {
    let served = Served::new();
    let mut client = served.client();
    assert_eq!((client.about().machine.as_str(), client.about().engine.as_str()), ("web", "kvm"));
    assert_eq!(refused(client.ask(Command::Pause)), ErrorCode::NotRunning);
    assert_eq!(served.state(), "stopped");
    served.run();
    let status = client.ask(Command::Status).unwrap();
    assert_eq!((&status["state"], &status["runs"]), (&json!("running"), &json!(1)));
    assert_eq!(status["pid"], std::process::id());
    client.ask(Command::Pause).unwrap();
    assert_eq!(served.state(), "paused");
    assert_eq!(refused(client.ask(Command::Nmi)), ErrorCode::Failed);
    let statistics = client.ask(Command::Statistics(None)).unwrap();
    assert_eq!(
        (&statistics["restarts"], &statistics["memory_bytes"]),
        (&json!(3), &json!(64 << 20))
    );
    assert!(statistics["resident_bytes"].as_u64().unwrap() > 1 << 20);
    served.station.ended(&ended());
    assert_eq!(refused(client.ask(Command::Resume)), ErrorCode::NotRunning);
    assert!(!served.cancel.wait(None, Some(Duration::ZERO)).unwrap().0);
    client.ask(Command::Stop).unwrap();
    assert!(served.cancel.wait(None, Some(Duration::ZERO)).unwrap().0);
    let done = served.machine.done.lock().unwrap().clone();
    assert_eq!(done, [Command::Pause, Command::Nmi, Command::Statistics(None)]);
}

#[test]
fn subscribers_hear_everything_in_order_and_the_end() {
    let mut served = Served::new();
    let mut listener = served.client();
    listener.subscribe().unwrap();
    // Kept until somebody listens.
    served.machine.events.send(Event::Reset { by: ResetBy::Guest });
    served.run();
    served.client().ask(Command::Pause).unwrap();
    served.station.ended(&ended());
    served.station.changed(State::BackOff { until: Duration::ZERO, failures: 2 });
    served.server = None;
    let mut heard = Vec::new();
    while let Some(line) = listener.event().unwrap() {
        assert!(line.time_ms > 1_700_000_000_000);
        heard.push(line.event);
    }
    let expected = [
        Event::Started { run: 1 },
        Event::Reset { by: ResetBy::Guest },
        Event::Paused,
        Event::Crash { reason: Some("triple fault".to_owned()) },
        Event::BackOff { failures: 2 },
    ];
    assert_eq!(heard, expected);
    assert!(!served.path().exists());
}

#[test]
fn nonsense_is_answered_and_the_connection_goes_on() {
    let served = Served::new();
    let mut stream = UnixStream::connect(served.path()).unwrap();
    let long = vec![b'x'; LINE_MAX + 10];
    let lines: [&[u8]; 6] = [
        b"hello",
        &long,
        b"\xff\x00",
        b"",
        b"{\"id\":5,\"command\":\"fly\"}",
        b"{\"id\":6,\"command\":\"status\"}",
    ];
    for line in lines {
        stream.write_all(line).unwrap();
        stream.write_all(b"\n").unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let answers: Vec<Value> =
        answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[0]["bootyard"]["protocol"], 1);
    let codes: Vec<&Value> = answers[1..6].iter().map(|answer| &answer["error"]["code"]).collect();
    assert_eq!(
        codes,
        ["bad-request", "line-too-long", "bad-request", "bad-request", "unknown-command"]
    );
    assert_eq!((&answers[5]["id"], &answers[6]["id"]), (&json!(5), &json!(6)));
    assert_eq!(answers[6]["result"]["state"], "stopped");
}

#[test]
fn a_slow_subscriber_loses_events_and_holds_up_nobody() {
    let served = Served::new();
    let mut slow = served.client();
    slow.subscribe().unwrap();
    served.client().ask(Command::Status).unwrap();
    served.run();
    let message = "x".repeat(10_000);
    let sent = 1000;
    for _ in 0..sent {
        served.machine.events.send(Event::DeviceFailure { message: message.clone() });
    }
    assert_eq!(slow.event().unwrap().unwrap().event, Event::Started { run: 1 });
    let (mut heard, mut lost) = (0, 0);
    while heard + lost < sent + 1 {
        // Those that are sent now tell of those that were lost before.
        match slow.event().unwrap().unwrap().event {
            Event::Lost { count } => lost += count,
            Event::DeviceFailure { .. } => {
                heard += 1;
                if lost == 0 {
                    served.machine.events.send(Event::Resumed);
                }
            }
            Event::Resumed => {}
            other => panic!("{other:?}"),
        }
        if lost > 0 {
            break;
        }
    }
    assert!(lost > 0 && heard < sent, "{heard} heard, {lost} lost");
}

#[test]
fn the_console_is_raw_in_both_directions_and_begins_with_what_was_before() {
    let served = Served::new();
    let mut output = served.console.output(Box::new(std::io::sink()));
    let mut echo = served.console.keys().unwrap();
    output.write_all(b"before ").unwrap();
    let mut consoles: Vec<_> = (0..2).map(|_| served.client().console(true).unwrap()).collect();
    let mut fresh = served.client().console(false).unwrap();
    consoles[0].keys().unwrap().type_in(b"typed\x1d\xff").unwrap();
    let mut typed = [0; 7];
    echo.read_exact(&mut typed).unwrap();
    output.write_all(&typed).unwrap();
    for console in &mut consoles {
        let mut read = [0; 14];
        console.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"before typed\x1d\xff");
    }
    let mut read = [0; 7];
    fresh.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"typed\x1d\xff");
    consoles[1].keys().unwrap().hang_up();
    assert_eq!(consoles[1].read(&mut read).unwrap(), 0);
    drop(served);
    assert_eq!(fresh.read(&mut read).unwrap(), 0);
}

#[test]
fn there_are_only_so_many_clients_and_places_come_back() {
    let served = Served::new();
    let clients: Vec<Client> = (0..16).map(|_| served.client()).collect();
    let error = Client::connect(&served.path()).unwrap_err();
    assert_eq!(error.to_string(), "16 clients are connected, which is the most");
    drop(clients);
    let again = || Client::connect(&served.path()).is_ok();
    assert!((0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        again()
    }));
}

#[test]
fn only_a_socket_that_nobody_serves_is_replaced() {
    let served = Served::new();
    let mode = fs_err::metadata(served.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listen = |path: &Path| Server::listen(path, served.station.clone());
    let why = |result: Result<Server, Error>| match result.unwrap_err() {
        Error::ControlSocket { source, .. } => source.to_string(),
        other => panic!("{other}"),
    };
    assert_eq!(why(listen(&served.path())), "another machine serves it");
    let file = served.folder.path().join("file");
    fs_err::write(&file, "mine").unwrap();
    assert_eq!(why(listen(&file)), "there is something else at this path");
    let long = served.folder.path().join("x".repeat(120));
    assert_eq!(why(listen(&long)), "a socket's path has at most 107 bytes");
    let stale = served.folder.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let server = listen(&stale).unwrap();
    Client::connect(&stale).unwrap();
    // What took the place of our socket stays.
    fs_err::remove_file(&stale).unwrap();
    fs_err::write(&stale, "theirs").unwrap();
    drop(server);
    assert_eq!(fs_err::read_to_string(&stale).unwrap(), "theirs");
}

#[test]
fn what_is_no_control_socket_is_not_spoken_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    for (line, words) in [
        ("HTTP/1.1 400 Bad Request\r\n", "this is no control socket"),
        ("{\"QMP\":{}}\n", "this is no control socket"),
        (
            "{\"bootyard\":{\"protocol\":9,\"version\":\"\",\"machine\":\"\",\"engine\":\"\",\"commands\":[]}}\n",
            "version 9",
        ),
        ("", "broke off"),
    ] {
        let connect = std::thread::spawn({
            let path = path.clone();
            move || Client::connect(&path).unwrap_err().to_string()
        });
        listener.accept().unwrap().0.write_all(line.as_bytes()).unwrap();
        let error = connect.join().unwrap();
        assert!(error.contains(words), "{error}");
    }
    drop(listener);
    assert!(matches!(Client::connect(&path), Err(ClientError::Connect(_))));
}
