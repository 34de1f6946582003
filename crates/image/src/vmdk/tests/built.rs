//! Extents that are built by hand, as VMware and `VirtualBox` write them and QEMU does not.

use libdeflater::{CompressionLvl, Compressor};

pub(super) const SECTOR: usize = 512;
pub(super) const GRAIN: usize = 1 << 16;
/// Where the descriptor, the tables at the front, and the first grain stand.
pub(super) const DESCRIPTOR: usize = SECTOR;
pub(super) const FRONT: usize = 21 * SECTOR;
pub(super) const DATA: usize = 128 * SECTOR;
const GT: usize = 4 * SECTOR;

/// Where a stream has its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tables {
    /// Before the grains, as VMware's and QEMU's tools write them.
    Front,
    /// Behind them, with a footer, as who cannot seek writes them.
    End,
}

/// An extent, and where its parts stand.
#[derive(Debug, Clone)]
pub(super) struct Built {
    pub(super) file: Vec<u8>,
    /// The marker or the beginning of each grain, in the order of the file.
    pub(super) grains: Vec<usize>,
    pub(super) directory: usize,
    /// The grain tables in the disk's order, 0 for none.
    pub(super) tables: Vec<usize>,
    /// Where the footer stands, if there is one.
    pub(super) footer: usize,
}

impl Built {
    fn start(sectors: usize, compressed: bool, gd_at_end: bool) -> Self {
        let mut built = Self {
            file: vec![0; DATA],
            grains: Vec::new(),
            directory: FRONT,
            tables: Vec::new(),
            footer: 0,
        };
        built.put(0, b"KDMV");
        built.u32(4, if compressed { 3 } else { 1 });
        built.u32(8, if compressed { 0x3_0001 } else { 1 });
        built.u64(12, sectors as u64);
        built.u64(20, 128);
        built.u64(28, 1);
        built.u64(36, 20);
        built.u32(44, 512);
        built.u64(56, if gd_at_end { u64::MAX } else { 21 });
        built.u64(64, 128);
        built.put(73, b"\n \r\n");
        built.put(77, &[u8::from(compressed), 0]);
        built.describe(sectors, if compressed { "streamOptimized" } else { "monolithicSparse" });
        built
    }

    /// Writes the descriptor again.
    pub(super) fn describe(&mut self, sectors: usize, create_type: &str) {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
             createType=\"{create_type}\"\nRW {sectors} SPARSE \"disk.vmdk\"\n"
        );
        self.file[DESCRIPTOR..FRONT].fill(0);
        self.put(DESCRIPTOR, text.as_bytes());
    }

    /// A monolithic sparse extent of `disk` with the grains of `order`.
    pub(super) fn sparse(disk: &[u8], order: &[usize]) -> Self {
        let mut built = Self::start(disk.len() / SECTOR, false, false);
        for index in order {
            let at = built.file.len();
            let data = grain(disk, *index);
            built.file.extend(data);
            built.file.resize(at + GRAIN, 0);
            built.grains.push(at);
        }
        built.tables_at(FRONT, disk, order, |_, _, _| {});
        built
    }

    /// A stream of `disk` with the grains of `order`.
    pub(super) fn stream(disk: &[u8], order: &[usize], tables: Tables) -> Self {
        let mut built = Self::start(disk.len() / SECTOR, true, tables == Tables::End);
        for index in order {
            built.grains.push(built.file.len());
            built.grain(*index as u64 * 128, &pack(grain(disk, *index)));
        }
        if tables == Tables::Front {
            built.tables_at(FRONT, disk, order, |_, _, _| {});
        } else {
            let end = built.file.len() + SECTOR;
            built.tables_at(end, disk, order, Self::marker);
            built.footer();
        }
        built.file.extend([0; SECTOR]);
        built
    }

    /// Appends a grain with its marker.
    pub(super) fn grain(&mut self, sector: u64, packed: &[u8]) {
        self.file.extend(sector.to_le_bytes());
        self.file.extend((packed.len() as u32).to_le_bytes());
        self.file.extend(packed);
        self.file.resize(self.file.len().next_multiple_of(SECTOR), 0);
    }

    /// Writes the directory and then the tables that are needed, each behind what `marker` writes.
    fn tables_at(
        &mut self,
        begin: usize,
        disk: &[u8],
        order: &[usize],
        marker: impl Fn(&mut Self, usize, (u64, u32)),
    ) {
        let count = disk.len().div_ceil(512 * GRAIN);
        let len = (count * 4).next_multiple_of(SECTOR);
        self.directory = begin;
        marker(self, begin, ((len / SECTOR) as u64, 2));
        let mut at = begin + len;
        self.room(at);
        for table in 0..count {
            if order.iter().all(|index| index / 512 != table) {
                self.tables.push(0);
                continue;
            }
            if begin != FRONT {
                at += SECTOR;
            }
            marker(self, at, (4, 1));
            self.room(at + GT);
            self.u32(begin + table * 4, (at / SECTOR) as u32);
            self.tables.push(at);
            for (index, grain) in order.iter().zip(self.grains.clone()) {
                if index / 512 == table {
                    self.u32(at + index % 512 * 4, (grain / SECTOR) as u32);
                }
            }
            at += GT;
        }
    }

    /// Appends a footer and its marker.
    fn footer(&mut self) {
        let at = self.file.len() + SECTOR;
        self.marker(at, (1, 3));
        self.file.extend_from_within(..SECTOR);
        self.u64(at + 56, (self.directory / SECTOR) as u64);
        self.footer = at;
    }

    /// Writes the marker for what stands at `at`.
    fn marker(&mut self, at: usize, (value, kind): (u64, u32)) {
        self.room(at);
        self.u64(at - SECTOR, value);
        self.u32(at - SECTOR + 12, kind);
    }

    fn room(&mut self, len: usize) {
        self.file.resize(len.max(self.file.len()), 0);
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

fn grain(disk: &[u8], index: usize) -> &[u8] {
    let rest = &disk[index * GRAIN..];
    &rest[..rest.len().min(GRAIN)]
}

pub(super) fn pack(data: &[u8]) -> Vec<u8> {
    let mut compressor = Compressor::new(CompressionLvl::fastest());
    let mut packed = vec![0; compressor.zlib_compress_bound(data.len())];
    let len = compressor.zlib_compress(data, &mut packed).unwrap();
    packed.truncate(len);
    packed
}

/// A disk of `sectors`, of whose grains those of `order` are text.
pub(super) fn disk(sectors: usize, order: &[usize]) -> Vec<u8> {
    let mut disk = vec![0; sectors * SECTOR];
    for index in order {
        let text = format!("the text of grain {index}, ");
        let end = disk.len().min((index + 1) * GRAIN);
        let bytes = text.bytes().cycle();
        disk[index * GRAIN..end].iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
    disk
}
