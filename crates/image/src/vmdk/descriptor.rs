//! The text that describes a disk: which extents it has, and whether it is whole.

use super::header::SECTORS_MAX;
use super::unsupported;
use crate::error::{corrupt, too_large};
use crate::raw::SECTOR;
use crate::sniff::printable;
use crate::{Error, ErrorKind};

/// The largest descriptor in a file of its own.
pub(super) const TEXT_MAX: u64 = 1 << 20;
/// How many extents a disk may have: 8 TiB in files of 2 GiB. Each is an open file.
const EXTENTS_MAX: usize = 4096;
/// What Linux allows for a file's name.
const NAME_MAX: usize = 255;
/// How many names an error lists.
const NAMES_SHOWN: usize = 3;
/// "The Header": the parent's content identifier where there is no parent.
const NO_PARENT: &str = "ffffffff";

/// A descriptor that keeps the rules. It may still ask for what this crate does not give: see
/// [`Descriptor::refusal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// The kind of disk, by the format's own word.
    pub(super) create_type: String,
    /// The extents in the order of their places on the disk.
    pub(super) extents: Vec<Extent>,
    /// The disk that this one is a delta over, where that is told.
    pub(super) parent: Option<String>,
    /// Where the kind of disk, the parent, and keys for the data are told.
    create_type_at: u64,
    parent_at: Option<u64>,
    encrypted_at: Option<u64>,
}

/// One line of "The Extent Description".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where the line stands in the file.
    pub(super) at: u64,
    pub(super) access: Access,
    pub(super) sectors: u64,
    pub(super) kind: Kind,
    /// The file's name; empty if there is none.
    pub(super) name: String,
    /// Where the extent begins in its file, in sectors.
    pub(super) offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// The bytes as they are: also `VMFS`.
    Flat,
    Sparse,
    Zero,
    /// None that is read here.
    Other(String),
}

/// The entries of the header section that matter, as they are found.
#[derive(Debug, Default)]
struct Entries {
    create_type: Option<(String, u64)>,
    parent_cid: Option<(String, u64)>,
    parent_name: Option<(String, u64)>,
    encoding: Option<(String, u64)>,
    encrypted_at: Option<u64>,
}

