//! Virtio 1.2 devices on PCI: the transport, split virtqueues, and the devices themselves. Legacy
//! and transitional drivers, packed rings and live migration are not here.
//!
//! ```text
//!  vCPU thread                                    device's thread, from DRIVER_OK to reset
//!  config, BAR accesses ─► VirtioPci ──moves──►  VirtioDevice::run(Session)
//!  doorbell ─► EventFd ─────────────────────────►  Virtqueue ─► Request ─► Disk
//!                          Interrupt ◄──────────── used ring
//!                             └─► MSI-X ─► MsiSink
//! ```
//!
//! A device is moved into its thread when the driver says DRIVER_OK, and handed back when the
//! driver resets it: it needs no lock, and after the reset nothing of it touches guest memory.
//!
//! What a guest puts into rings and descriptors is hostile. A request that is well-formed but
//! cannot be done fails with the device's own status; a ring or chain that breaks the rules stops
//! the device with DEVICE_NEEDS_RESET until the driver resets it.
//!
//! `CONFORMANCE.md` has the specification's rules for devices, where each is held, and its test.

mod balloon;
mod blk;
mod console;
mod device_config;
pub(crate) mod disk_io;
mod interrupt;
mod net;
mod queue;
mod rng;
mod scsi;
mod segments;
mod session;
#[cfg(test)]
mod tests;
mod transport;
mod uring;
mod vsock;

use interrupt::Interrupt;

pub use balloon::{Balloon, BalloonControl, GuestFigures};
pub use blk::Block;
pub use console::{CHANNELS_MAX, Channel, Console, HostEnd, Size};
pub use device_config::DeviceConfig;
pub use net::Net;
pub use queue::{Request, Virtqueue};
pub use rng::Entropy;
pub use scsi::Scsi;
pub use segments::Segments;
pub use session::{Session, Wake};
pub use transport::VirtioPci;
pub use vsock::{CIDS, Vsock, VsockEnd};

/// A virtio device without its transport.
pub trait VirtioDevice: Send + std::fmt::Debug {
    /// The device type (§5).
    fn kind(&self) -> u16;

    /// The feature bits of its type that it offers. Those of the transport and the rings are not
    /// the device's business.
    fn features(&self) -> u64;

    /// The largest size of each virtqueue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// The device's configuration structure. Asked for once.
    fn config(&self) -> DeviceConfig {
        DeviceConfig::default()
    }

    /// Goes back to the state before the first driver. Called between two sessions, and whenever the
    /// driver resets the device.
    fn reset(&mut self) {}

    /// Serves the driver, on a thread of its own, until the session is stopped. An error means that
    /// the driver broke the rules or the host failed us, and that the device must be reset.
    ///
    /// [`Session::serve`] is the whole body of a device that answers one request after the other;
    /// [`Session::wait`] is for those that have more to listen to than their virtqueues.
    fn run(&mut self, session: &mut Session) -> Result<(), Error>;
}

/// Is told why a device stopped, on the device's thread or a processor's.
pub type OnFault = Box<dyn Fn(Error) + Send + Sync>;

/// Why a device stopped and needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver set up or used a virtqueue in a way that cannot work.
    #[error("virtqueue {index} is broken")]
    Queue {
        /// The number of the virtqueue.
        index: u16,
        /// What is wrong with it.
        source: virtio_queue::Error,
    },
    /// The driver put something into a virtqueue that is no request.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The host refused a thread or an event.
    #[error("the device's thread cannot run")]
    Host(#[from] std::io::Error),
    /// The device's code panicked, which is a bug in it.
    #[error("the device panicked")]
    Panicked,
}
