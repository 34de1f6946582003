//! Rock Ridge entries of a directory record, as Linux takes them: names, symbolic links and moved
//! directories (SUSP 1.12 and RRIP 1.12).

use super::media::{Media, u32_at};
use crate::Error;

/// Bytes of the block in which a continuation is, whatever the image's logical blocks are: Linux reads
/// no further either.
const BLOCK: u32 = 2048;

/// Most continuations of one record, as Linux has it.
const CONTINUATIONS_MAX: usize = 32;

/// Longest name and longest link target, as in Linux.
const NAME_MAX: usize = 255;
const LINK_MAX: usize = 4096;

/// What the entries of one record say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// The real name (NM, RRIP §4.1.4).
    pub(super) name: Option<Vec<u8>>,
    /// Where a symbolic link leads (SL, RRIP §4.1.3).
    pub(super) link: Option<Vec<u8>>,
    /// The block of the directory for which the record stands (CL, RRIP §4.1.5.1).
    pub(super) child: Option<u32>,
    /// A directory that stands elsewhere in truth (RE, RRIP §4.1.5.3).
    pub(super) is_relocated: bool,
    /// A file that is stored compressed (ZF of zisofs).
    pub(super) is_compressed: bool,
    /// How many bytes precede the entries of every other record (SP, SUSP §5.3).
    pub(super) skip: Option<u8>,
    /// The protocol is in use (ER, SUSP §5.5).
    pub(super) is_extension: bool,
    /// The last part of `link` goes on.
    link_goes_on: bool,
}

/// Reads the entries in the system-use field `field`, which is at `offset`, and those that continue it.
/// `block_len` are the bytes of a logical block.
pub(super) fn attributes(
    media: &mut Media<'_>,
    block_len: u64,
    field: &[u8],
    offset: u64,
) -> Result<Attributes, Error> {
    let mut attributes = Attributes::default();
    let (mut area, mut at) = (field.to_vec(), offset);
    for _ in 0..=CONTINUATIONS_MAX {
        let next = attributes.read(&area).map_err(|what| media.damaged(at, what))?;
        let Some([block, begin, len]) = next else { return Ok(attributes) };
        if begin.checked_add(len).is_none_or(|end| end > BLOCK) {
            let what = format!("a Rock Ridge continuation of {len} bytes at {begin} of a block");
            return Err(media.damaged(at, what));
        }
        at = u64::from(block) * block_len + u64::from(begin);
        area = media.table(&"a Rock Ridge continuation", at, len as usize)?;
    }
    Err(media.damaged(at, "Rock Ridge continuations without end"))
}

impl Attributes {
    /// Takes the entries of one area. Returns block, offset and length of the next one.
    fn read(&mut self, mut area: &[u8]) -> Result<Option<[u32; 3]>, &'static str> {
        let mut next = None;
        // What is shorter than an entry's head is filling.
        while let &[a, b, len, _, ..] = area {
            if len < 4 {
                break;
            }
            let (entry, rest) =
                area.split_at_checked(len.into()).ok_or("a Rock Ridge entry that is cut off")?;
            let data = &entry[4..];
            match (&[a, b], data.len()) {
                (b"ST", _) => break,
                (b"CE", 24..) => next = Some([0, 8, 16].map(|at| u32_at(data, at))),
                (b"SP", 3..) => self.skip = data.starts_with(&[0xbe, 0xef]).then_some(data[2]),
                (b"ER", _) => self.is_extension = true,
                (b"NM", 1..) => self.take_name(data[0], &data[1..])?,
                (b"SL", 1..) => self.take_link(&data[1..])?,
                (b"CL", 8..) => self.child = Some(u32_at(data, 0)),
                (b"RE", _) => self.is_relocated = true,
                (b"ZF", _) => self.is_compressed = true,
                (b"CE" | b"SP" | b"NM" | b"SL" | b"CL", _) => {
                    return Err("a Rock Ridge entry that is too short");
                }
                _ => {}
            }
            area = rest;
        }
        Ok(next)
    }

    /// A name may be in several entries. `.` and `..`, which have flags, are never looked at.
    fn take_name(&mut self, flags: u8, part: &[u8]) -> Result<(), &'static str> {
        const CURRENT_OR_PARENT: u8 = 0b110;
        if flags & CURRENT_OR_PARENT != 0 {
            return Ok(());
        }
        let name = self.name.get_or_insert_default();
        name.extend(part.split(|byte| *byte == 0).next().unwrap_or_default());
        if name.len() > NAME_MAX { Err("a name longer than 255 bytes") } else { Ok(()) }
    }

    /// The components of a link (RRIP §4.1.3.1), which may go on in the next entry.
    fn take_link(&mut self, mut components: &[u8]) -> Result<(), &'static str> {
        const CUT: &str = "a symbolic link that is cut off";
        let link = self.link.get_or_insert_default();
        while let &[flags, len, ref rest @ ..] = components {
            let (text, rest) = rest.split_at_checked(len.into()).ok_or(CUT)?;
            if !link.is_empty() && !link.ends_with(b"/") && !self.link_goes_on {
                link.push(b'/');
            }
            match flags & 0b1110 {
                0b0010 => link.push(b'.'),
                0b0100 => link.extend(b".."),
                0b1000 => link.push(b'/'),
                _ => link.extend(text),
            }
            self.link_goes_on = flags & 1 != 0;
            components = rest;
        }
        if link.len() > LINK_MAX { Err("a symbolic link longer than 4096 bytes") } else { Ok(()) }
    }
}
