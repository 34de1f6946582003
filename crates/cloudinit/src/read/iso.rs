//! ISO 9660 as Linux shows it (ECMA-119; Joliet; Rock Ridge): of the trees that an image may have,
//! the one with Rock Ridge names goes first, then Joliet's, then the plain one.
//!
//! Sizes and places are taken from the little-endian half of each number, as Linux does. Directories
//! say themselves where their files are, so that path tables are not looked at.

use std::collections::HashSet;

use super::FileSystem;
use super::finds::Finds;
use super::media::{Media, u16_at, u32_at};
use super::rock_ridge::{self, Attributes};
use crate::Error;

/// Bytes of a logical sector: where volume descriptors are, and what directory records do not cross.
const SECTOR: usize = 2048;

/// The first volume descriptor (ECMA-119 §8.1), and how many are looked at, as in Linux.
const DESCRIPTORS_AT: u64 = 16;
const DESCRIPTORS_MAX: u64 = 84;

/// What every descriptor has behind its type (ECMA-119 §8.1.2, §8.1.3).
const IDENTIFIER: &[u8] = b"CD001";

/// UCS-2 of level 1 to 3 in the escape sequences of a supplementary descriptor (Joliet specification).
const JOLIET_ESCAPES: [&[u8]; 3] = [b"%/@", b"%/C", b"%/E"];

/// Length of a directory record up to its identifier (ECMA-119 §9.1).
const RECORD_HEAD: usize = 33;

/// Flags of a record (ECMA-119 §9.1.6): a directory, a file that belongs to another one, and more
/// sections of the same file that follow.
const FLAG_DIRECTORY: u8 = 1 << 1;
const FLAG_ASSOCIATED: u8 = 1 << 2;
const FLAG_GOES_ON: u8 = 1 << 7;

/// Largest directory.
const DIRECTORY_MAX: u32 = 16 << 20;

/// An image whose descriptors have been read.
pub(super) struct Iso {
    pub(super) label: Option<String>,
    pub(super) file_system: FileSystem,
    block_len: u64,
    root: Extent,
    /// Bytes before the Rock Ridge entries of a record.
    skip: usize,
}

/// A run of bytes: of a directory, or of a section of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Extent {
    at: u64,
    len: u32,
}

/// A volume descriptor that names a root (ECMA-119 §8.4, §8.5).
struct Descriptor {
    label: Vec<u8>,
    block_len: u64,
    root: Extent,
}

impl Iso {
    /// Reads the descriptors; `None` if the image is no ISO 9660.
    pub(super) fn open(media: &mut Media<'_>) -> Result<Option<Self>, Error> {
        let (mut primary, mut joliet) = (None, None);
        for sector in DESCRIPTORS_AT..DESCRIPTORS_AT + DESCRIPTORS_MAX {
            let at = sector * SECTOR as u64;
            if media.len() < at + SECTOR as u64 {
                break;
            }
            let bytes = media.table(&"a volume descriptor", at, SECTOR)?;
            if &bytes[1..6] != IDENTIFIER {
                break;
            }
            match bytes[0] {
                1 if primary.is_none() => primary = Some(Descriptor::read(media, &bytes, at)?),
                2 if is_joliet(&bytes) && joliet.is_none() => {
                    joliet = Some(Descriptor::read(media, &bytes, at)?);
                }
                255 => break,
                _ => {}
            }
        }
        let Some(primary) = primary else { return Ok(None) };
        let label = text(&primary.label);
        let rock_ridge = skip_of(media, &primary)?;
        let (file_system, chosen) = match (rock_ridge, joliet) {
            (Some(_), _) => (FileSystem::IsoRockRidge, primary),
            (None, Some(joliet)) => (FileSystem::IsoJoliet, joliet),
            (None, None) => (FileSystem::Iso, primary),
        };
        let Descriptor { block_len, root, .. } = chosen;
        let skip = rock_ridge.unwrap_or_default().into();
        Ok(Some(Self { label, file_system, block_len, root, skip }))
    }

    /// Reads everything.
    pub(super) fn read(&self, media: &mut Media<'_>, finds: &mut Finds) -> Result<(), Error> {
        let mut seen = HashSet::new();
        let mut queue = vec![(Vec::new(), self.root)];
        while let Some((path, extent)) = queue.pop() {
            if !seen.insert(extent.at) {
                let what = format!("the directory `/{}` is inside itself", path.join("/"));
                return Err(media.damaged(extent.at, what));
            }
            let name = format!("the directory `/{}`", path.join("/"));
            if extent.len > DIRECTORY_MAX {
                let what = format!("{name} has {} bytes", extent.len);
                return Err(media.damaged(extent.at, what));
            }
            let bytes = media.table(&name, extent.at, extent.len as usize)?;
            self.read_directory(media, finds, &path, extent.at, &bytes, &mut queue)?;
        }
        Ok(())
    }

