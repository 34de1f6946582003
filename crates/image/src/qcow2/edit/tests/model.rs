//! What a disk should hold, and random things to do with it.

use crate::Disk;

/// A small generator of numbers that are random enough (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A range of a disk of `size` bytes: short or long, aligned or not.
    pub(super) fn range(&mut self, size: u64) -> (u64, u64) {
        let at = self.below(size);
        let most = [16, 700, 9000, 200_000][self.below(4) as usize];
        let len = 1 + self.below(most);
        let (at, len) = match self.below(3) {
            0 => (at, len),
            1 => (at / 512 * 512, len.next_multiple_of(512)),
            _ => (at / 65536 * 65536, len.next_multiple_of(65536)),
        };
        (at, len.min(size - at))
    }
}

/// The contents that a disk should have.
pub(super) struct Model {
    pub(super) disk: Vec<u8>,
}

impl Model {
    pub(super) const fn new(disk: Vec<u8>) -> Self {
        Self { disk }
    }

    /// Does one thing to both.
    pub(super) fn step(&mut self, disk: &dyn Disk, random: &mut Random) {
        let writer = disk.writer().unwrap();
        let (at, len) = random.range(self.disk.len() as u64);
        let expected = &mut self.disk[at as usize..][..len as usize];
        match random.below(10) {
            0..5 => {
                expected.fill(random.next() as u8 | 1);
                writer.write_at(expected, at).unwrap();
            }
            kind @ 5..8 => {
                expected.fill(0);
                writer.zero_at(len, at, kind > 5).unwrap();
            }
            8 => {
                let mut found = vec![0; len as usize];
                disk.read_at(&mut found, at).unwrap();
                assert!(found == expected, "{len} bytes at {at}");
            }
            _ => writer.flush().unwrap(),
        }
    }
}
