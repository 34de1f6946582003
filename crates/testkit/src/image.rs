//! Disk contents that are cheap to make, the same on every run, and hard to get right by accident.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use fs_err::File;

/// The unit in which [`sparse_image`] changes between kinds of content: the usual qcow2 cluster.
const EXTENT: u64 = 64 << 10;

/// A small generator of pseudo-random numbers (xorshift64*): no dependency, the same everywhere.
struct Generator(u64);

impl Generator {
    /// Seeds differ in every bit after the multiplication; zero, on which xorshift would stick, is
    /// avoided.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| self.next().to_le_bytes())
            .take(len.div_ceil(8))
            .flatten()
            .collect();
        bytes.truncate(len);
        bytes
    }
}

/// Bytes that no codec shrinks, the same for the same seed.
pub fn pseudo_random(len: usize, seed: u64) -> Vec<u8> {
    Generator::new(seed).bytes(len)
}

/// Writes a sparse raw image: per 64 KiB extent a hole (half of them), incompressible data, text
/// that compresses well, zeroes that are written, or data of which only a part is not zero. The
/// last byte is never zero, so that a lost tail shows.
///
/// # Panics
///
/// If the file cannot be written.
pub fn sparse_image(path: impl AsRef<Path>, len: u64, seed: u64) {
    let mut file = File::create(path.as_ref()).expect("an image to write");
    file.set_len(len).expect("a sparse file");
    let mut generator = Generator::new(seed);
    for offset in (0..len).step_by(EXTENT as usize) {
        let size = EXTENT.min(len - offset) as usize;
        if let Some(data) = extent(&mut generator, size) {
            file.seek(SeekFrom::Start(offset)).expect("a place in the image");
            file.write_all(&data).expect("space for the image");
        }
    }
    if len > 0 {
        file.seek(SeekFrom::Start(len - 1)).expect("a place in the image");
        file.write_all(&[0xa5]).expect("space for the image");
    }
}

/// The content of one extent, `None` for a hole.
fn extent(generator: &mut Generator, size: usize) -> Option<Vec<u8>> {
    match generator.next() >> 61 {
        0..4 => None,
        4 | 5 => Some(generator.bytes(size)),
        6 => {
            let line = format!("line {:016x} of a text that compresses well\n", generator.next());
            Some(line.bytes().cycle().take(size).collect())
        }
        _ => {
            let mut data = vec![0; size];
            let part = size / 8;
            let written = generator.bytes(part);
            // One in eight of these is a written block of zeroes.
            if generator.next() >> 61 != 0 {
                data[part..2 * part].copy_from_slice(&written);
            }
            Some(data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_seed_gives_one_image_and_it_is_sparse() {
        let dir = crate::temp_dir();
        let [a, b, c] = ["a", "b", "c"].map(|name| dir.path().join(name));
        let len = (16 << 20) + 513;
        sparse_image(&a, len, 7);
        sparse_image(&b, len, 7);
        sparse_image(&c, len, 8);
        assert_eq!(crate::sha256_file(&a), crate::sha256_file(&b));
        assert_ne!(crate::sha256_file(&a), crate::sha256_file(&c));
        let metadata = fs_err::metadata(&a).unwrap();
        assert_eq!(metadata.len(), len);
        assert!(metadata.blocks() * 512 < len * 3 / 4, "{} blocks", metadata.blocks());
    }

    #[test]
    fn odd_lengths_are_exact() {
        for len in [0, 1, 7, 8, 9, 4097] {
            assert_eq!(pseudo_random(len, 3).len(), len);
        }
    }
}