impl Descriptor {
    /// Parses the text that stands at `base` of its file, and ends with it or with a zero byte.
    pub(super) fn parse(text: &[u8], base: u64) -> Result<Self, Error> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut entries = Entries::default();
        let mut lines = Vec::new();
        let mut at = base;
        for line in text.split(|byte| *byte == b'\n') {
            let begin = at;
            at += line.len() as u64 + 1;
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            match access(line) {
                Some((access, rest)) => lines.push((begin, access, rest)),
                None => entries.take(line, begin)?,
            }
            if lines.len() > EXTENTS_MAX {
                return Err(too_large(
                    format!("the disk has more than {EXTENTS_MAX} extents"),
                    begin,
                ));
            }
        }
        let Some((create_type, create_type_at)) = entries.create_type else {
            return Err(corrupt("the descriptor has no `createType`", base));
        };
        let latin = entries.encoding.is_some_and(|(encoding, _)| is_latin(&encoding));
        let extents: Vec<Extent> = lines
            .into_iter()
            .map(|(at, access, rest)| Extent::parse(rest, at, access, latin))
            .collect::<Result<_, _>>()?;
        check_sectors(&extents, base)?;
        let delta = entries.parent_cid.filter(|(cid, _)| !cid.eq_ignore_ascii_case(NO_PARENT));
        let parent_at = entries.parent_name.as_ref().or(delta.as_ref()).map(|(_, at)| *at);
        Ok(Self {
            create_type,
            extents,
            parent: entries.parent_name.map(|(name, _)| name),
            create_type_at,
            parent_at,
            encrypted_at: entries.encrypted_at,
        })
    }

    /// The sum of the extents, in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.extents.iter().map(|extent| extent.sectors).sum()
    }

    /// The names of the files that hold the extents, fit to be shown.
    pub(super) fn names(&self) -> Vec<String> {
        let named = self.extents.iter().filter(|extent| !extent.name.is_empty());
        named.map(|extent| printable(extent.name.as_bytes())).collect()
    }

    /// Why this crate does not read the disk, if it does not, wherever its extents are.
    pub(super) fn refusal(&self) -> Option<Error> {
        if let Some(at) = self.encrypted_at {
            return Some(
                Error::new(ErrorKind::Encrypted, "the disk is encrypted by VMware").at(at),
            );
        }
        if let Some(at) = self.parent_at {
            let parent = self.parent.as_deref().unwrap_or("whose name is missing");
            let what = format!("the disk is a delta over another VMDK, `{parent}`");
            return Some(Error::new(ErrorKind::NeedsOtherFile, what).at(at));
        }
        let create_type = self.create_type.to_ascii_lowercase();
        let what = match create_type.as_str() {
            "fulldevice"
            | "partitioneddevice"
            | "vmfsraw"
            | "vmfsrdm"
            | "vmfsrawdevicemap"
            | "vmfsrdmp"
            | "vmfspassthroughrawdevicemap" => "a physical device",
            "vmfssparse" => "a disk in the COWD format",
            "sesparse" => "a disk in the seSparse format",
            _ => return None,
        };
        let what = format!("the VMDK is {what} (`{}`), which is not supported", self.create_type);
        Some(unsupported(what, self.create_type_at))
    }

    /// Why this crate does not open the files that the descriptor names, whoever gives them. In a
    /// descriptor inside of a sparse extent their names mean nothing.
    pub(super) fn extents_refusal(&self) -> Option<Error> {
        self.extents.iter().find_map(Extent::refusal)
    }

    /// Why this disk cannot be opened without a directory with its extents.
    pub(super) fn needs_extents(&self) -> Error {
        let names = self.names();
        let mut list: Vec<String> =
            names.iter().take(NAMES_SHOWN).map(|name| format!("`{name}`")).collect();
        if let Some(more) = names.len().checked_sub(NAMES_SHOWN + 1) {
            list.push(format!("and {} more", more + 1));
        }
        let what = format!(
            "the VMDK (`{}`) is only a description; the disk is in {}",
            self.create_type,
            if list.is_empty() { "no file".to_owned() } else { list.join(", ") }
        );
        let at = self.extents.first().map_or(0, |extent| extent.at);
        Error::new(ErrorKind::NeedsOtherFile, what).at(at)
    }
}

impl Entries {
    /// Takes a line `key = value`. A key that another reader might find first with another value
    /// must not come twice.
    fn take(&mut self, line: &[u8], at: u64) -> Result<(), Error> {
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
            let what = format!("expected an entry or an extent, got `{}`", printable(line));
            return Err(corrupt(what, at));
        };
        let key = String::from_utf8_lossy(line[..equals].trim_ascii()).to_ascii_lowercase();
        let value = printable(unquoted(line[equals + 1..].trim_ascii()));
        let entry = match key.as_str() {
            "createtype" => &mut self.create_type,
            "parentcid" => &mut self.parent_cid,
            "parentfilenamehint" => &mut self.parent_name,
            "encoding" => &mut self.encoding,
            _ => {
                if key.starts_with("encrypt") {
                    self.encrypted_at.get_or_insert(at);
                }
                return Ok(());
            }
        };
        if entry.is_some() {
            return Err(corrupt(format!("the descriptor has `{key}` twice"), at));
        }
        *entry = Some((value, at));
        Ok(())
    }
}

