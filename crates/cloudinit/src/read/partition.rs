//! Where the partitions of a disk are: MBR, and GPT without regard to its checksums. Only what may hold
//! a seed is looked for, on disks that hold little else.

use super::media::{Media, u32_at};
use crate::Error;

/// Most partitions that are looked at: as many as every GPT has room for.
const PARTITIONS_MAX: usize = 128;

/// Bytes of a GPT's entry that count, and the largest one (UEFI specification §5.3.3).
const ENTRY_MIN: usize = 128;
const ENTRY_MAX: usize = 4096;

/// Type of an MBR partition that stands for a GPT (UEFI specification §5.2.3).
const PROTECTIVE: u8 = 0xEE;

/// Beginning and length in bytes of every partition.
pub(super) fn table(media: &mut Media<'_>) -> Result<Vec<(u64, u64)>, Error> {
    const SECTOR: u64 = 512;
    let head = media.head(512)?;
    if head.len() < 512 || head[510..] != [0x55, 0xAA] {
        return Ok(Vec::new());
    }
    let entries = head[446..510].chunks_exact(16);
    if entries.clone().any(|entry| entry[4] == PROTECTIVE) {
        for sector in [512, 4096] {
            let found = gpt(media, sector)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    let extent = |entry: &[u8]| {
        (u64::from(u32_at(entry, 8)) * SECTOR, u64::from(u32_at(entry, 12)) * SECTOR)
    };
    Ok(entries.filter(|entry| entry[4] != 0).map(extent).collect())
}

/// The partitions of a GPT on a disk with such sectors (UEFI specification §5.3).
fn gpt(media: &mut Media<'_>, sector: u64) -> Result<Vec<(u64, u64)>, Error> {
    if media.len() < 2 * sector {
        return Ok(Vec::new());
    }
    let header = media.table(&"the GPT's header", sector, 92)?;
    let entry_len = u32_at(&header, 84) as usize;
    if !header.starts_with(b"EFI PART") || !(ENTRY_MIN..=ENTRY_MAX).contains(&entry_len) {
        return Ok(Vec::new());
    }
    let count = (u32_at(&header, 80) as usize).min(PARTITIONS_MAX);
    let at = u64_at(&header, 72).saturating_mul(sector);
    let entries = media.table(&"the GPT", at, count * entry_len)?;
    let extent = |entry: &[u8]| {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let len = last.saturating_sub(first).saturating_add(1);
        (first.saturating_mul(sector), len.saturating_mul(sector))
    };
    let used = entries.chunks_exact(entry_len).filter(|entry| entry[..16] != [0; 16]);
    Ok(used.map(extent).collect())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
