//! The control socket: what people and programs ask of a running machine, and hear of it.
//!
//! ```text
//!  clients ──► Server ──► Station ──► Remote: a Link to our own machine | QMP of QEMU
//!  (JSON lines)   ▲          │ ▲                                              │
//!                 └─ events ─┘ └────────────────── events ────────────────────┘
//! ```
//!
//! The supervisor serves it, not the machine: so it is the same on every engine, stays while a machine is
//! started again, and the machine's own process, which runs what a guest wrote, listens to nobody. With
//! our own machine the supervisor speaks the same [`wire`] protocol over an inherited socket.
//!
//! A client that sends nonsense gets an error and may go on; one that reads slowly loses events or output
//! of the console, is told how much, and holds up nobody.

mod backlog;
mod calls;
mod client;
mod connection;
mod lines;
mod link;
mod passing;
mod prometheus;
mod server;
mod station;
#[cfg(test)]
mod tests;
pub mod wire;

pub use client::{Client, ClientError, Keys, RawConsole};
pub use link::{LinkEnd, OpenMedium, Threads, serve as serve_link};
pub(crate) use server::clear;
pub use server::{Server, listen_at};
pub use station::{EventSink, Remote, Station};

pub(crate) use backlog::Backlog;
pub(crate) use calls::{CallFailed, Calls};
pub(crate) use link::{Link, unanswered};
