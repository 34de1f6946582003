//! User-mode network: a guest's Ethernet frames on one side, ordinary sockets of the host on the other,
//! no privilege in between.
//!
//! ```text
//!   guest                        Stack                                host
//!   frames ──guest_frame──► arp, ndp, dhcp ──► queue ─┐
//!                           udp, ping ────────────────┼─► Host::send ───► sockets
//!                           tcp (ends here, per connection)
//!   frames ◄────frame────── queue, then ready flows ◄─── Host::receive ◄─ socket_event
//! ```
//!
//! [`Stack`] is a pure state machine: it opens no socket, asks no clock and starts no thread. Whoever
//! drives it implements [`Host`] with sockets that do not block, tells it what they are ready for
//! ([`Stack::socket_event`], edges as epoll reports them), and takes frames out when the guest has room
//! for them ([`Stack::frame`]). Nothing is sent that was not asked for: a guest without buffers holds
//! back the host's senders, not this memory.
//!
//! The guest is hostile. No frame panics, none makes the stack keep more than its limits, and none
//! reaches a host that [`Config`] does not let it reach.

mod budget;
mod config;
mod dhcp;
mod dhcp6;
mod flow;
mod frame;
mod host;
mod icmp;
mod neighbors;
mod ring;
mod stack;
mod tcp;

pub use config::{Config, MacAddress, Network, Network6};
pub use frame::{Frame, PartialChecksum, Segments};
pub use host::{Close, Host, Inbound, Ready, SocketId};
pub use stack::{Stack, Statistics};
