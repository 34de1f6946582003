//! The bytes of files: extents within the tree or outside, as they are or compressed.

use std::io::Read;

use super::tree::Key;
use super::{Btrfs, EXTENT_DATA, Id};
use crate::Error;
use crate::fs::field::{bytes, damaged, le32, le64, slice, unsupported};
use crate::fs::lzo;

/// Bytes of a compressed extent, packed and not (`BTRFS_MAX_COMPRESSED`, `…_UNCOMPRESSED`).
const COMPRESSED_MAX: u64 = 128 << 10;
/// Bytes of zstd's window, as a power of two: the same.
const WINDOW_LOG_MAX: u32 = 17;
/// Where an extent's data or its place begins.
const HEAD: usize = 21;

/// The `size` bytes of a file. What no extent stands for is zero.
pub(super) fn read(fs: &Btrfs, file: Id, size: u64) -> Result<Vec<u8>, Error> {
    let mut content = vec![0; size as usize];
    let first = Key { object: file.inode, kind: EXTENT_DATA, offset: 0 };
    let mut end = 0;
    fs.each_item(file.tree, first, &mut |key, item| {
        let Some(rest) = size.checked_sub(key.offset).filter(|rest| *rest > 0) else {
            return Ok(false);
        };
        if key.offset < end {
            return Err(damaged("extents of a file overlap"));
        }
        let at = key.offset as usize;
        end = key.offset + extent(fs, item, &mut content[at..at + rest as usize])?;
        Ok(true)
    })?;
    Ok(content)
}

/// Fills the beginning of `to` with an extent. Returns the extent's length.
fn extent(fs: &Btrfs, item: &[u8], to: &mut [u8]) -> Result<u64, Error> {
    const INLINE: u8 = 0;
    const REGULAR: u8 = 1;
    let (unpacked_len, [packing, encryption]) = (le64(item, 8)?, bytes(item, 16)?);
    let [kind] = bytes(item, 20)?;
    if encryption != 0 {
        return Err(unsupported("an encrypted file of btrfs"));
    }
    if kind == INLINE {
        let data = &item[HEAD..];
        let data = match packing {
            0 => data.to_vec(),
            _ => unpack(fs, packing, data, unpacked_len)?,
        };
        let len = data.len().min(to.len());
        to[..len].copy_from_slice(&data[..len]);
        return Ok(data.len() as u64);
    }
    let (address, stored_len) = (le64(item, HEAD)?, le64(item, HEAD + 8)?);
    let (within, len) = (le64(item, HEAD + 16)?, le64(item, HEAD + 24)?);
    let to_len = to.len().min(usize::try_from(len).unwrap_or(usize::MAX));
    let to = &mut to[..to_len];
    let wrong = || damaged("an extent contradicts itself");
    if kind != REGULAR || address == 0 {
        // Reserved, or a hole.
        return Ok(len);
    }
    if packing == 0 {
        fs.read(address.checked_add(within).ok_or_else(wrong)?, to)?;
        return Ok(len);
    }
    if stored_len > COMPRESSED_MAX {
        return Err(wrong());
    }
    let mut stored = vec![0; stored_len as usize];
    fs.read(address, &mut stored)?;
    let data = unpack(fs, packing, &stored, unpacked_len)?;
    let within = usize::try_from(within).map_err(|_| wrong())?;
    to.copy_from_slice(slice(&data, within, to.len())?);
    Ok(len)
}

/// Unpacks an extent; packed data may be followed by the rest of its last sector.
fn unpack(fs: &Btrfs, packing: u8, data: &[u8], len: u64) -> Result<Vec<u8>, Error> {
    const ZLIB: u8 = 1;
    const LZO: u8 = 2;
    const ZSTD: u8 = 3;
    if len > COMPRESSED_MAX {
        return Err(damaged("a compressed extent is too long"));
    }
    let len = len as usize;
    let mut unpacked = match packing {
        ZLIB => {
            let mut out = vec![0; len];
            let used = libdeflater::Decompressor::new().zlib_decompress(data, &mut out);
            let used = used.map_err(|error| Error::read("unpacking an extent failed", error))?;
            out.truncate(used);
            out
        }
        LZO => unpack_lzo(data, len, fs.sector_len as usize)?,
        ZSTD => {
            let mut out = Vec::new();
            let unzstd = zstd::stream::read::Decoder::with_buffer(data).and_then(|mut decoder| {
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                decoder.single_frame().take(len as u64).read_to_end(&mut out)
            });
            unzstd.map_err(|error| Error::read("unpacking an extent failed", error))?;
            out
        }
        _ => return Err(unsupported(format_args!("btrfs compression {packing}"))),
    };
    // A short one stands for zeros behind it.
    unpacked.resize(len, 0);
    Ok(unpacked)
}

/// The total length, then blocks of a sector each, with their lengths before them. A length never
/// crosses the end of a sector.
fn unpack_lzo(data: &[u8], len: usize, sector: usize) -> Result<Vec<u8>, Error> {
    const LENGTH: usize = 4;
    let end = data.len().min(le32(data, 0)? as usize);
    let (mut out, mut at) = (Vec::new(), LENGTH);
    while at + LENGTH <= end && out.len() < len {
        let left = sector - at % sector;
        if left < LENGTH {
            at += left;
            continue;
        }
        let block = slice(data, at + LENGTH, le32(data, at)? as usize)?;
        let block_out = lzo::decompress(block, sector);
        out.extend(block_out.ok_or_else(|| damaged("a block of LZO is damaged"))?);
        at += LENGTH + block.len();
    }
    out.truncate(len);
    Ok(out)
}
