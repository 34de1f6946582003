//! The backends that are programs and devices of the host, with a TCP/IP implementation that is not ours
//! (smoltcp's) in front of them.
#![expect(clippy::disallowed_methods, reason = "passt and namespaces are made by programs")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use super::*;

const MAC: MacAddress = [2, 0, 0, 0, 0, 9];
const PATIENCE: Duration = Duration::from_secs(30);

/// The guest's end of a wire: a device of smoltcp's.
struct Wire<'b> {
    backend: &'b mut dyn Backend,
    large: usize,
}

struct Rx(Vec<u8>);
struct Tx<'a, 'b>(&'a mut Wire<'b>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_, '_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; HEADER_LEN + len];
        let result = f(&mut packet[HEADER_LEN..]);
        self.0.backend.send(&packet).unwrap();
        result
    }
}

impl<'b> Device for Wire<'b> {
    type RxToken<'a>
        = Rx
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a, 'b>
    where
        Self: 'a;

    fn receive(&mut self, _: time::Instant) -> Option<(Rx, Tx<'_, 'b>)> {
        if !self.backend.can_send() {
            return None;
        }
        let mut packet = vec![0; HEADER_LEN + FRAME_MAX];
        let len = self.backend.receive(&mut packet).unwrap()?;
        packet.truncate(len);
        self.large += usize::from(len > HEADER_LEN + 1514);
        Some((Rx(packet.split_off(HEADER_LEN)), Tx(self)))
    }

    fn transmit(&mut self, _: time::Instant) -> Option<Tx<'_, 'b>> {
        self.backend.can_send().then_some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // What comes may have a checksum that is only begun; what goes has a whole one.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// A server on the host that sends back what it gets, until the end.
fn echo_server(at: &str) -> SocketAddr {
    let listener = TcpListener::bind(at).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = stream.try_clone().unwrap();
        io::copy(&mut reader, &mut stream).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    address
}

/// Sends bytes from the guest `address` to a server that echoes at `to`; tells how many packets for the
/// guest were larger than Ethernet's.
fn echoes(
    backend: &mut dyn Backend,
    address: Ipv4Addr,
    to: (Ipv4Addr, u16),
    window: usize,
) -> usize {
    let mut wire = Wire { backend, large: 0 };
    let hardware = HardwareAddress::Ethernet(EthernetAddress(MAC));
    let mut interface =
        Interface::new(InterfaceConfig::new(hardware), &mut wire, time::Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::Ipv4(address), 24)).unwrap();
    });
    let buffer = || tcp::SocketBuffer::new(vec![0; window]);
    let mut sockets = SocketSet::new(Vec::new());
    let handle: SocketHandle = sockets.add(tcp::Socket::new(buffer(), buffer()));
    let to = (IpAddress::Ipv4(to.0), to.1);
    sockets.get_mut::<tcp::Socket<'_>>(handle).connect(interface.context(), to, 40_000).unwrap();
    let data: Vec<u8> = (0..1 << 20_usize).map(|i| (i ^ i >> 7 ^ i >> 13) as u8).collect();
    let (mut sent, mut back) = (0, Vec::new());
    let began = Instant::now();
    while back.len() < data.len() || sockets.get::<tcp::Socket<'_>>(handle).may_recv() {
        assert!(began.elapsed() < PATIENCE, "{sent} sent, {} back", back.len());
        wire.backend.poll().unwrap();
        let now = time::Instant::from_micros(began.elapsed().as_micros() as i64);
        interface.poll(now, &mut wire, &mut sockets);
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        let before = back.len();
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), back.extend_from_slice(bytes))).unwrap();
        }
        if back.len() >= data.len() {
            socket.close();
        }
        if back.len() == before {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    assert!(back == data);
    wire.large
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A passt that gives the guest the addresses of the masquerade binding, and its connection.
fn passt() -> Option<(Running, Passt, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    // It changes to another user where it is started as root.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs_err::set_permissions(folder.path(), open).unwrap();
    let socket = folder.path().join("passt.sock");
    let mut command = Command::new("passt");
    command.args(["--foreground", "--quiet", "--address", "10.0.2.2", "--netmask", "24"]);
    command.args(["--gateway", "10.0.2.1", "--socket"]).arg(&socket).stderr(Stdio::null());
    if !bootyard_testkit::require_tool("passt") {
        return None;
    }
    let running = Running(command.spawn().unwrap());
    let began = Instant::now();
    loop {
        match Passt::connect(&socket) {
            Ok(passt) => return Some((running, passt, folder)),
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn passt_carries_bytes_both_ways() {
    let Some((_running, mut passt, _folder)) = passt() else { return };
    let server = echo_server("127.0.0.1:0");
    let gateway = Ipv4Addr::new(10, 0, 2, 1);
    // Debian's, of March 2023, repeats bytes to a guest that fills a larger window in one go.
    echoes(&mut passt, Ipv4Addr::new(10, 0, 2, 2), (gateway, server.port()), 16 << 10);
}

#[test]
fn the_end_of_passt_is_told_once_and_ends_nothing_else() {
    let Some((running, mut passt, _folder)) = passt() else { return };
    let mut packet = vec![0; HEADER_LEN + FRAME_MAX];
    assert!(passt.is_up());
    drop(running);
    let error = passt.receive(&mut packet).unwrap_err().to_string();
    assert!(error.starts_with("passt is gone, and the network with it: "), "{error}");
    assert!(!passt.is_up());
    assert!(matches!(passt.receive(&mut packet), Ok(None)));
    passt.send(&packet[..100]).unwrap();
    passt.poll().unwrap();
}

#[test]
fn a_peer_that_takes_a_part_of_a_frame_gets_the_rest_later() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut passt = Passt::new(ours).unwrap();
    let packet: Vec<u8> = (0..HEADER_LEN + 60_000).map(|i| (i ^ i >> 8) as u8).collect();
    let mut count = 0;
    while passt.can_send() {
        passt.send(&packet).unwrap();
        count += 1;
    }
    assert!(passt.interest(false).contains(EventSet::OUT));
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; count * 60_004];
        theirs.read_exact(&mut bytes).unwrap();
        (theirs, bytes)
    });
    while !passt.can_send() {
        passt.poll().unwrap();
    }
    let (mut theirs, bytes) = reader.join().unwrap();
    for frame in bytes.chunks(60_004) {
        assert_eq!(frame[..4], 60_000_u32.to_be_bytes());
        assert!(frame[4..] == packet[HEADER_LEN..]);
    }
    // And the other way round, in parts; a frame that is too large ends the connection.
    theirs.write_all(&[0, 0, 0]).unwrap();
    let mut buf = [0; 100];
    assert!(matches!(passt.receive(&mut buf), Ok(None)));
    theirs.write_all(&[5, 1, 2, 3]).unwrap();
    assert!(matches!(passt.receive(&mut buf), Ok(None)));
    theirs.write_all(&[4, 5, 0xff, 0xff, 0xff, 0xff]).unwrap();
    assert_eq!(passt.receive(&mut buf).unwrap(), Some(HEADER_LEN + 5));
    assert_eq!(buf[HEADER_LEN..HEADER_LEN + 5], [1, 2, 3, 4, 5]);
    assert!(passt.receive(&mut buf).unwrap_err().to_string().contains("4294967295 bytes"));
}

