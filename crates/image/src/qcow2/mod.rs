//! qcow2, versions 2 and 3: reading by random access and from a stream, and writing new images.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.txt`, whose sections are named where they
//! apply. A *host* offset is one in the image file, a *guest* offset one on the disk that it
//! holds. What else an image needs, a backing disk or a data file, is given by the caller or
//! refused by name; encryption is refused. Refcounts are not needed for reading, so dirty images
//! and lazy refcounts are no trouble. The disk is the active state or, by random access, the
//! internal snapshot that was asked for.

mod describe;
mod header;
mod image;
mod push;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use describe::describe;
pub(crate) use header::{Given, HEADER_MAX, Header};
pub use image::{Image, open, open_with};
pub(crate) use push::Map;
pub use writer::Writer;
