//! Tells a format by its first bytes, and a disk from a web page. Reads no further than the head.

use std::fmt;

use crate::{Error, ErrorKind};

/// How many bytes from the start [`sniff`] wants to see; fewer only where the file is shorter.
pub const HEAD_LEN: usize = 512;

/// A disk format or a container around one, recognised by name. Not all of them are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// The guest's bytes as they are.
    Raw,
    /// QEMU copy-on-write, version 2 or 3.
    Qcow2,
    /// QEMU copy-on-write, version 1.
    Qcow1,
    /// QEMU enhanced disk.
    Qed,
    /// VMware disk: a sparse extent, or the text that describes several.
    Vmdk,
    /// Virtual PC disk, dynamic or differencing. A fixed one has no mark in its head.
    Vhd,
    /// Hyper-V disk.
    Vhdx,
    /// `VirtualBox` disk.
    Vdi,
    /// Parallels disk.
    Parallels,
    /// Bochs growing disk.
    Bochs,
    /// Linux compressed loop.
    Cloop,
    /// Apple's disk image, which has its mark at the end.
    Dmg,
    /// A whole disk encrypted with LUKS.
    Luks,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
    /// LZ4 frames.
    Lz4,
    /// Snappy's framing format.
    Snappy,
    /// LZMA alone: xz's forerunner.
    Lzma,
    /// Unix `compress`.
    Compress,
    /// zip.
    Zip,
    /// 7-Zip.
    SevenZip,
    /// tar.
    Tar,
    /// An OVF appliance in a tar.
    Ova,
}

/// What stands where in the head: magic numbers from each format's own description.
const MAGIC: [(usize, &[u8], Format); 32] = [
    (0, b"QFI\xfb\0\0\0\x01", Format::Qcow1),
    (0, b"QFI\xfb", Format::Qcow2),
    (0, b"QED\0", Format::Qed),
    (0, b"KDMV", Format::Vmdk),
    (0, b"COWD", Format::Vmdk),
    (0, b"\xbe\xba\xfe\xca\0\0\0\0\x01\0\0\0\x02\0\0\0", Format::Vmdk),
    (0, b"# Disk DescriptorFile", Format::Vmdk),
    (0, b"# Disk Descriptor File", Format::Vmdk),
    (0, b"#Disk Descriptor", Format::Vmdk),
    (0, b"conectix", Format::Vhd),
    (0, b"vhdxfile", Format::Vhdx),
    (0x40, b"\x7f\x10\xda\xbe", Format::Vdi),
    (0, b"WithoutFreeSpace", Format::Parallels),
    (0, b"WithouFreSpacExt", Format::Parallels),
    (0, b"Bochs Virtual HD Image\0", Format::Bochs),
    (0, b"#!/bin/sh\n#V2.0 Format\n", Format::Cloop),
    (0, b"LUKS\xba\xbe", Format::Luks),
    (0, b"\x1f\x8b\x08", Format::Gzip),
    (0, b"\xfd7zXZ\0", Format::Xz),
    (0, b"\x28\xb5\x2f\xfd", Format::Zstd),
    (0, b"\x04\x22\x4d\x18", Format::Lz4),
    (0, b"\x02\x21\x4c\x18", Format::Lz4),
    (0, b"\xff\x06\0\0sNaPpY", Format::Snappy),
    (0, b"\x1f\x9d", Format::Compress),
    (0, b"PK\x03\x04", Format::Zip),
    (0, b"PK\x05\x06", Format::Zip),
    (0, b"PK\x07\x08PK", Format::Zip),
    (0, b"7z\xbc\xaf\x27\x1c", Format::SevenZip),
    // A bzip2 stream's first block (its magic is the digits of pi) or its end (of the root of pi).
    (4, b"1AY&SY", Format::Bzip2),
    (4, b"\x17\x72\x45\x38\x50\x90", Format::Bzip2),
    (257, b"ustar\0", Format::Tar),
    (257, b"ustar ", Format::Tar),
];

