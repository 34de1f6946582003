//! Disk formats, read from random access and from a forward-only stream, and written.
//!
//! Everything here works on bytes that nobody vouches for. A parser checks every size, offset and
//! count against the file and against a named limit before it uses it; nothing that an image
//! names (a backing file, an external data file) is ever opened; memory does not grow with the
//! image.
//!
//! The crate has two narrow waists:
//!
//! * **bytes in**: [`ReadAt`], or a stream that is pushed into [`stream::Decoder`];
//! * **pieces out**: [`Piece`]s of the guest's disk, which go to a [`Sink`].
//!
//! A format lives in its own module and is known here only by name. There is no network, no
//! async, no `unsafe`, and no opening of files in this crate.

mod blockmap;
mod codec;
#[cfg(test)]
mod conformance;
mod copy;
mod disk;
mod error;
pub mod fingerprint;
pub mod gpt;
#[cfg(test)]
mod hostile;
mod info;
mod open;
#[cfg(test)]
mod oracle;
pub mod parallels;
mod piece;
mod pins;
pub mod qcow1;
pub mod qcow2;
pub mod qed;
pub mod raw;
mod recent;
mod sniff;
pub mod stream;
#[cfg(test)]
mod support;
mod twolevel;
mod unpacked;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
mod zero;

pub use copy::{Copied, copy};
pub use disk::{Disk, Extent, Located, Location, Payload, Pieces, ReadAt, WriteAt, WriteDisk};
pub use error::{Error, ErrorKind};
pub use fingerprint::Fingerprint;
pub use info::{Content, Info, Snapshot};
pub use open::{Directory, OpenOptions, inspect, open, open_with};
pub use piece::{Body, Piece, Sink};
pub use pins::Pinned;
pub use sniff::{Format, HEAD_LEN, chain_name, sniff};
