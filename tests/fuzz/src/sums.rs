//! Puts the checksums of damaged images right, so that a fuzzer gets past them.

use std::ops::Range;

/// VHD: the footer at both ends and the header behind the first, each with the complement of the sum
/// of its bytes.
pub fn vhd(file: &mut [u8]) {
    let end = file.len().saturating_sub(512);
    for (place, sum) in [(0..512, 64), (end..end + 512, 64), (512..1536, 36)] {
        let Some(part) = file.get_mut(place) else { continue };
        if !part.starts_with(b"conectix") && !part.starts_with(b"cxsparse") {
            continue;
        }
        part[sum..sum + 4].fill(0);
        let total = part.iter().fold(0_u32, |total, byte| total.wrapping_add(u32::from(*byte)));
        part[sum..sum + 4].copy_from_slice(&(!total).to_be_bytes());
    }
}

/// VHDX: both headers, both region tables, and whatever looks like an entry of the log; each with
/// CRC-32C in its second four bytes.
pub fn vhdx(file: &mut [u8]) {
    const KIB: usize = 1024;
    for (begin, len) in [(64, 4), (128, 4), (192, 64), (256, 64)] {
        crc(file, begin * KIB..(begin + len) * KIB);
    }
    for begin in (0..file.len()).step_by(4 * KIB) {
        let Some([b'l', b'o', b'g', b'e', _, _, _, _, a, b, c, d]) = file.get(begin..begin + 12)
        else {
            continue;
        };
        let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        crc(file, begin..begin.saturating_add(len));
    }
}

fn crc(file: &mut [u8], place: Range<usize>) {
    if let Some(part) = file.get_mut(place)
        && part.len() >= 8
    {
        part[4..8].fill(0);
        let sum = crc32c::crc32c(part);
        part[4..8].copy_from_slice(&sum.to_le_bytes());
    }
}
