//! qcow2, versions 2 and 3: reading by random access and from a stream, and writing new images.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.txt`, whose sections are named where they
//! apply. A *host* offset is one in the image file, a *guest* offset one on the disk that it
//! holds. Of the features that need more than the file itself (backing file, external data file,
//! encryption) none is followed; they are refused by name. Refcounts are not needed for reading,
//! so dirty images and lazy refcounts are no trouble. Internal snapshots are not read: the disk is
//! the active state.

mod describe;
mod header;
mod image;
mod push;
mod table;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use describe::describe;
pub(crate) use header::{HEADER_MAX, Header};
pub use image::{Image, open};
pub(crate) use push::Map;
pub use writer::Writer;
