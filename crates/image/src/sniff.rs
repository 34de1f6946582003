//! Tells a format by its first bytes.

/// How many bytes from the start [`sniff`] wants to see; fewer only where the file is shorter.
pub const HEAD_LEN: usize = 512;

/// A disk format, recognised by name. Not all of them are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The guest's bytes as they are.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
}

/// Tells the format of a file that begins with `head`.
pub fn sniff(head: &[u8]) -> Format {
    if head.starts_with(b"QFI\xfb") { Format::Qcow2 } else { Format::Raw }
}
