//! A tap device of the host (Documentation/networking/tuntap.rst of Linux): what its administrator made it
//! a part of, a bridge as a rule, is the guest's network. Its header before each frame is virtio-net's, and
//! the kernel does what it says of checksums and segments.
#![expect(unsafe_code, reason = "a tap device is set up by ioctl(2)")]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use fs_err::{File, OpenOptions};
use rustix::fs::OFlags;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode};
use rustix::net::{AddressFamily, SocketType};
use vmm_sys_util::epoll::EventSet;

use super::{Backend, FRAME_MAX, HEADER_LEN, feature};

/// Requests of if_tun.h.
const SET_INTERFACE: Opcode = opcode::write::<c_int>(b'T', 202);
const SET_OFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const SET_HEADER_LEN: Opcode = opcode::write::<c_int>(b'T', 216);

/// Request of sockios.h.
const GET_MTU: Opcode = 0x8921;

/// Flags of an interface: Ethernet frames, without a header of the tap's own, with virtio-net's.
const TAP: u16 = 0x0002;
const NO_INFO: u16 = 0x1000;
const VNET_HEADER: u16 = 0x4000;

/// What the reader of a tap device takes.
const OFFLOAD_CHECKSUM: usize = 1;
const OFFLOAD_TSO4: usize = 2;
const OFFLOAD_TSO6: usize = 4;

/// Length of an interface's name with the zero behind it.
const NAME_LEN: usize = 16;

/// `struct ifreq` of if.h: a name, and a union that begins with flags or a number.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_LEN],
    value: [u8; 24],
}

impl InterfaceRequest {
    fn new(name: &str) -> io::Result<Self> {
        let mut request = Self { name: [0; NAME_LEN], value: [0; 24] };
        let slot = request.name[..NAME_LEN - 1].get_mut(..name.len());
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the name is too long");
        slot.ok_or_else(too_long)?.copy_from_slice(name.as_bytes());
        Ok(request)
    }
}

/// A tap device.
#[derive(Debug)]
pub struct Tap {
    file: File,
    mtu: Option<u16>,
    is_up: bool,
    /// For packets that may not fit into the guest's room.
    spare: Box<[u8]>,
}

impl Tap {
    /// Opens the tap device with this name, which exists.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut request = InterfaceRequest::new(name)?;
        // Asked for first, because opening would make what does not exist: on no bridge, and gone with
        // the machine.
        let mtu = mtu(name)?;
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        request.value[..2].copy_from_slice(&(TAP | NO_INFO | VNET_HEADER).to_ne_bytes());
        // SAFETY: the request takes a pointer to `struct ifreq`, which this is, and keeps none.
        unsafe { ioctl(&file, Setter::<SET_INTERFACE, _>::new(request)) }?;
        // SAFETY: the request takes a pointer to an int.
        unsafe { ioctl(&file, Setter::<SET_HEADER_LEN, c_int>::new(HEADER_LEN as c_int)) }?;
        let spare = vec![0; HEADER_LEN + FRAME_MAX].into_boxed_slice();
        Ok(Self { file, mtu, is_up: true, spare })
    }

    /// The interface was deleted: its descriptor tells of that over and over.
    fn gone(&mut self, errno: rustix::io::Errno) -> io::Error {
        self.is_up = false;
        io::Error::other(format!("the tap device is gone, and the network with it: {errno}"))
    }
}

/// The MTU of an interface, if a device can have it.
fn mtu(name: &str) -> io::Result<Option<u16>> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut request = InterfaceRequest::new(name)?;
    // SAFETY: the request takes a pointer to `struct ifreq`, which this is, writes it and keeps none.
    unsafe { ioctl(&socket, Updater::<GET_MTU, _>::new(&mut request)) }?;
    let [a, b, c, d, ..] = request.value;
    Ok(u16::try_from(c_int::from_ne_bytes([a, b, c, d])).ok())
}

impl Backend for Tap {
    fn features(&self) -> u64 {
        feature::CSUM
            | feature::GUEST_CSUM
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::HOST_TSO4
            | feature::HOST_TSO6
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn begin(&mut self, features: u64) -> io::Result<()> {
        let offload = [
            (feature::GUEST_CSUM, OFFLOAD_CHECKSUM),
            (feature::GUEST_CSUM | feature::GUEST_TSO4, OFFLOAD_TSO4),
            (feature::GUEST_CSUM | feature::GUEST_TSO6, OFFLOAD_TSO6),
        ];
        let offload = offload.iter().filter(|(bits, _)| features & bits == *bits);
        let offload = offload.fold(0, |sum, (_, offload)| sum | offload);
        // SAFETY: the request takes a number, and no pointer.
        unsafe { ioctl(&self.file, IntegerSetter::<SET_OFFLOAD>::new_usize(offload)) }?;
        // What waits since before is not for this driver, who may not take its segments.
        while rustix::io::read(&self.file, &mut self.spare[..]).is_ok() {}
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn interest(&self, has_room: bool) -> EventSet {
        if has_room { EventSet::IN } else { EventSet::empty() }
    }

    fn poll(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn can_send(&self) -> bool {
        true
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        use rustix::io::Errno;
        if !self.is_up {
            return Ok(());
        }
        match rustix::io::write(&self.file, packet) {
            // The device's queue is full, the header makes no sense, or the interface is down: what any
            // wire would drop.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::INVAL | Errno::IO) => Ok(()),
            Err(error) => Err(self.gone(error)),
        }
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        use rustix::io::Errno;
        if !self.is_up {
            return Ok(None);
        }
        loop {
            let is_roomy = packet.len() >= self.spare.len();
            let buf = if is_roomy { &mut *packet } else { &mut self.spare };
            let len = match rustix::io::read(&self.file, buf) {
                Ok(len) if len > HEADER_LEN => len,
                Ok(_) | Err(Errno::INTR) => continue,
                // Nothing is there, or the interface is down.
                Err(Errno::AGAIN | Errno::IO) => return Ok(None),
                Err(error) => return Err(self.gone(error)),
            };
            if is_roomy {
                return Ok(Some(len));
            }
            // What does not fit is dropped.
            if let Some(packet) = packet.get_mut(..len) {
                packet.copy_from_slice(&self.spare[..len]);
                return Ok(Some(len));
            }
        }
    }

    fn is_up(&self) -> bool {
        self.is_up
    }
}
