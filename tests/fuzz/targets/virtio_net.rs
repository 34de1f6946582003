//! The network device, in front of passt's protocol with the other end in the fuzzer's hands.
#![no_main]

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use bootyard_fuzz::machine::drive;
use bootyard_vmm::net::{Backend, Passt, feature};
use bootyard_vmm::virtio::Net;
use vmm_sys_util::epoll::EventSet;

/// A backend that offers what it cannot do, so that a driver may accept it.
#[derive(Debug)]
struct Boastful(Passt);

impl Backend for Boastful {
    fn features(&self) -> u64 {
        feature::CSUM | feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::HOST_TSO4
    }

    fn mtu(&self) -> Option<u16> {
        Some(1500)
    }

    fn begin(&mut self, features: u64) -> io::Result<()> {
        self.0.begin(features)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn interest(&self, has_room: bool) -> EventSet {
        self.0.interest(has_room)
    }

    fn poll(&mut self) -> io::Result<()> {
        self.0.poll()
    }

    fn can_send(&self) -> bool {
        self.0.can_send()
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet)
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        self.0.receive(packet)
    }

    fn is_up(&self) -> bool {
        self.0.is_up()
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("a socket");
    let backend = Boastful(Passt::new(ours).expect("a socket"));
    let device = Net::new([2, 0, 0, 0, 0, 9], Arc::new(Mutex::new(Box::new(backend))));
    let mut theirs = Some(theirs);
    drive(device, input, &mut |bytes| {
        let Some((first, bytes)) = bytes.split_first() else { return };
        let Some(stream) = &mut theirs else { return };
        let _ = match first & 7 {
            // As it is, most often with a length that fits, and sometimes the end.
            0 => stream.write(bytes),
            1 => return theirs = None,
            2 => stream.read(&mut [0; 1 << 16]),
            _ => stream.write(&[&(bytes.len() as u32).to_be_bytes(), bytes].concat()),
        };
    });
});