    fn read_directory(
        &self,
        media: &mut Media<'_>,
        finds: &mut Finds,
        path: &[String],
        begin: u64,
        bytes: &[u8],
        queue: &mut Vec<(Vec<String>, Extent)>,
    ) -> Result<(), Error> {
        let mut at = 0;
        // The sections of a file before its last one.
        let mut sections = Vec::new();
        while at < bytes.len() {
            if bytes[at] == 0 {
                at = (at + 1).next_multiple_of(SECTOR);
                continue;
            }
            let offset = begin + at as u64;
            let record = Record::read(&bytes[at..], self.block_len)
                .map_err(|what| media.damaged(offset, what))?;
            at += record.len;
            if record.is_self_or_parent() || record.flags & FLAG_ASSOCIATED != 0 {
                continue;
            }
            sections.push(record.extent);
            if record.flags & FLAG_GOES_ON != 0 {
                continue;
            }
            let sections = std::mem::take(&mut sections);
            let attributes = self.attributes(media, &record, offset)?;
            if attributes.is_relocated {
                continue;
            }
            let name = self.name(&record, &attributes);
            let path = Finds::path(path, &name)?;
            if let Some(target) = &attributes.link {
                finds.link(path, String::from_utf8_lossy(target).into_owned())?;
            } else if let Some(child) = attributes.child {
                finds.directory(&path)?;
                queue.push((path, self.child(media, child)?));
            } else if record.flags & FLAG_DIRECTORY != 0 {
                finds.directory(&path)?;
                queue.push((path, record.extent));
            } else {
                if attributes.is_compressed {
                    let what = format!("`{}` is compressed with zisofs", path.join("/"));
                    return Err(media.damaged(offset, what));
                }
                read_file(media, finds, &path, &sections)?;
            }
        }
        Ok(())
    }

    fn attributes(
        &self,
        media: &mut Media<'_>,
        record: &Record<'_>,
        offset: u64,
    ) -> Result<Attributes, Error> {
        if self.file_system != FileSystem::IsoRockRidge {
            return Ok(Attributes::default());
        }
        let field = record.system_use.get(self.skip..).unwrap_or_default();
        rock_ridge::attributes(media, self.block_len, field, offset)
    }

    fn name(&self, record: &Record<'_>, attributes: &Attributes) -> String {
        match (&attributes.name, self.file_system) {
            (Some(name), _) => String::from_utf8_lossy(name).into_owned(),
            (None, FileSystem::IsoJoliet) => joliet_name(record.id),
            (None, _) => plain_name(record.id),
        }
    }

    /// The extent of a moved directory, which its own record says.
    fn child(&self, media: &mut Media<'_>, block: u32) -> Result<Extent, Error> {
        let at = u64::from(block) * self.block_len;
        let head = media.table(&"a moved directory", at, RECORD_HEAD + 1)?;
        let record = Record::read_itself(&head, self.block_len);
        let record = record.map_err(|what| media.damaged(at, what))?;
        Ok(Extent { at, ..record })
    }
}

fn read_file(
    media: &mut Media<'_>,
    finds: &mut Finds,
    path: &[String],
    sections: &[Extent],
) -> Result<(), Error> {
    let len = sections.iter().map(|section| u64::from(section.len)).sum();
    finds.reserve(path, len)?;
    let name = format!("the file `{}`", path.join("/"));
    let mut content = Vec::new();
    // An empty file may be said to be anywhere.
    for section in sections.iter().filter(|section| section.len > 0) {
        content.extend(media.data(&name, section.at, section.len as usize)?);
    }
    finds.file(path, content)
}

/// How many bytes precede the Rock Ridge entries of a record; `None` if there are none.
fn skip_of(media: &mut Media<'_>, primary: &Descriptor) -> Result<Option<u8>, Error> {
    let at = primary.root.at;
    if primary.root.len < SECTOR as u32 || at + SECTOR as u64 > media.len() {
        return Ok(None);
    }
    let bytes = media.table(&"the root directory", at, SECTOR)?;
    let Ok(record) = Record::read(&bytes, primary.block_len) else { return Ok(None) };
    let found = rock_ridge::attributes(media, primary.block_len, record.system_use, at)?;
    Ok(found.skip.filter(|_| found.is_extension))
}

fn is_joliet(descriptor: &[u8]) -> bool {
    JOLIET_ESCAPES.iter().any(|escape| descriptor[88..].starts_with(escape))
}

