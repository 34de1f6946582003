//! qcow2, versions 2 and 3: reading by random access and from a stream, making new images, and
//! writing to those that are there.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.txt`, whose sections are named where they
//! apply. A *host* offset is one in the image file, a *guest* offset one on the disk that it
//! holds. What else an image needs, a backing disk or a data file, is given by the caller or
//! refused by name; encryption is refused. Refcounts are not needed for reading, so dirty images
//! and lazy refcounts are no trouble. The disk is the active state or, by random access, the
//! internal snapshot that was asked for.

mod create;
mod describe;
mod edit;
mod header;
mod image;
mod pack;
mod push;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;
mod writer;

pub use create::{Backing, BackingFormat, Create, create};
pub(crate) use describe::describe;
pub use edit::{Editor, edit};
pub(crate) use header::{Given, HEADER_MAX, Header};
pub use image::{Image, open, open_with};
pub(crate) use push::Map;
pub use writer::{Compression, Writer, WriterOptions};
