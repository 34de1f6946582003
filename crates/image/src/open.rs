//! Opens and describes an image of whatever format it has.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::raw::RawDisk;
use crate::sniff::{HEAD_LEN, refuse_text};
use crate::stream::{look, refuse_polyglot};
use crate::{
    Disk, Error, ErrorKind, Format, Info, ReadAt, parallels, qcow1, qcow2, qed, raw, sniff, vdi,
    vhd, vhdx, vmdk,
};

/// How much of a container is read at first, and at most, to see the disk in it.
const LOOK_FIRST: u64 = 64 << 10;
const LOOK_MAX: u64 = 2 << 20;

/// What an image may need besides itself. None of it is looked for: an image that needs what is
/// not given is refused with [`ErrorKind::NeedsOtherFile`].
#[derive(Default)]
pub struct OpenOptions {
    /// The disk that the image is an overlay over.
    pub backing: Option<Box<dyn Disk>>,
    /// The file that holds the guest's data, for a qcow2 with an external one.
    pub data_file: Option<Box<dyn ReadAt>>,
    /// The internal snapshot to read in place of the active state, by its identifier or name.
    pub snapshot: Option<String>,
    /// Where the extents of a VMDK are that is only a description.
    pub extents: Option<Arc<dyn Directory>>,
}

/// The files of one directory that the caller chose.
pub trait Directory: Send + Sync {
    /// Opens the regular file `name`, which has no `/` and is neither `.` nor `..`, without
    /// following a symbolic link.
    fn open(&self, name: &str) -> io::Result<Box<dyn ReadAt>>;
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("backing", &self.backing.is_some())
            .field("data_file", &self.data_file.is_some())
            .field("snapshot", &self.snapshot)
            .field("extents", &self.extents.is_some())
            .finish()
    }
}

/// Opens the image in `source` for reading, whatever its format.
pub fn open<R: ReadAt + 'static>(source: R) -> Result<Box<dyn Disk>, Error> {
    open_with(source, OpenOptions::default())
}

/// Opens the image in `source` for reading, with what it needs besides itself.
pub fn open_with<R: ReadAt + 'static>(
    source: R,
    options: OpenOptions,
) -> Result<Box<dyn Disk>, Error> {
    let head = read_head(&source)?;
    match sniff(&head) {
        Format::Qcow2 => {
            refuse_polyglot(&head)?;
            Ok(Box::new(qcow2::open_with(source, options)?))
        }
        Format::Vmdk => Ok(Box::new(vmdk::open_with(source, options)?)),
        Format::Raw => {
            if let Some(footer) = vhd::fixed(&source)? {
                return Ok(Box::new(vhd::open_fixed(source, &footer)));
            }
            refuse_text(head.get(..HEAD_LEN).unwrap_or(&head))?;
            Ok(Box::new(RawDisk::read_only(source)))
        }
        Format::Vdi => Ok(Box::new(vdi::open(source)?)),
        Format::Vhd => Ok(Box::new(vhd::open(source)?)),
        Format::Vhdx => Ok(Box::new(vhdx::open(source)?)),
        Format::Parallels => Ok(Box::new(parallels::open(source)?)),
        Format::Qcow1 => Ok(Box::new(qcow1::open_with(source, options)?)),
        Format::Qed => Ok(Box::new(qed::open_with(source, options)?)),
        other => Err(other.refusal().unwrap_or_else(|| {
            let what =
                format!("a disk in a `{other}` file can only be read from its start to its end");
            Error::new(ErrorKind::Unsupported, what).at(0)
        })),
    }
}

/// Describes the image in `source`, also if [`open`] would refuse it. Reads little of it. Fails if
/// the bytes are no image, or break the rules of their format.
pub fn inspect(source: &dyn ReadAt) -> Result<Info, Error> {
    let head = read_head(source)?;
    let format = sniff(&head);
    if format.is_container() {
        return inspect_inside(source, format);
    }
    let mut info = Info::new(format);
    describe(source, &head, &mut info)?;
    Ok(info)
}

