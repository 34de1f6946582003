//! The console device between a driver and clients of its sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::QUEUE;
use super::guest::{DEVICE, Driver, GuestQueue, Machine};
use crate::virtio::{Channel, Console, Error, HostEnd, Size};

const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;

/// Control messages as bytes: port, event, value.
const fn message(id: u8, event: u8, value: u8) -> [u8; 8] {
    [id, 0, 0, 0, event, 0, value, 0]
}

const DEVICE_READY: [u8; 8] = message(0, 0, 1);
const ADD: u8 = 1;
const PORT_READY: u8 = 3;
const CONSOLE_PORT: u8 = 4;
const RESIZE: u8 = 5;
const PORT_OPEN: u8 = 6;
const PORT_NAME: u8 = 7;

/// Where what the driver sends is, and what it gets.
const BUFFER: u64 = 0x10_0000;
const ROOM: u64 = 0x18_0000;

/// A socket to which clients connect.
struct Socket {
    _folder: TempDir,
    path: PathBuf,
    end: HostEnd,
}

impl Socket {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let end = HostEnd::listening(UnixListener::bind(&path).unwrap()).unwrap();
        Self { _folder: folder, path, end }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }
}

/// A device with a console and one channel.
fn device(console: &Socket, channel: &Socket) -> Console {
    let channel = Channel { name: "org.example.0".to_owned(), end: channel.end.clone() };
    Console::new(Some(console.end.clone()), vec![channel])
}

fn send(queue: &mut GuestQueue<'_, '_>, bytes: &[u8]) {
    queue.memory().write_slice(bytes, GuestAddress(BUFFER)).unwrap();
    queue.offer(0, &[(BUFFER, u32::try_from(bytes.len()).unwrap(), false)]);
    queue.ring();
    assert_eq!(queue.wait_used(), (0, 0));
}

/// Offers room and waits for what comes.
fn receive(queue: &mut GuestQueue<'_, '_>, room: u32) -> Vec<u8> {
    queue.offer(0, &[(ROOM, room, true)]);
    queue.ring();
    let (_, len) = queue.wait_used();
    let mut bytes = vec![0; len as usize];
    queue.memory().read_slice(&mut bytes, GuestAddress(ROOM)).unwrap();
    bytes
}

/// Starts all virtqueues, and makes and opens the ports.
fn start<'d, 'm>(driver: &'d Driver<'m>, ports: &[u8]) -> Vec<GuestQueue<'d, 'm>> {
    let mut queues = driver.start_queues(F_SIZE | F_MULTIPORT, QUEUE, 6);
    send(&mut queues[3], &DEVICE_READY);
    for port in ports {
        assert_eq!(receive(&mut queues[2], 64), message(*port, ADD, 0));
    }
    for port in ports {
        send(&mut queues[3], &message(*port, PORT_READY, 1));
        let _name_or_console = receive(&mut queues[2], 64);
        send(&mut queues[3], &message(*port, PORT_OPEN, 1));
    }
    queues
}

#[test]
fn a_driver_learns_of_ports_their_names_and_who_is_there() {
    let (console, channel) = (Socket::new(), Socket::new());
    console.end.resize(Size { columns: 132, rows: 43 });
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut queues = driver.start_queues(F_SIZE | F_MULTIPORT, QUEUE, 6);
    let control = |queues: &mut Vec<GuestQueue<'_, '_>>, bytes: &[u8]| send(&mut queues[3], bytes);

    control(&mut queues, &message(1, PORT_READY, 1));
    control(&mut queues, &DEVICE_READY);
    control(&mut queues, &DEVICE_READY);
    assert_eq!(receive(&mut queues[2], 64), message(0, ADD, 0));
    assert_eq!(receive(&mut queues[2], 64), message(1, ADD, 0), "each is added once");
    control(&mut queues, &message(0, PORT_READY, 1));
    assert_eq!(receive(&mut queues[2], 64), message(0, CONSOLE_PORT, 1));
    let size = [&message(0, RESIZE, 0)[..], &[132, 0, 43, 0]].concat();
    assert_eq!(receive(&mut queues[2], 64), size);
    control(&mut queues, &message(1, PORT_READY, 1));
    let name = [&message(1, PORT_NAME, 1)[..], b"org.example.0"].concat();
    assert_eq!(receive(&mut queues[2], 64), name);
    assert_eq!(driver.read::<8>(DEVICE, 0), [132, 0, 43, 0, 2, 0, 0, 0]);

    let client = channel.connect();
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
    drop(client);
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 0));
    console.end.resize(Size { columns: 80, rows: 24 });
    let size = [&message(0, RESIZE, 0)[..], &[80, 0, 24, 0]].concat();
    assert_eq!(receive(&mut queues[2], 64), size);
}

#[test]
fn much_goes_both_ways_at_the_pace_of_who_takes_it() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut client = channel.connect();
    let mut queues = start(&driver, &[0, 1]);
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
    // More than all buffers of sockets hold.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 251) as u8 ^ n as u8).collect();

    let mut reader = client.try_clone().unwrap();
    let expected = bytes.clone();
    let received = std::thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        reader.read_exact(&mut received).unwrap();
        assert!(received == expected);
    });
    for piece in bytes.chunks(60_000) {
        send(&mut queues[5], piece);
    }
    received.join().unwrap();

    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        client.write_all(&sent).unwrap();
        client
    });
    let mut received = Vec::new();
    while received.len() < bytes.len() {
        received.extend(receive(&mut queues[4], 5000));
    }
    assert!(received == bytes);
    drop(sender.join().unwrap());
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 0));
}

