//! Which member of an archive is the disk: the only file that is not known to be something else.

use std::io::{self, BufRead, Read};

use super::peek::Peek;
use super::refuse;
use crate::ErrorKind;
use crate::sniff::printable;

/// How many members are named in a message.
const NAMED_MAX: usize = 8;
/// How long a name may be: four times what any system has as a path.
pub(super) const NAME_MAX: usize = 16 << 10;
/// What stands beside a disk, by the end of its name: an appliance's description, digests,
/// certificate, firmware settings and texts (DSP0243 §5), and what publishers add.
const SIDE_ENDS: [&str; 17] = [
    ".ovf", ".mf", ".cert", ".nvram", ".txt", ".md", ".json", ".xml", ".yaml", ".yml", ".html",
    ".asc", ".sig", ".md5", ".sha1", ".sha256", ".sha512",
];
/// The same by the beginning: AppleDouble, checksums, texts.
const SIDE_BEGINS: [&str; 8] =
    ["._", ".ds_store", "sha1sum", "sha256sum", "sha512sum", "md5sum", "readme", "license"];

/// The members that have been seen.
#[derive(Debug, Default)]
pub(super) struct Choice {
    disk: Option<Vec<u8>>,
    others: Vec<Vec<u8>>,
}

impl Choice {
    /// True if the member `name` of `len` bytes is the disk. Fails if there was one already, or if
    /// the name leads out of the archive: whoever wrote that meant harm.
    pub(super) fn is_disk(&mut self, name: &[u8], len: Option<u64>) -> io::Result<bool> {
        let mut parts = name.split(|byte| matches!(byte, b'/' | b'\\'));
        if name.starts_with(b"/") || parts.any(|part| part == b"..") {
            let what = format!("the member `{}` leads out of its archive", printable(name));
            return Err(refuse(ErrorKind::Corrupt, what));
        }
        if len == Some(0) || name.ends_with(b"/") || is_side(name) {
            if self.others.len() < NAMED_MAX {
                self.others.push(name.to_vec());
            }
            return Ok(false);
        }
        self.take(name)
    }

    /// The member `name` is the disk. Fails if there was one already.
    pub(super) fn take(&mut self, name: &[u8]) -> io::Result<bool> {
        if let Some(first) = &self.disk {
            let what = format!(
                "expected one disk in the archive, got `{}` and `{}`",
                printable(first),
                printable(name)
            );
            return Err(refuse(ErrorKind::Unsupported, what));
        }
        self.disk = Some(name.to_vec());
        Ok(true)
    }

    /// The name of the disk that has been seen.
    pub(super) fn disk(&self) -> Option<&[u8]> {
        self.disk.as_deref()
    }

    /// The refusal of an archive that has ended without a disk.
    pub(super) fn none(&self) -> io::Error {
        let names: Vec<_> =
            self.others.iter().map(|name| format!("`{}`", printable(name))).collect();
        let what = match &names[..] {
            [] => "expected a disk in the archive, got nothing".to_owned(),
            names => format!("expected a disk in the archive, got only {}", names.join(", ")),
        };
        refuse(ErrorKind::NotAnImage, what)
    }
}

fn is_side(name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let base = name.rsplit('/').next().unwrap_or_default();
    SIDE_ENDS.iter().any(|end| base.ends_with(end))
        || SIDE_BEGINS.iter().any(|begin| base.starts_with(begin))
}

/// Reads exactly as much, or fails naming the archive.
pub(super) fn fill(inner: &mut Peek, buf: &mut [u8], archive: &str) -> io::Result<()> {
    inner.read_exact(buf).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => cut_off(archive),
        _ => error,
    })
}

/// Passes `len` bytes.
pub(super) fn skip(inner: &mut Peek, mut len: u64, archive: &str) -> io::Result<()> {
    while len > 0 {
        let part = inner.fill_buf()?.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        if part == 0 {
            return Err(cut_off(archive));
        }
        inner.consume(part);
        len -= part as u64;
    }
    Ok(())
}

/// Passes everything that is left.
pub(super) fn drain(inner: &mut Peek) -> io::Result<()> {
    loop {
        match inner.fill_buf()?.len() {
            0 => return Ok(()),
            len => inner.consume(len),
        }
    }
}

pub(super) fn cut_off(archive: &str) -> io::Error {
    refuse(ErrorKind::Truncated, format!("the {archive} archive is cut off"))
}