fn describe(source: &dyn ReadAt, head: &[u8], info: &mut Info) -> Result<(), Error> {
    info.refused = info.format.refusal().map(|error| error.to_string());
    match info.format {
        Format::Raw => {
            match vhd::fixed(source) {
                Ok(Some(footer)) => {
                    footer.describe(info);
                    info.content = raw::content(head);
                    return Ok(());
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Read => {
                    let note = "the end was not looked at, where a fixed VHD has its footer";
                    info.notes.push(note.to_owned());
                }
                Err(error) => return Err(error),
            }
            refuse_text(head.get(..HEAD_LEN).unwrap_or(head))?;
            info.virtual_size = Some(raw::round_up(source.len()));
            info.content = raw::content(head);
        }
        Format::Qcow2 => {
            refuse_polyglot(head)?;
            qcow2::describe(source, info)?;
        }
        Format::Vmdk => vmdk::describe(source, info)?,
        Format::Vdi => vdi::describe(source, info)?,
        Format::Vhd => vhd::describe(source, info)?,
        Format::Vhdx => vhdx::describe(source, info)?,
        Format::Parallels => parallels::describe(source, info)?,
        Format::Qcow1 => qcow1::describe(source, info)?,
        Format::Qed => qed::describe(source, info)?,
        _ => {}
    }
    Ok(())
}

/// Describes the disk in a container by the first bytes that come out of it.
fn inspect_inside(source: &dyn ReadAt, outermost: Format) -> Result<Info, Error> {
    let end = source.len().min(LOOK_MAX);
    let (mut chunks, mut at) = (Vec::new(), 0);
    let found = loop {
        // As much again as there is: each look starts anew.
        let mut chunk = vec![0; at.max(LOOK_FIRST).min(end - at) as usize];
        source.read_exact_at(&mut chunk, at).map_err(|error| Error::read(error, at))?;
        at += chunk.len() as u64;
        chunks.push(chunk.into());
        match look(&chunks, at == source.len())? {
            Some(found) => break found,
            None if at < end => {}
            None => {
                let mut info = Info::new(outermost);
                info.notes.push(format!("the disk does not begin in the first {LOOK_MAX} bytes"));
                return Ok(info);
            }
        }
    };
    let mut info = Info::new(found.format());
    let raw_size = found.raw_size();
    info.chain = found.chain;
    let start = Start { bytes: found.head, len: found.len.unwrap_or(u64::MAX) };
    if info.format == Format::Raw {
        refuse_text(start.bytes.get(..HEAD_LEN).unwrap_or(&start.bytes))?;
        info.virtual_size = raw_size;
        info.content = raw::content(&start.bytes);
        return Ok(info);
    }
    match describe(&start, &start.bytes, &mut info) {
        // Tables that are farther in tell the less important things.
        Err(error) if matches!(error.kind(), ErrorKind::Truncated | ErrorKind::Read) => {}
        described => described.map_err(Error::of_unpacked)?,
    }
    Ok(info)
}

/// The first bytes of a file that is longer.
struct Start {
    bytes: Vec<u8>,
    len: u64,
}

impl ReadAt for Start {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // The file does not end there, it was only not looked at.
        self.bytes.read_exact_at(buf, offset).map_err(io::Error::other)
    }
}

/// The first bytes, as many as any header needs.
pub(crate) fn read_head(source: &(impl ReadAt + ?Sized)) -> Result<Vec<u8>, Error> {
    let mut head = vec![0; source.len().min(qcow2::HEADER_MAX as u64) as usize];
    source.read_exact_at(&mut head, 0).map_err(|error| Error::read(error, 0))?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_reach_is_noted() {
        let head = [&[0xeb, 0x63, 0x90], &[0; 65_533][..]].concat();
        let info = inspect(&Start { bytes: head, len: 1 << 20 }).unwrap();
        assert_eq!((info.format, info.virtual_size), (Format::Raw, Some(1 << 20)));
        assert_eq!(info.notes.len(), 1, "{info:?}");
    }
}