/// Set for the tests' own program where it runs in a network namespace with a tap device `vm0`.
const IN_NAMESPACE: &str = "BOOTYARD_TEST_TAP";

#[test]
fn a_tap_device_carries_bytes_both_ways_with_the_kernels_offloads() {
    if std::env::var_os(IN_NAMESPACE).is_some() {
        return in_a_namespace_with_a_tap();
    }
    let name = "net::tests::a_tap_device_carries_bytes_both_ways_with_the_kernels_offloads";
    let script = "ip tuntap add vm0 mode tap vnet_hdr && ip address add 10.9.0.1/24 dev vm0 && \
                  ip link set vm0 up && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--", "sh", "-c", script, "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name]).env(IN_NAMESPACE, "1");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("running 1 test") {
        let why = String::from_utf8_lossy(&output.stderr);
        bootyard_testkit::skip!("no network namespaces here: {why}");
    }
    assert!(output.status.success(), "{text}");
}

fn in_a_namespace_with_a_tap() {
    assert!(Tap::open("vm1").is_err(), "it would have been made");
    assert!(Tap::open("lo").is_err());
    assert!(Tap::open("a-name-that-is-too-long").is_err());
    let mut tap = Tap::open("vm0").unwrap();
    assert_eq!(tap.mtu(), Some(1500));
    let server = (Ipv4Addr::new(10, 9, 0, 1), 0);
    for (features, has_large) in [(tap.features(), true), (0, false)] {
        tap.begin(features).unwrap();
        let port = echo_server("10.9.0.1:0").port();
        let large = echoes(&mut tap, Ipv4Addr::new(10, 9, 0, 2), (server.0, port), 256 << 10);
        assert_eq!(large > 0, has_large, "features {features:#x}: {large}");
    }
}