impl Extent {
    /// Parses what follows the access: `SECTORS TYPE ["NAME" [OFFSET]]`.
    fn parse(rest: &[u8], at: u64, access: Access, latin: bool) -> Result<Self, Error> {
        let (sectors, rest) = word(rest);
        let sectors = number(sectors).ok_or_else(|| {
            corrupt(format!("expected a number of sectors, got `{}`", printable(sectors)), at)
        })?;
        let (kind, rest) = word(rest);
        let kind = match kind.to_ascii_uppercase().as_slice() {
            b"FLAT" | b"VMFS" => Kind::Flat,
            b"SPARSE" => Kind::Sparse,
            b"ZERO" => Kind::Zero,
            _ => Kind::Other(printable(kind)),
        };
        let (name, rest) = quoted(rest).ok_or_else(|| {
            corrupt(
                format!("the extent's name `{}` is not in quotes", printable(rest.trim_ascii())),
                at,
            )
        })?;
        let (offset, _) = word(rest);
        let offset = match offset {
            b"" => 0,
            digits => number(digits).ok_or_else(|| {
                corrupt(format!("expected an offset in sectors, got `{}`", printable(digits)), at)
            })?,
        };
        let name = decoded(name, latin).ok_or_else(|| {
            corrupt(format!("the extent's name `{}` is not in UTF-8", printable(name)), at)
        })?;
        if name.is_empty() && kind != Kind::Zero {
            return Err(corrupt("the extent has no name", at));
        }
        Ok(Self { at, access, sectors, kind, name, offset })
    }

    fn refusal(&self) -> Option<Error> {
        let name = printable(self.name.as_bytes());
        if let Kind::Other(kind) = &self.kind {
            let what = format!("extents of the kind `{kind}` are not supported: `{name}`");
            return Some(unsupported(what, self.at));
        }
        if self.kind == Kind::Zero {
            return None;
        }
        if self.access == Access::None {
            let what = format!("the extent `{name}` is marked as not accessible");
            return Some(unsupported(what, self.at));
        }
        (!is_plain(&self.name)).then(|| {
            unsupported(format!("the extent `{name}` is not the name of a file alone"), self.at)
        })
    }
}

/// Bounds the disk's size.
fn check_sectors(extents: &[Extent], base: u64) -> Result<(), Error> {
    if extents.is_empty() {
        return Err(corrupt("the descriptor has no extents", base));
    }
    let mut sum = 0_u64;
    for extent in extents {
        let end = extent.offset.saturating_add(extent.sectors);
        sum = sum.saturating_add(extent.sectors);
        if end.max(sum) > SECTORS_MAX {
            let what = format!("the extent ends beyond 2^63 - 1 bytes ({} sectors)", end.max(sum));
            return Err(too_large(what, extent.at));
        }
    }
    Ok(())
}

/// A file's name, and nothing that another program would take for a path, a drive or an address.
fn is_plain(name: &str) -> bool {
    let strange = |c: char| c.is_control() || matches!(c, '/' | '\\' | ':');
    name.len() <= NAME_MAX && name != "." && name != ".." && !name.contains(strange)
}

/// The access that a line begins with, if it is that of an extent, and what follows.
fn access(line: &[u8]) -> Option<(Access, &[u8])> {
    let (first, rest) = word(line);
    let access = match first.to_ascii_uppercase().as_slice() {
        b"RW" => Access::ReadWrite,
        b"RDONLY" => Access::ReadOnly,
        b"NOACCESS" => Access::None,
        _ => return None,
    };
    Some((access, rest))
}

/// The first word and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    text.split_at(end)
}

/// A name in quotes, or nothing at all, and what follows. `None` if something else is there.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    if text.is_empty() {
        return Some((text, text));
    }
    let rest = text.strip_prefix(b"\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    Some((&rest[..end], &rest[end + 1..]))
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value)
}

/// A number in decimal digits.
fn number(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// What VMware writes on a Western Windows.
fn is_latin(encoding: &str) -> bool {
    ["windows-1252", "iso-8859-1"].iter().any(|latin| latin.eq_ignore_ascii_case(encoding))
}

/// A name in UTF-8, or in Windows-1252 as far as that is ISO 8859-1.
fn decoded(name: &[u8], latin: bool) -> Option<String> {
    if !latin {
        return String::from_utf8(name.to_vec()).ok();
    }
    let letter = |byte: &u8| (!(0x80..0xa0).contains(byte)).then_some(char::from(*byte));
    name.iter().map(letter).collect()
}

/// True if a file of `len` bytes can hold the extent as it is.
pub(super) const fn fits(extent: &Extent, len: u64) -> bool {
    (extent.offset + extent.sectors) * SECTOR <= len
}
