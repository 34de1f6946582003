//! The header in front of each member, and what it may say that is not read.

use std::io;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Source, bad};
use crate::ErrorKind;
use crate::sniff::printable;
use crate::stream::unpack::member::NAME_MAX;
use crate::stream::unpack::refuse;

/// Bits of the flags (§4.4.4).
mod flag {
    pub(super) const ENCRYPTED: u16 = 1;
    pub(super) const DESCRIPTOR: u16 = 1 << 3;
    pub(super) const PATCH: u16 = 1 << 5;
    pub(super) const STRONGLY_ENCRYPTED: u16 = 1 << 6;
    pub(super) const UTF8: u16 = 1 << 11;
    pub(super) const MASKED: u16 = 1 << 13;
}

/// The kind of extra field that holds 64-bit sizes (§4.5.3).
const ZIP64: u16 = 1;
/// What stands in a field of 32 bits if that holds the value.
const IN_ZIP64: u32 = u32::MAX;

/// A local file header behind its signature (§4.3.7).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Local {
    version: U16,
    flags: U16,
    method: U16,
    time: U32,
    crc: U32,
    packed: U32,
    len: U32,
    name_len: U16,
    extra_len: U16,
}

/// What a member is found to be, and the directory says that it is.
#[derive(Debug, Clone, Copy, Hash)]
pub(super) struct Facts {
    pub(super) method: u16,
    pub(super) crc: u32,
    /// How many bytes it has in the archive, and how many unpacked.
    pub(super) packed: u64,
    pub(super) len: u64,
}

/// A member that begins. What is `None` stands only behind the data (§4.4.4, bit 3).
#[derive(Debug, Default)]
pub(super) struct Header {
    /// Where the header stands.
    pub(super) at: u64,
    /// The name as it is there, and in UTF-8.
    pub(super) raw_name: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) method: u16,
    pub(super) crc: Option<u32>,
    pub(super) packed: Option<u64>,
    pub(super) len: Option<u64>,
    /// There is something behind the data.
    pub(super) described: bool,
}

impl Header {
    /// Reads the header whose signature has been read at `at`.
    pub(super) fn read(source: &mut Source, at: u64) -> io::Result<Self> {
        let local: Local = source.record()?;
        let flags = local.flags.get();
        let raw_name = take_name(source, local.name_len.get())?;
        let name = name(&raw_name, flags & flag::UTF8 != 0);
        let method = local.method.get();
        refuse_features(&name, flags, method)?;
        let extra = source.take(local.extra_len.get().into())?;
        let mut wide = Wide::find(&extra)?;
        let described = flags & flag::DESCRIPTOR != 0;
        let told = |value: u64| (!described || value != 0).then_some(value);
        let mut len = told(wide.value(local.len.get())?);
        let packed = told(wide.value(local.packed.get())?);
        let crc = Some(local.crc.get()).filter(|crc| !described || *crc != 0);
        if method == super::STORED {
            len = len.or(packed).or_else(|| name.ends_with(b"/").then_some(0));
            if len.is_none() {
                let what = format!(
                    "the member `{}` is stored without its length before it",
                    printable(&name)
                );
                return Err(refuse(ErrorKind::Unsupported, what));
            }
        }
        Ok(Self { at, raw_name, name, method, crc, packed, len, described })
    }
}

/// Refuses by name what is known and not read.
fn refuse_features(name: &[u8], flags: u16, method: u16) -> io::Result<()> {
    let refuse =
        |kind, why: String| Err(refuse(kind, format!("the member `{}` {why}", printable(name))));
    if flags & (flag::ENCRYPTED | flag::STRONGLY_ENCRYPTED | flag::MASKED) != 0 {
        return refuse(ErrorKind::Encrypted, "is encrypted".to_owned());
    }
    if flags & flag::PATCH != 0 {
        return refuse(ErrorKind::Unsupported, "is a patch for another file".to_owned());
    }
    // §4.4.5.
    let method_name = match method {
        super::STORED | super::DEFLATED => return Ok(()),
        1 => "shrink",
        2..=5 => "reduce",
        6 | 10 => "implode",
        9 => "deflate64",
        12 => "bzip2",
        14 => "LZMA",
        20 | 93 => "zstd",
        95 => "xz",
        98 => "PPMd",
        99 => return refuse(ErrorKind::Encrypted, "is encrypted with AES".to_owned()),
        _ => "an unknown method",
    };
    let why = format!("is compressed with {method_name} ({method}); expected deflate or none");
    refuse(ErrorKind::Unsupported, why)
}

/// Takes a name of an allowed length.
pub(super) fn take_name(source: &mut Source, len: u16) -> io::Result<Vec<u8>> {
    if usize::from(len) > NAME_MAX {
        let what = format!("expected a name of at most {NAME_MAX} bytes, got one of {len}");
        return Err(refuse(ErrorKind::TooLarge, what));
    }
    source.take(len.into())
}

/// A name in UTF-8. It is that already, or of code page 437 (appendix D).
fn name(raw: &[u8], utf8: bool) -> Vec<u8> {
    if utf8 || std::str::from_utf8(raw).is_ok() {
        return raw.to_vec();
    }
    let letter = |byte: &u8| match byte.checked_sub(0x80) {
        None => char::from(*byte),
        Some(high) => CP437.chars().nth(high.into()).unwrap_or(char::REPLACEMENT_CHARACTER),
    };
    raw.iter().map(letter).collect::<String>().into_bytes()
}

/// The upper half of code page 437.
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
                     └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The values of a zip64 extra field that have not been taken. They stand there in a fixed order, and
/// only those that do not stand in their own fields (§4.5.3).
pub(super) struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    /// Looks for it among the extra fields (§4.5.1).
    pub(super) fn find(mut extra: &'a [u8]) -> io::Result<Self> {
        while let Ok((fields, rest)) = <[U16; 2]>::ref_from_prefix(extra) {
            let [kind, len] = fields.map(U16::get);
            let value = rest.get(..len.into());
            let value = value.ok_or_else(|| bad("an extra field is longer than all of them"))?;
            if kind == ZIP64 {
                return Ok(Self(value));
            }
            extra = &rest[value.len()..];
        }
        Ok(Self(&[]))
    }

    /// What a field of 32 bits stands for.
    pub(super) fn value(&mut self, field: u32) -> io::Result<u64> {
        if field != IN_ZIP64 {
            return Ok(field.into());
        }
        let (value, rest) = U64::ref_from_prefix(self.0)
            .map_err(|_| bad("a zip64 extra field does not hold what it should"))?;
        self.0 = rest;
        Ok(value.get())
    }

    /// The same for the number of a disk, of 16 bits.
    pub(super) fn disk(&self, field: u16) -> io::Result<u32> {
        if field != u16::MAX {
            return Ok(field.into());
        }
        let (value, _) = U32::ref_from_prefix(self.0)
            .map_err(|_| bad("a zip64 extra field does not hold what it should"))?;
        Ok(value.get())
    }
}
