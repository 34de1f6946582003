//! Counts every reference of an image and compares with what the image itself counts: what
//! `qemu-img check` does, for images in memory. Shares no code with what it checks.

use std::collections::BTreeMap;

/// What the walk found besides corruption, at which it panics.
#[derive(Debug)]
pub(super) struct Found {
    /// How many clusters are counted more often than they are used.
    pub(super) leaks: u64,
}

struct Walk<'a> {
    file: &'a [u8],
    bits: u32,
    used: BTreeMap<u64, u64>,
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl Walk<'_> {
    fn number(&self, at: u64, len: usize) -> u64 {
        let bytes = self.file.get(at as usize..at as usize + len).unwrap_or_else(|| {
            panic!("{len} bytes at {at:#x} are beyond the file of {:#x}", self.file.len())
        });
        bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn bytes(&mut self, at: u64, len: u64) {
        if len > 0 {
            for cluster in at >> self.bits..=(at + len - 1) >> self.bits {
                *self.used.entry(cluster).or_default() += 1;
            }
        }
    }

    fn cluster(&mut self, at: u64) {
        assert_eq!(at % (1 << self.bits), 0, "{at:#x} is on a cluster");
        assert!(at < self.file.len() as u64, "{at:#x} is in the file");
        self.bytes(at, 1);
    }

    /// Counts what an L1 table refers to. Returns the entries with a host offset, and whether they
    /// say that nothing else refers to it.
    fn l1(&mut self, at: u64, entries: u64) -> Vec<(u64, bool)> {
        self.bytes(at, entries * 8);
        let mut hosts = Vec::new();
        for index in 0..entries {
            let entry = self.number(at + index * 8, 8);
            let l2 = entry & OFFSET;
            if l2 == 0 {
                continue;
            }
            self.cluster(l2);
            hosts.push((l2 >> self.bits, entry >> 63 == 1));
            for offset in (0..1 << self.bits).step_by(8) {
                let entry = self.number(l2 + offset, 8);
                if entry >> 62 & 1 == 1 {
                    let shift = 62 - (self.bits - 8);
                    let host = entry & ((1 << shift) - 1);
                    let sectors = (entry & ((1 << 62) - 1)) >> shift;
                    self.bytes(host, (sectors + 1) * 512 - host % 512);
                } else if entry & OFFSET != 0 {
                    self.cluster(entry & OFFSET);
                    hosts.push(((entry & OFFSET) >> self.bits, entry >> 63 == 1));
                }
            }
        }
        hosts
    }

    fn snapshots(&mut self) {
        let begin = self.number(64, 8);
        let mut at = begin;
        for _ in 0..self.number(60, 4) {
            self.l1(self.number(at, 8), self.number(at + 8, 4));
            let names = self.number(at + 12, 2) + self.number(at + 14, 2);
            at += (40 + self.number(at + 36, 4) + names).next_multiple_of(8);
        }
        self.bytes(begin, at - begin);
    }
}

/// Panics if the image is corrupt.
pub(super) fn walk(file: &[u8]) -> Found {
    let mut walk = Walk { file, bits: 0, used: BTreeMap::new() };
    walk.bits = walk.number(20, 4) as u32;
    walk.bytes(0, 1);
    let (table, table_len) = (walk.number(48, 8), walk.number(56, 4) << walk.bits);
    walk.bytes(table, table_len);
    let hosts = walk.l1(walk.number(40, 8), walk.number(36, 4));
    walk.snapshots();
    let order = if walk.number(4, 4) == 2 { 4 } else { walk.number(96, 4) as u32 };
    let width = 1_u64 << order;
    let per_block = (8 << walk.bits) / width;
    let mut counted = BTreeMap::new();
    for index in 0..table_len / 8 {
        let block = walk.number(table + index * 8, 8);
        if block == 0 {
            continue;
        }
        walk.cluster(block);
        for entry in 0..per_block {
            let count = if width < 8 {
                let bit = entry * width;
                walk.number(block + bit / 8, 1) >> (bit % 8) & ((1 << width) - 1)
            } else {
                walk.number(block + entry * width / 8, width as usize / 8)
            };
            if count > 0 {
                counted.insert(index * per_block + entry, count);
            }
        }
    }
    let count = |cluster: &u64| counted.get(cluster).copied().unwrap_or(0);
    for (cluster, used) in &walk.used {
        let count = count(cluster);
        assert!(count >= *used, "cluster {cluster} is used {used} times and counted {count}");
    }
    for (cluster, own) in &hosts {
        assert_eq!(count(cluster) == 1, *own, "whether cluster {cluster} has one user");
    }
    let used = |cluster| walk.used.get(cluster).copied().unwrap_or(0);
    let leaks = counted.iter().filter(|(cluster, count)| **count > used(cluster)).count();
    Found { leaks: leaks as u64 }
}
