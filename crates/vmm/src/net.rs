//! What is at the other end of a guest's wire.
//!
//! ```text
//!  virtio::Net ── packets ──► Backend ─┬─ UserNet ── usernet::Stack ── sockets of the host
//!   (the driver's buffers)             ├─ Passt ──── UNIX socket ───── a process of passt(1)
//!                                      └─ Tap ────── /dev/net/tun ──── a bridge of the host
//! ```
//!
//! A packet is an Ethernet frame behind the header of virtio-net (§5.1.6), which is also that of Linux'
//! tap devices: what it says of checksums and of segments to be cut is the backend's to do, if it offered
//! to, and the driver's else.
//!
//! A backend outlives the guest's restarts, as a switch does. It never blocks: a [`Backend`] that cannot
//! send now says so before a packet is taken from the guest, and what the guest has no room for stays
//! with whoever sends it.

mod capture;
mod header;
mod passt;
mod resolvers;
mod tap;
#[cfg(test)]
mod tests;
mod user;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

pub use bootyard_usernet::{Config as UserConfig, MacAddress, Network, Network6};
pub use capture::Capture;
pub(crate) use header::set_buffers;
pub use header::{HEADER_LEN, Header};
pub use passt::Passt;
pub use resolvers::Resolvers;
pub use tap::Tap;
pub use user::{Forward, ForwardProtocol, UserNet};

/// Feature bits of virtio-net (§5.1.3) that a backend may offer.
pub mod feature {
    use virtio_bindings::virtio_net as net;

    /// The guest may leave checksums to the backend.
    pub const CSUM: u64 = 1 << net::VIRTIO_NET_F_CSUM;
    /// The backend leaves checksums to the guest.
    pub const GUEST_CSUM: u64 = 1 << net::VIRTIO_NET_F_GUEST_CSUM;
    /// The backend sends TCP segments over IPv4 that are larger than the MTU.
    pub const GUEST_TSO4: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO4;
    /// The backend sends TCP segments over IPv6 that are larger than the MTU.
    pub const GUEST_TSO6: u64 = 1 << net::VIRTIO_NET_F_GUEST_TSO6;
    /// The guest may send TCP segments over IPv4 that are larger than the MTU.
    pub const HOST_TSO4: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO4;
    /// The guest may send TCP segments over IPv6 that are larger than the MTU.
    pub const HOST_TSO6: u64 = 1 << net::VIRTIO_NET_F_HOST_TSO6;
}

/// The longest Ethernet frame of a packet: the largest IP packet and the Ethernet header (§5.1.6.3.1).
pub const FRAME_MAX: usize = 65_535 + ETHERNET_HEADER_LEN + 4;
pub(crate) const ETHERNET_HEADER_LEN: usize = 14;

/// The other end of a guest's wire.
pub trait Backend: Send + fmt::Debug {
    /// The bits of [`feature`] that it can do.
    fn features(&self) -> u64;

    /// The largest IP packet that it takes, where it knows.
    fn mtu(&self) -> Option<u16>;

    /// A driver came that accepted `features`; what was under way for another one is over.
    fn begin(&mut self, features: u64) -> io::Result<()>;

    /// What tells that there is something to do.
    fn fd(&self) -> BorrowedFd<'_>;

    /// What of [`Backend::fd`] is to be waited for, if the guest has room for a packet or has none.
    fn interest(&self, has_room: bool) -> EventSet;

    /// After how long there is something to do, even if the descriptor tells nothing.
    fn timeout(&self) -> Option<Duration> {
        None
    }

    /// Does what there is to do: called after each event of the descriptor and each timeout.
    fn poll(&mut self) -> io::Result<()>;

    /// Whether [`Backend::send`] has room for a packet.
    fn can_send(&self) -> bool;

    /// Takes a packet of the guest. What is not understood is dropped, as on any wire.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;

    /// Writes the next packet for the guest to the front of `packet`, and gives its length. The buffer
    /// has room for the header and a frame of the MTU at least; a frame that is larger than it is dropped,
    /// as on any wire. The header's number of buffers is the device's business.
    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>>;

    /// Whether anything is at the other end.
    fn is_up(&self) -> bool {
        true
    }
}

/// A backend that several lives of the guest share, one after the other.
pub type SharedBackend = Arc<Mutex<Box<dyn Backend>>>;
