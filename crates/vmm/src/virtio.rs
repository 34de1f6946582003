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
//! | The specification's rule for devices                              | Section   | Where        |
//! |-------------------------------------------------------------------|-----------|--------------|
//! | all state back to defaults on reset, status then reads 0          | 2.1, 2.4  | `transport`  |
//! | no buffer is used before DRIVER_OK                                | 3.1.1     | `transport`  |
//! | FEATURES_OK stays clear for a set that cannot work                | 2.2.2     | `transport`  |
//! | a configuration change is announced with DEVICE_NEEDS_RESET       | 2.1.2     | `interrupt`  |
//! | nothing is written to device-readable buffers                     | 2.7.4.2   | `queue`      |
//! | `used.len` is not more than what was written                      | 2.7.8.2   | `queue`      |
//! | the driver's wish not to be interrupted is looked at              | 2.7.7.2   | `queue`      |
//! | vectors that don't exist read back as NO_VECTOR                   | 4.1.5.1.2 | `transport`  |
//! | reading the ISR status clears it                                  | 4.1.4.5.1 | `transport`  |
//! | the PCI configuration access window works before BARs are mapped  | 4.1.4.9.1 | `transport`  |
//! | a write is stable when it completes, unless FLUSH was negotiated  | 5.2.6.2   | `blk`        |
//! | read-only disks refuse writes                                     | 5.2.6.2   | `blk`        |
//! | unknown request types and flags are UNSUPP                        | 5.2.6.2   | `blk`        |
//! | a flush covers every write that was completed before it           | 5.2.6.2   | `blk`        |
//! | a command to a target that is not there is BAD_TARGET             | 5.6.6.1.1 | `scsi`       |
//! | data that there is no memory for is OVERRUN                       | 5.6.6.1.1 | `scsi`       |
//! | `residual` and `sense_len` say what was moved and written         | 5.6.6.1.1 | `scsi`       |
//! | a task management function is answered when its tasks are         | 5.6.6.2   | `scsi`       |
//! | events without a buffer are made up for by EVENTS_MISSED          | 5.6.6.3.1 | `scsi`       |
//! | buffers of one packet are used together                           | 5.1.6.4.1 | `net`        |
//! | `num_buffers` counts them, and is 1 without merged buffers        | 5.1.6.4.1 | `net`        |
//! | no checksum or segment is left to a driver that did not offer it  | 5.1.6.4.1 | `net`        |
//! | at least one byte of entropy for each buffer                      | 5.4.6.2   | `rng`        |

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
