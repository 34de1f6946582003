//! Writing a new image, from pieces that come in any order from several threads.
//!
//! The file begins with what the size of the disk decides: header, L1 table, refcount table. Then
//! come L2 tables and data clusters as they are needed, each table before the first cluster that
//! it names, and at the end the refcount blocks. The header is written last, so that a file
//! without the rest is no image.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::table::COPIED;
use crate::raw::round_up;
use crate::{Body, Error, ErrorKind, Piece, Sink, WriteAt};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// How many entries an L2 table has, and how many bytes of the disk it maps.
const L2_ENTRIES: u64 = CLUSTER / 8;
const L2_COVERAGE: u64 = L2_ENTRIES * CLUSTER;
/// The map is kept in parts of this many entries: 512 bytes for 8 MiB of the disk.
const PART_ENTRIES: u64 = 128;
const PART_COVERAGE: u64 = PART_ENTRIES * CLUSTER;
/// How many parts the map may have: those of 4 TiB, in 256 MiB of memory and a little more.
const PARTS_MAX: usize = 1 << 19;
/// How many refcounts of 16 bits a block has.
const BLOCK_ENTRIES: u64 = CLUSTER / 2;
/// What an L1 table of 32 MiB, QEMU's limit, maps.
const SIZE_MAX: u64 = super::header::L1_BYTES_MAX / 8 * L2_COVERAGE;

/// "Header" of version 3, without optional fields.
const HEADER_LEN: usize = 104;

/// An image that is being written. It takes pieces as a [`Sink`] until [`Writer::finish`].
///
/// The clusters are of 64 KiB and not compressed. Zeros take no space.
///
/// The map is kept in memory: somewhat more than 512 bytes for each 8 MiB of the disk, aligned,
/// that hold any data; about 70 MiB for a full TiB. At 4 TiB, which take less than 320 MiB, it is
/// full, and [`Sink::put`] fails with [`ErrorKind::TooLarge`] as the cause.
#[derive(Debug)]
pub struct Writer<W> {
    target: W,
    layout: Layout,
    map: Mutex<Map>,
}

/// What the disk's size decides.
#[derive(Debug)]
struct Layout {
    virtual_size: u64,
    l1_entries: u64,
    l1_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u64,
}

/// Which clusters have been given away.
#[derive(Debug)]
struct Map {
    /// The clusters of the L2 tables, by the tables' places in the L1 table.
    tables: BTreeMap<u64, u32>,
    /// The clusters that they name, 0 for none, by the places of the parts on the disk.
    parts: BTreeMap<u64, Box<Part>>,
    parts_max: usize,
    /// The first cluster of the file that is free.
    next: u64,
}

type Part = [u32; PART_ENTRIES as usize];

impl Layout {
    /// Lays out a disk of `virtual_size` bytes.
    fn new(virtual_size: u64) -> Self {
        let l1_entries = virtual_size.div_ceil(L2_COVERAGE);
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER);
        // If every cluster is used: data, tables, and blocks for all of them.
        let most = virtual_size.div_ceil(CLUSTER) + l1_entries + l1_clusters + 2;
        let blocks = most.div_ceil(BLOCK_ENTRIES - 2) + 1;
        Self {
            virtual_size,
            l1_entries,
            l1_offset: CLUSTER,
            refcount_table_offset: (1 + l1_clusters) * CLUSTER,
            refcount_table_clusters: (blocks * 8).div_ceil(CLUSTER),
        }
    }

    /// The first cluster behind the fixed tables.
    const fn first_free(&self) -> u64 {
        self.refcount_table_offset / CLUSTER + self.refcount_table_clusters
    }

    fn header(&self) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER_LEN + 8);
        let mut u32 = |value: u32| header.extend(value.to_be_bytes());
        u32(0x5146_49fb);
        u32(3);
        [0, 0, 0].into_iter().for_each(&mut u32); // No backing file.
        u32(CLUSTER_BITS);
        let mut u64 = |value: u64| {
            u32((value >> 32) as u32);
            u32(value as u32);
        };
        u64(self.virtual_size);
        u64(self.l1_entries); // No encryption, and the L1 table's size.
        u64(self.l1_offset);
        u64(self.refcount_table_offset);
        u64(self.refcount_table_clusters << 32); // And no snapshots.
        u64(0); // The snapshot table's offset.
        [0, 0, 0].into_iter().for_each(&mut u64); // No features.
        u64(4 << 32 | HEADER_LEN as u64); // Refcounts of 2^4 bits, and the header's length.
        u64(0); // The end of the header extensions.
        header
    }
}