impl Format {
    /// The name that users know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow1 => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Parallels => "parallels",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Dmg => "dmg",
            Self::Luks => "luks",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
            Self::Snappy => "snappy",
            Self::Lzma => "lzma",
            Self::Compress => "compress",
            Self::Zip => "zip",
            Self::SevenZip => "7z",
            Self::Tar => "tar",
            Self::Ova => "ova",
        }
    }

    /// True for what is only wrapped round a disk, and read as a stream.
    pub(crate) const fn is_container(self) -> bool {
        matches!(
            self,
            Self::Gzip
                | Self::Xz
                | Self::Zstd
                | Self::Bzip2
                | Self::Lz4
                | Self::Snappy
                | Self::Lzma
                | Self::Tar
                | Self::Ova
                | Self::Zip
        )
    }

    /// The refusal of a format that is known but not read; `None` for those that are.
    pub(crate) fn refusal(self) -> Option<Error> {
        let (kind, what) = match self {
            Self::Raw
            | Self::Qcow2
            | Self::Qcow1
            | Self::Qed
            | Self::Vdi
            | Self::Vhd
            | Self::Vhdx
            | Self::Parallels
            | Self::Vmdk => {
                return None;
            }
            Self::Luks => (ErrorKind::Encrypted, "the disk is encrypted with LUKS".to_owned()),
            format if format.is_container() => return None,
            Self::Compress => {
                (ErrorKind::Unsupported, "`compress` (.Z) files are not supported".to_owned())
            }
            Self::SevenZip => {
                (ErrorKind::Unsupported, "`7z` archives are not supported".to_owned())
            }
            _ => (ErrorKind::Unsupported, format!("`{}` images are not supported", self.name())),
        };
        Some(Error::new(kind, what).at(0))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a disk in its containers: `gzip → qcow2`.
pub fn chain_name(chain: &[Format]) -> String {
    let names: Vec<_> = chain.iter().map(|format| format.name()).collect();
    names.join(" → ")
}

/// Tells the format of a file that begins with `head`. What nothing else claims is raw.
pub fn sniff(head: &[u8]) -> Format {
    let matches = |(at, magic, _): &&(usize, &[u8], Format)| {
        head.get(*at..).is_some_and(|tail| tail.starts_with(magic))
    };
    match MAGIC.iter().find(matches).map(|(_, _, format)| *format) {
        Some(Format::Bzip2) if !head.starts_with(b"BZh") => Format::Raw,
        Some(Format::Tar) if first_member_is_ovf(head) => Format::Ova,
        Some(format) => format,
        None if is_lzma(head) => Format::Lzma,
        None => skipped(head).unwrap_or(Format::Raw),
    }
}

/// LZMA alone has no magic: properties, dictionary size, length, and a coded first byte that is
/// always zero ("The .lzma File Format" §1.1). Taken for one is only what `lzma` writes, whatever its
/// options: the usual properties, a dictionary of 2^n or 2^n + 2^(n-1) bytes, a length that is
/// unknown or below 256 GiB, as liblzma has it.
fn is_lzma(head: &[u8]) -> bool {
    let Some((fields, _)) = head.split_first_chunk::<14>() else { return false };
    let [properties, d0, d1, d2, d3, len @ .., first] = *fields;
    let (dictionary, len) = (u32::from_le_bytes([d0, d1, d2, d3]), u64::from_le_bytes(len));
    let shape = dictionary >> dictionary.trailing_zeros().min(31);
    properties == 0x5d
        && dictionary >= 4096
        && matches!(shape, 1 | 3)
        && (len == u64::MAX || len < 1 << 38)
        && first == 0
}

/// What begins behind skippable frames (RFC 8878 §3.1.2), which `pzstd` puts before each frame of its
/// own. LZ4 has them too.
fn skipped(head: &[u8]) -> Option<Format> {
    let mut rest = head;
    let mut skippable = false;
    while let Some((&[0x50..=0x5f, 0x2a, 0x4d, 0x18, len @ ..], behind)) =
        rest.split_first_chunk::<8>()
    {
        skippable = true;
        rest = behind.get(u32::from_le_bytes(len) as usize..).unwrap_or_default();
    }
    let format = if rest.starts_with(b"\x04\x22\x4d\x18") { Format::Lz4 } else { Format::Zstd };
    skippable.then_some(format)
}

/// What Apple's disk image ends with: the mark, the version and the length of its trailer, which
/// is a sector.
const DMG_TRAILER: &[u8] = b"koly\0\0\0\x04\0\0\x02\0";

/// Refuses what looks like a raw disk until its end, `tail`, the last sector of `len` bytes.
pub(crate) fn refuse_tail(tail: &[u8], len: u64) -> Result<(), Error> {
    match Format::Dmg.refusal() {
        Some(refusal) if tail.starts_with(DMG_TRAILER) => {
            Err(refusal.at(len.saturating_sub(tail.len() as u64)))
        }
        _ => Ok(()),
    }
}

/// OVF appliances keep their description first (DSP0243 §5.3); a tar's first name is its first
/// 100 bytes.
fn first_member_is_ovf(head: &[u8]) -> bool {
    let name = head.get(..100).unwrap_or_default().split(|b| *b == 0).next().unwrap_or_default();
    name.to_ascii_lowercase().ends_with(b".ovf")
}

/// Refuses what a server sends in place of an image: nothing, a web page, an error in words.
///
/// No disk that holds anything begins with [`HEAD_LEN`] bytes of printable text.
pub(crate) fn refuse_text(head: &[u8]) -> Result<(), Error> {
    let refuse = |what: &str| Err(Error::new(ErrorKind::NotAnImage, what).at(0));
    if head.is_empty() {
        return refuse("expected a disk image, got an empty file");
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |word: &str| {
        text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    if begins("<!doctype html") || begins("<html") {
        return refuse("expected a disk image, got an HTML page");
    }
    if !is_text(head) {
        return Ok(());
    }
    match text.first() {
        Some(b'<') => refuse("expected a disk image, got an XML or HTML document"),
        Some(b'{' | b'[') => refuse("expected a disk image, got a JSON document"),
        _ => refuse("expected a disk image, got a text"),
    }
}

/// True if all of `head` is printable UTF-8, whose last character may be cut off. So many letters
/// without a blank or a bracket before them are no text: disks for tests are filled like that.
fn is_text(head: &[u8]) -> bool {
    let begins_markup = head.first().is_some_and(|byte| b"<{[".contains(byte));
    if head.len() >= HEAD_LEN && !begins_markup && !head.iter().any(u8::is_ascii_whitespace) {
        return false;
    }
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && !text.chars().any(|c| c.is_control() && !"\t\r\n".contains(c))
}

/// A name out of an image, fit to be shown on a terminal: one line, no control characters, cut off
/// where it is long.
pub(crate) fn printable(bytes: &[u8]) -> String {
    /// Long enough to recognise a path by.
    const SHOWN_MAX: usize = 200;
    let text = String::from_utf8_lossy(bytes);
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(escape).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn escape(c: char) -> impl Iterator<Item = char> {
    // Bidirectional controls and other invisible characters change what a line seems to say.
    let plain = c.is_ascii_graphic() || c == ' ' || (!c.is_ascii() && c.is_alphanumeric());
    let escaped = (!plain).then(|| c.escape_default());
    escaped.into_iter().flatten().chain(plain.then_some(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD_LEN];
        head[offset..offset + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn formats_are_told_by_their_magic() {
        for (head, format) in [
            (at(0, b"QFI\xfb\0\0\0\x03"), Format::Qcow2),
            (at(0, b"QFI\xfb\0\0\0\x01"), Format::Qcow1),
            (at(0, b"KDMV\x01"), Format::Vmdk),
            (at(0, b"# Disk DescriptorFile\nversion=1\n"), Format::Vmdk),
            (at(0x40, b"\x7f\x10\xda\xbe"), Format::Vdi),
            (at(0, b"BZh91AY&SY"), Format::Bzip2),
            (at(4, b"1AY&SY"), Format::Raw),
            (at(257, b"ustar\x0000"), Format::Tar),
            (at(0, b"\x50\x2a\x4d\x18\x04\0\0\0\xff\xff\xff\xff\x28\xb5\x2f\xfd"), Format::Zstd),
            (at(0, b"\x5f\x2a\x4d\x18\0\0\0\0\x04\x22\x4d\x18"), Format::Lz4),
            (at(0, b"\x5f\x2a\x4d\x18\xff\xff\xff\xff"), Format::Zstd),
            (at(0, b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0"), Format::Lzma),
            (at(0, b"\x5d\0\0\xc0\0\0\0\x10\0\0\0\0\0\0"), Format::Lzma),
            (at(0, b"\x5d\0\0\xa0\0\0\0\x10\0\0\0\0\0\0"), Format::Raw),
            (at(0, b"\x5d\0\0\x80\0\0\0\x10\0\x55\xaa\0\0\0"), Format::Raw),
            (at(0, b"\x5d"), Format::Raw),
            (vec![0; 512], Format::Raw),
            (at(510, b"\x55\xaa"), Format::Raw),
            (Vec::new(), Format::Raw),
        ] {
            assert_eq!(sniff(&head), format);
        }
        let mut ova = at(257, b"ustar\x0000");
        ova[..11].copy_from_slice(b"machine.OVF");
        assert_eq!(sniff(&ova), Format::Ova);
    }

    #[test]
    fn pages_and_messages_are_no_disks() {
        for (head, what) in [
            (&b""[..], "expected a disk image, got an empty file"),
            (b"<!DOCTYPE html>\n<html>", "expected a disk image, got an HTML page"),
            (b"\xef\xbb\xbf \r\n<HTML lang=en>\0", "expected a disk image, got an HTML page"),
            (
                b"<?xml version=\"1.0\"?><Error>",
                "expected a disk image, got an XML or HTML document",
            ),
            (b"{\"errors\":[]}", "expected a disk image, got a JSON document"),
            (b"404 page not found\n", "expected a disk image, got a text"),
            ("nicht gefunden: \u{e4}".as_bytes(), "expected a disk image, got a text"),
            (b"cut off in a character: \xc3", "expected a disk image, got a text"),
        ] {
            let error = refuse_text(head).unwrap_err();
            assert_eq!((error.kind(), error.offset()), (ErrorKind::NotAnImage, Some(0)));
            assert_eq!(error.to_string(), format!("{what} (at offset 0x0)"));
        }
    }

    #[test]
    fn bytes_of_any_kind_may_be_a_disk() {
        for head in [
            &b"\xeb\x63\x90"[..],
            &[0; 512],
            &[b'A'; 512],
            b"text, then\0",
            b"\xff\xfe<html",
            b"\x1b[2J",
        ] {
            refuse_text(head).unwrap();
        }
    }

    #[test]
    fn names_cannot_write_on_the_terminal() {
        assert_eq!(
            printable(b"/etc/\x1b[2J\n\xff\xe2\x80\xaex"),
            "/etc/\\u{1b}[2J\\n\\u{fffd}\\u{202e}x"
        );
        assert_eq!(printable(&[b'a'; 300]).chars().count(), 201);
    }
}
