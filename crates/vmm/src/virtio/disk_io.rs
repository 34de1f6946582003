//! Reading a disk into guest memory, without a copy on the way where the disk can tell where its bytes
//! are. Waits for the storage.

use std::io::{self, Write};

use bootyard_image::{Disk, Error, Located, Location};

use super::Segments;
use super::segments::Patience;

/// Data that cannot go straight passes through a buffer of this size, a multiple of every cluster
/// size that is common.
pub(super) const BUFFER_SIZE: usize = 256 << 10;

/// Fills `room` from `offset` on, behind the disk's end with zeros.
pub(crate) fn read(disk: &dyn Disk, offset: u64, room: &mut Segments<'_>) -> Result<(), Error> {
    let mut offset = offset;
    while room.left() > 0 {
        let stored = disk.virtual_size().saturating_sub(offset).min(room.left() as u64);
        let before = room.left();
        match disk.locate(offset, stored) {
            _ if stored == 0 => room.zero(before),
            Some(Located { len, at: Location::Zeros }) => room.zero(len as usize),
            Some(Located { len, at: Location::File { file, offset: at, .. } }) => {
                let filled = room.read_from(file, at, len as usize, Patience::Waits);
                let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
                let whole = filled.and_then(|n| if n as u64 == len { Ok(()) } else { Err(eof()) });
                whole.map_err(|error| Error::read(error, at))?;
            }
            None => {
                let mut buffer = vec![0; stored.min(BUFFER_SIZE as u64) as usize];
                disk.read_at(&mut buffer, offset)?;
                room.write_all(&buffer).expect("there is room for it");
            }
        }
        offset += (before - room.left()) as u64;
    }
    Ok(())
}
