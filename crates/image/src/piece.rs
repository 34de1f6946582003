//! The waist between decoding and storing: pieces of the guest's disk.

use std::io;

/// A run of bytes of the guest's disk, at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where on the guest's disk it begins, in bytes.
    pub offset: u64,
    /// What is there.
    pub body: Body<'a>,
}

/// What a [`Piece`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// This many zero bytes.
    Zero(u64),
}

/// What takes a disk, piece by piece.
///
/// A decoder promises that its pieces cover each byte of the disk exactly once, in any order, so
/// that a sink over storage that already reads as zeros may ignore [`Body::Zero`]. Pieces come
/// from several threads at once.
pub trait Sink: Send + Sync {
    /// Stores one piece.
    fn put(&self, piece: Piece<'_>) -> io::Result<()>;
}