impl Descriptor {
    fn read(media: &Media<'_>, bytes: &[u8], at: u64) -> Result<Self, Error> {
        let block_len = u16_at(bytes, 128);
        if ![512, 1024, 2048].contains(&block_len) {
            let what = format!("a logical block of {block_len} bytes");
            return Err(media.damaged(at + 128, what));
        }
        let block_len = block_len.into();
        let root = Record::read_itself(&bytes[156..190], block_len);
        let root = root.map_err(|what| media.damaged(at + 156, what))?;
        Ok(Self { label: bytes[40..72].to_vec(), block_len, root })
    }
}

/// A directory record (ECMA-119 §9.1).
struct Record<'a> {
    len: usize,
    extent: Extent,
    flags: u8,
    id: &'a [u8],
    system_use: &'a [u8],
}

impl<'a> Record<'a> {
    /// Reads the record with which `bytes` begin.
    fn read(bytes: &'a [u8], block_len: u64) -> Result<Self, &'static str> {
        let len: usize = bytes[0].into();
        let record = bytes.get(..len).ok_or("a directory record beyond the directory's end")?;
        let (head, rest) =
            record.split_at_checked(RECORD_HEAD).ok_or("a directory record that is too short")?;
        let id_len = usize::from(head[32]);
        let id = rest.get(..id_len).filter(|id| !id.is_empty());
        let id = id.ok_or("a directory record whose name is longer than itself")?;
        let is_interleaved = head[26] != 0 || head[27] != 0;
        if is_interleaved {
            return Err("an interleaved file");
        }
        // The name is filled up to an even length.
        let system_use = record.get((RECORD_HEAD + id_len).next_multiple_of(2)..);
        let system_use = system_use.unwrap_or_default();
        Ok(Self { len, extent: extent(head, block_len), flags: head[25], id, system_use })
    }

    /// The extent of the directory whose own record `bytes` begin with. The root's in a descriptor has
    /// no system use, whatever its length says.
    fn read_itself(bytes: &[u8], block_len: u64) -> Result<Extent, &'static str> {
        if usize::from(bytes[0]) <= RECORD_HEAD || bytes[25] & FLAG_DIRECTORY == 0 {
            return Err("expected the record of a directory");
        }
        Ok(extent(bytes, block_len))
    }

    /// The directory that holds the record, and its parent (ECMA-119 §7.6.2).
    fn is_self_or_parent(&self) -> bool {
        matches!(self.id, [0 | 1])
    }
}

/// Attributes of its own may precede the content (ECMA-119 §9.1.2).
fn extent(head: &[u8], block_len: u64) -> Extent {
    let block = u64::from(u32_at(head, 2)) + u64::from(head[1]);
    Extent { at: block * block_len, len: u32_at(head, 10) }
}

/// A name of the plain tree in the form in which Linux shows it: lower case, without `;1` and the
/// period before it.
fn plain_name(id: &[u8]) -> String {
    let id = id.split(|byte| *byte == 0).next().unwrap_or_default();
    let id = id.strip_suffix(b";1").unwrap_or(id);
    let id = id.strip_suffix(b".").unwrap_or(id);
    let shown = |byte: &u8| match byte {
        b';' | b'/' => b'.',
        byte => byte.to_ascii_lowercase(),
    };
    String::from_utf8_lossy(&id.iter().map(shown).collect::<Vec<_>>()).into_owned()
}

/// A name of Joliet's tree in the form in which Linux shows it: without `;1` and periods at the end.
fn joliet_name(id: &[u8]) -> String {
    let units = id.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let name: String = char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect();
    let name = name.strip_suffix(";1").unwrap_or(&name);
    let rest = name.trim_end_matches('.');
    if rest.is_empty() { name.to_owned() } else { rest.to_owned() }
}

/// A label without the spaces that fill it up.
fn text(field: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(field);
    let text = text.trim_end_matches([' ', '\0']);
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_linux_shows() {
        for (id, name) in [
            ("USER_DAT.;1", "user_dat"),
            ("META.JSO;1", "meta.jso"),
            ("A.B;2", "a.b.2"),
            ("OPENSTAC", "openstac"),
            ("A/B.;1", "a.b"),
            ("X;1", "x"),
        ] {
            assert_eq!(plain_name(id.as_bytes()), name, "{id}");
        }
        for (id, name) in
            [("user-data", "user-data"), ("Grüße;1", "Grüße"), ("a..", "a"), ("..", "..")]
        {
            let id: Vec<u8> = id.encode_utf16().flat_map(u16::to_be_bytes).collect();
            assert_eq!(joliet_name(&id), name);
        }
    }
}