#[test]
fn input_waits_until_the_guest_opens_the_port() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut client = channel.connect();
    client.write_all(b"early").unwrap();
    let mut queues = driver.start_queues(F_SIZE | F_MULTIPORT, QUEUE, 6);
    queues[4].offer(0, &[(ROOM + 0x1000, 64, true)]);
    queues[4].ring();
    send(&mut queues[3], &DEVICE_READY);
    for _ports in 0..2 {
        receive(&mut queues[2], 64);
    }
    send(&mut queues[3], &message(1, PORT_READY, 1));
    receive(&mut queues[2], 64);
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
    assert_eq!(queues[4].used_index(), 0);
    send(&mut queues[3], &message(1, PORT_OPEN, 1));
    assert_eq!(queues[4].wait_used(), (0, 5));
}

#[test]
fn a_client_that_ends_its_input_gets_its_answer_and_the_next_one_is_served() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut queues = start(&driver, &[0, 1]);
    for word in [b"first", b"again"] {
        let mut client = channel.connect();
        assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
        client.write_all(word).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(receive(&mut queues[4], 64), word);
        send(&mut queues[5], b"answer");
        let mut answer = [0; 6];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
        drop(client);
        assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 0));
    }
    send(&mut queues[5], b"to nobody");
}

#[test]
fn what_a_client_sent_before_it_left_arrives() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut queues = start(&driver, &[0, 1]);
    let mut client = channel.connect();
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
    client.write_all(&[5; 3000]).unwrap();
    drop(client);
    assert_eq!(receive(&mut queues[4], 1000), [5; 1000]);
    assert_eq!(receive(&mut queues[4], 4000), [5; 2000]);
    queues[4].offer(0, &[(ROOM, 64, true)]);
    queues[4].ring();
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 0));
}

#[test]
fn what_a_client_sent_arrives_though_it_takes_no_answer() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut queues = start(&driver, &[0, 1]);
    let mut client = channel.connect();
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Read).unwrap();
    send(&mut queues[5], b"an answer to nobody");
    client.write_all(b" and more").unwrap();
    drop(client);
    send(&mut queues[5], b"another");
    let mut received = Vec::new();
    while received.len() < b"question and more".len() {
        received.extend(receive(&mut queues[4], 64));
    }
    assert_eq!(received, b"question and more");
    queues[4].offer(0, &[(ROOM + 0x1000, 64, true)]);
    queues[4].ring();
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 0));
}

#[test]
fn output_that_waits_for_a_client_goes_on_when_the_client_has_gone() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut queues = start(&driver, &[0, 1]);
    let client = channel.connect();
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
    // More than the socket's buffers hold: the last one is not taken.
    queues[5].offer(0, &[(BUFFER, 1 << 20, false)]);
    queues[5].ring();
    let mut started = [0; 1];
    (&client).read_exact(&mut started).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(queues[5].used_index(), 0, "the client holds it back");
    // It stays, with all that it was sent, so that nothing but the end is told.
    client.shutdown(Shutdown::Both).unwrap();
    assert_eq!(queues[5].wait_used(), (0, 0));
}

#[test]
fn a_client_outlives_the_drivers_reset() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut client = channel.connect();
    for _life in 0..2 {
        let mut queues = start(&driver, &[0, 1]);
        assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
        client.write_all(b"hello").unwrap();
        assert_eq!(receive(&mut queues[4], 64), b"hello");
        driver.reset();
    }
}

#[test]
fn a_driver_of_one_port_has_the_console() {
    let (mut terminal, stream) = UnixStream::pair().unwrap();
    let end = HostEnd::connected(stream).unwrap();
    let (machine, _function, address) = Machine::with(Console::new(Some(end), Vec::new()));
    let driver = Driver::bind(&machine, address);
    let mut queues = driver.start_queues(F_SIZE, QUEUE, 2);
    terminal.write_all(b"ls\n").unwrap();
    assert_eq!(receive(&mut queues[0], 64), b"ls\n");
    send(&mut queues[1], b"total 0\n");
    let mut shown = [0; 8];
    terminal.read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"total 0\n");
}

#[test]
fn messages_that_mean_nothing_do_nothing_and_broken_ones_need_a_reset() {
    let (console, channel) = (Socket::new(), Socket::new());
    let (machine, _function, address) = Machine::with(device(&console, &channel));
    let driver = Driver::bind(&machine, address);
    let mut queues = start(&driver, &[0, 1]);
    for meaningless in [
        message(9, PORT_READY, 1),
        message(0xff, PORT_OPEN, 1),
        message(1, PORT_READY, 0),
        message(1, 99, 1),
        message(0, 0, 0),
        message(1, ADD, 0),
    ] {
        send(&mut queues[3], &meaningless);
    }
    let mut client = channel.connect();
    assert_eq!(receive(&mut queues[2], 64), message(1, PORT_OPEN, 1));
    client.write_all(b"works").unwrap();
    assert_eq!(receive(&mut queues[4], 64), b"works");

    type Breakage = fn(&mut [GuestQueue<'_, '_>]);
    let cut_off: Breakage = |queues| {
        queues[3].offer(0, &[(BUFFER, 7, false)]);
        queues[3].ring();
    };
    let no_room: Breakage = |queues| {
        queues[2].offer(0, &[(BUFFER, 7, true)]);
        send(&mut queues[3], &DEVICE_READY);
    };
    let too_long: Breakage = |queues| {
        queues[5].offer(0, &[(0, 1 << 20, false), (0, 1, false)]);
        queues[5].ring();
    };
    for break_it in [cut_off, no_room, too_long] {
        let mut queues = driver.start_queues(F_SIZE | F_MULTIPORT, QUEUE, 6);
        break_it(&mut queues);
        driver.wait_needs_reset();
        assert!(matches!(machine.take_fault(), Some(Error::Malformed(_))));
        driver.reset();
    }
}