impl Map {
    const fn new(next: u64) -> Self {
        Self { tables: BTreeMap::new(), parts: BTreeMap::new(), parts_max: PARTS_MAX, next }
    }

    /// The cluster for `guest`, and whether it is new.
    fn cluster(&mut self, guest: u64) -> Result<(u64, bool), Error> {
        let Self { tables, parts, parts_max, next } = self;
        let full = parts.len() >= *parts_max;
        let mut take = || {
            *next += 1;
            u32::try_from(*next - 1).expect("the map is full long before 2^32 clusters")
        };
        let part = match parts.entry(guest / PART_COVERAGE) {
            Entry::Occupied(part) => part.into_mut(),
            Entry::Vacant(_) if full => {
                let most = (*parts_max as u64 * PART_COVERAGE) >> 20;
                let what = format!("the data to write touches more than {most} MiB of the disk");
                return Err(Error::new(ErrorKind::TooLarge, what));
            }
            Entry::Vacant(place) => {
                tables.entry(guest / L2_COVERAGE).or_insert_with(&mut take);
                place.insert(Box::new([0; PART_ENTRIES as usize]))
            }
        };
        let entry = &mut part[(guest % PART_COVERAGE / CLUSTER) as usize];
        let new = *entry == 0;
        if new {
            *entry = take();
        }
        Ok((u64::from(*entry), new))
    }

    /// The L2 table at `index` of the L1 table.
    fn l2_table(&self, index: u64) -> Vec<u8> {
        let first = index * (L2_ENTRIES / PART_ENTRIES);
        let parts = first..first + L2_ENTRIES / PART_ENTRIES;
        words(parts.flat_map(|part| match self.parts.get(&part) {
            Some(part) => part.map(entry),
            None => [0; PART_ENTRIES as usize],
        }))
    }
}

impl<W: WriteAt> Writer<W> {
    /// Begins an image of a disk of `virtual_size` bytes, rounded up to sectors, in an empty
    /// `target`, or one whose old contents do not matter.
    pub fn new(target: W, virtual_size: u64) -> io::Result<Self> {
        let virtual_size = round_up(virtual_size);
        if virtual_size > SIZE_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let layout = Layout::new(virtual_size);
        // Until the header is there, what was in the target before must not pass for an image.
        target.zero_at(layout.first_free() * CLUSTER, 0)?;
        let map = Map::new(layout.first_free());
        Ok(Self { target, layout, map: Mutex::new(map) })
    }

    /// Writes the tables, and when all is durable the header.
    pub fn finish(&self) -> Result<(), Error> {
        self.write_tables().map_err(Error::write)
    }

    fn write_tables(&self) -> io::Result<()> {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let mut l1 = vec![0; self.layout.l1_entries as usize];
        for (index, cluster) in &map.tables {
            l1[*index as usize] = entry(*cluster);
            self.target.write_all_at(&map.l2_table(*index), u64::from(*cluster) * CLUSTER)?;
        }
        self.target.write_all_at(&words(l1), self.layout.l1_offset)?;
        self.write_refcounts(map.next)?;
        self.target.sync()?;
        self.target.write_all_at(&self.layout.header(), 0)?;
        self.target.sync()
    }

