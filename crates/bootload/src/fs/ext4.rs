//! ext2, ext3 and ext4, read by `ext4-view` after their superblock was checked.

use ext4_view::{Ext4, Ext4Error, Ext4Read, File};

use super::{FileSystem, NAMES_MAX};
use crate::partition::Region;
use crate::{Error, ErrorKind};

/// Block groups of an ext4 file system: 128 TiB at the usual 128 MiB a group.
const EXT4_GROUPS_MAX: u64 = 1 << 20;
/// Fewer blocks a group than mke2fs makes would only inflate the table of groups.
const EXT4_BLOCKS_PER_GROUP_MIN: u64 = 256;

/// Opens ext2, ext3 or ext4, whose superblock stands at byte 1024.
pub(super) fn open(region: &Region) -> Result<Option<Ext4>, Error> {
    const SUPERBLOCK: u64 = 1024;
    let mut head = [0; 1024];
    if region.len() < SUPERBLOCK + head.len() as u64 {
        return Ok(None);
    }
    region.read(&mut head, SUPERBLOCK)?;
    if head[0x38..0x3a] != [0x53, 0xef] {
        return Ok(None);
    }
    let damaged = |what: &str| Error::new(ErrorKind::Read, format!("the ext4 superblock {what}"));
    let field = |at: usize| {
        u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]))
    };
    let (blocks, per_group) = (field(0x4) | (field(0x150) << 32), field(0x20));
    let block_len = 1_u64.checked_shl(u32::try_from(10 + field(0x18)).unwrap_or(u32::MAX));
    let fs_len = block_len.and_then(|len| blocks.checked_mul(len));
    if fs_len.is_none_or(|len| len > region.len()) {
        return Err(damaged("names a size beyond the end of the partition"));
    }
    if per_group < EXT4_BLOCKS_PER_GROUP_MIN || blocks / per_group > EXT4_GROUPS_MAX {
        return Err(damaged("names an impossible number of block groups"));
    }
    let fs = Ext4::load(Box::new(region.clone()));
    fs.map(Some).map_err(|error| Error::read("opening the ext4 file system failed", error))
}

impl Ext4Read for Region {
    fn read(
        &mut self,
        start: u64,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(Self::read(self, buf, start)?)
    }
}

impl FileSystem for Ext4 {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> String {
        self.uuid().to_string()
    }

    fn label(&self) -> String {
        let label = self.label().as_bytes();
        let len = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
        String::from_utf8_lossy(&label[..len]).into_owned()
    }

    fn size(&self, path: &str) -> Result<Option<u64>, Error> {
        found(path, self.metadata(path).map(|metadata| metadata.len()))
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(mut file) = found(path, self.open(path))? else { return Ok(None) };
        let len = file.metadata().len();
        let fits = usize::try_from(len).ok().filter(|_| len <= limit);
        let Some(len) = fits else {
            let what = format!("expected at most {limit} bytes in `{path}`, got {len}");
            return Err(Error::new(ErrorKind::TooLarge, what));
        };
        read_up_to(path, &mut file, len).map(Some)
    }

    fn head(&self, path: &str, len: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(mut file) = found(path, self.open(path))? else { return Ok(None) };
        let len = file.metadata().len().min(len);
        read_up_to(path, &mut file, usize::try_from(len).unwrap_or(usize::MAX)).map(Some)
    }

    fn names(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(entries) = found(path, self.read_dir(path))? else { return Ok(None) };
        let mut names = Vec::new();
        for entry in entries.take(NAMES_MAX) {
            let Some(entry) = found(path, entry)? else { break };
            let name = entry.file_name();
            names.extend(
                name.as_str().ok().filter(|name| !matches!(*name, "." | "..")).map(str::to_owned),
            );
        }
        names.sort_unstable();
        Ok(Some(names))
    }
}

/// The next `len` bytes of a file, or all that there are.
fn read_up_to(path: &str, file: &mut File, len: usize) -> Result<Vec<u8>, Error> {
    let (mut bytes, mut at) = (vec![0; len], 0);
    while at < len {
        match found(path, file.read_bytes(&mut bytes[at..]))? {
            None | Some(0) => break,
            Some(read) => at += read,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// Sorts "not there" from "cannot be read".
fn found<T>(path: &str, result: Result<T, Ext4Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => Ok(None),
        Err(error) => Err(Error::read(format!("reading `{path}` failed"), error)),
    }
}