    /// Writes the refcount blocks behind the `used` clusters, and the table that names them. Every
    /// cluster is used once, the blocks' own included.
    fn write_refcounts(&self, used: u64) -> io::Result<()> {
        let mut blocks = 0;
        while blocks * BLOCK_ENTRIES < used + blocks {
            blocks += 1;
        }
        let total = used + blocks;
        for index in 0..blocks {
            let ones = (total - index * BLOCK_ENTRIES).min(BLOCK_ENTRIES) as usize;
            let mut block = [0, 1].repeat(ones);
            block.resize(CLUSTER as usize, 0);
            self.target.write_all_at(&block, (used + index) * CLUSTER)?;
        }
        let table = words((0..blocks).map(|index| (used + index) * CLUSTER));
        self.target.write_all_at(&table, self.layout.refcount_table_offset)
    }

    /// Stores `data`, which lies within one cluster.
    fn put_in_cluster(&self, data: &[u8], guest: u64) -> io::Result<()> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let (cluster, new) = map.cluster(guest).map_err(io::Error::other)?;
        let (begin, skip) = (cluster * CLUSTER, guest % CLUSTER);
        if new {
            // The lock is kept, so that no other piece of the cluster comes before its zeros.
            let end = skip + data.len() as u64;
            self.target.zero_at(skip, begin)?;
            self.target.zero_at(CLUSTER - end, begin + end)?;
        }
        drop(map);
        self.target.write_all_at(data, begin + skip)
    }
}

impl<W: WriteAt> Sink for Writer<W> {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        let Body::Data(mut data) = piece.body else { return Ok(()) };
        let mut guest = piece.offset;
        if guest.checked_add(data.len() as u64).is_none_or(|end| end > self.layout.virtual_size) {
            let what = format!("a piece at {guest} is not on the disk");
            return Err(io::Error::other(Error::new(ErrorKind::OutOfRange, what)));
        }
        while !data.is_empty() {
            let len = data.len().min((CLUSTER - guest % CLUSTER) as usize);
            let (part, rest) = data.split_at(len);
            self.put_in_cluster(part, guest)?;
            guest += len as u64;
            data = rest;
        }
        Ok(())
    }
}

/// The entry of an L1 or L2 table that names `cluster`, if that is not 0.
const fn entry(cluster: u32) -> u64 {
    match cluster {
        0 => 0,
        cluster => (cluster as u64 * CLUSTER) | COPIED,
    }
}

/// Numbers as a table has them.
fn words(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(u64::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_takes_no_new_part_but_fills_those_it_has() {
        let mut map = Map { parts_max: 3, ..Map::new(4) };
        // The first two have one L2 table.
        assert_eq!(map.cluster(0).unwrap(), (5, true));
        assert_eq!(map.cluster(PART_COVERAGE).unwrap(), (6, true));
        assert_eq!(map.cluster(7 * L2_COVERAGE).unwrap(), (8, true));
        let error = map.cluster(2 * PART_COVERAGE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(error.to_string(), "the data to write touches more than 24 MiB of the disk");
        assert_eq!(map.cluster(CLUSTER).unwrap(), (9, true));
        assert_eq!(map.cluster(CLUSTER + 1).unwrap(), (9, false));
        assert_eq!(map.next, 10);
    }

    #[test]
    fn a_disk_beyond_the_map_is_refused_by_name() {
        let target = crate::raw::FileAt::new(tempfile::tempfile().unwrap()).unwrap();
        let writer = Writer::new(target, 1 << 40).unwrap();
        writer.map.lock().unwrap().parts_max = 1;
        let put = |offset| writer.put(Piece { offset, body: Body::Data(&[1]) });
        put(PART_COVERAGE).unwrap();
        let error = Error::write(put(0).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        put(2 * PART_COVERAGE - 1).unwrap();
    }

    #[test]
    fn the_map_is_as_small_as_it_says() {
        let most = PARTS_MAX as u64 * PART_COVERAGE;
        assert_eq!(most, 4 << 40);
        assert_eq!(PARTS_MAX * size_of::<Part>(), 256 << 20);
        // Clusters of data, a table for each, and the fixed tables are numbers of 32 bits.
        let tables = most / CLUSTER + PARTS_MAX as u64 + Layout::new(SIZE_MAX).first_free();
        assert!(tables < 1 << 32);
    }
}
