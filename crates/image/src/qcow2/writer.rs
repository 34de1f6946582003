//! Writing a new image, from pieces that come in any order from several threads.
//!
//! The file begins with what the size of the disk decides: header, refcount table, L1 table. Then
//! come L2 tables and data clusters as they are needed, each table before the first cluster that
//! it names, and at the end the refcount blocks. The header is written last, so that a file
//! without the rest is no image.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::create::{CLUSTER_BITS, Layout, REFCOUNT_ORDER, block_entries, blocks_for};
use super::pack::{Gather, Packed, Packers};
use super::table::{COMPRESSED, COPIED};
use crate::{Body, Error, ErrorKind, Piece, Sink, WriteAt};

pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// How many entries an L2 table has, and how many bytes of the disk it maps.
const L2_ENTRIES: u64 = CLUSTER / 8;
const L2_COVERAGE: u64 = L2_ENTRIES * CLUSTER;
/// The map is kept in parts of this many entries: 1 KiB for 8 MiB of the disk.
const PART_ENTRIES: u64 = 128;
const PART_COVERAGE: u64 = PART_ENTRIES * CLUSTER;
/// How many parts the map may have: those of 4 TiB, in 512 MiB of memory and a little more.
const PARTS_MAX: usize = 1 << 19;
/// How many refcounts a block has.
const BLOCK_ENTRIES: u64 = block_entries(CLUSTER_BITS, REFCOUNT_ORDER);
/// "Compressed Clusters Descriptor": below this bit is the offset, above it how many sectors.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);

/// How an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriterOptions {
    /// How its clusters are compressed.
    pub compression: Compression,
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// Each by itself, as a zstd frame, where that saves space.
    Zstd,
}

/// An image that is being written. It takes pieces as a [`Sink`] until [`Writer::finish`].
///
/// The clusters are of 64 KiB. Zeros take no space. Compressed clusters are packed without gaps;
/// each is compressed by the thread that brings its last byte. Up to 32 MiB of clusters wait for
/// their other bytes; if there are more, the oldest are stored uncompressed.
///
/// The map is kept in memory: somewhat more than 1 KiB for each 8 MiB of the disk, aligned, that
/// hold any data; about 140 MiB for a full TiB. At 4 TiB, which take less than 600 MiB, it is
/// full, and [`Sink::put`] fails with [`ErrorKind::TooLarge`] as the cause.
#[derive(Debug)]
pub struct Writer<W> {
    target: W,
    layout: Layout,
    map: Mutex<Map>,
    packing: Option<Packing>,
}

/// What it takes to compress. The clusters are locked before the map.
#[derive(Debug, Default)]
struct Packing {
    packers: Packers,
    gather: Mutex<Gather>,
}

/// Which clusters have been given away.
#[derive(Debug)]
struct Map {
    /// The clusters of the L2 tables, by the tables' places in the L1 table.
    tables: BTreeMap<u64, u64>,
    /// The tables' entries, by the places of the parts on the disk.
    parts: BTreeMap<u64, Box<Part>>,
    parts_max: usize,
    /// The first cluster of the file that is free.
    next: u64,
    /// Where the next compressed cluster goes: behind the last one, in a cluster of the file that
    /// has room left, or at the beginning of a new one.
    packed_end: u64,
    /// The clusters of the file with compressed ones, and how many of those touch each.
    shared: Vec<(u64, u16)>,
}

type Part = [u64; PART_ENTRIES as usize];

impl Map {
    const fn new(next: u64) -> Self {
        Self {
            tables: BTreeMap::new(),
            parts: BTreeMap::new(),
            parts_max: PARTS_MAX,
            next,
            packed_end: 0,
            shared: Vec::new(),
        }
    }

    /// The L2 entry for `guest`, and the first free cluster of the file.
    fn entry(&mut self, guest: u64) -> Result<(&mut u64, &mut u64), Error> {
        let Self { tables, parts, parts_max, next, packed_end, .. } = self;
        let full = parts.len() >= *parts_max;
        let part = match parts.entry(guest / PART_COVERAGE) {
            Entry::Occupied(part) => part.into_mut(),
            Entry::Vacant(_) if full => {
                let most = (*parts_max as u64 * PART_COVERAGE) >> 20;
                let what = format!("the data to write touches more than {most} MiB of the disk");
                return Err(Error::new(ErrorKind::TooLarge, what));
            }
            Entry::Vacant(place) => {
                tables.entry(guest / L2_COVERAGE).or_insert_with(|| {
                    // What the table names comes behind it.
                    *packed_end = 0;
                    take(next)
                });
                place.insert(Box::new([0; PART_ENTRIES as usize]))
            }
        };
        Ok((&mut part[(guest % PART_COVERAGE / CLUSTER) as usize], next))
    }

    /// The cluster for `guest`, and whether it is new.
    fn cluster(&mut self, guest: u64) -> Result<(u64, bool), Error> {
        let (entry, next) = self.entry(guest)?;
        let new = *entry == 0;
        if new {
            *entry = (take(next) * CLUSTER) | COPIED;
        }
        Ok(((*entry & !COPIED) / CLUSTER, new))
    }

    /// True if `guest` has a cluster that is not compressed.
    fn is_plain(&self, guest: u64) -> bool {
        let part = self.parts.get(&(guest / PART_COVERAGE));
        part.is_some_and(|part| part[(guest % PART_COVERAGE / CLUSTER) as usize] & COPIED != 0)
    }

    /// The host offset for the `len` bytes, less than a cluster, of the compressed one for `guest`.
    fn pack(&mut self, guest: u64, len: u64) -> Result<u64, Error> {
        self.entry(guest)?;
        let room = self.packed_end.next_multiple_of(CLUSTER) - self.packed_end;
        // It may reach into the next cluster if that one is free.
        let follows = self.packed_end.next_multiple_of(CLUSTER) == self.next * CLUSTER;
        if self.packed_end == 0 || room < len && !follows {
            self.packed_end = self.next * CLUSTER;
        }
        let host = self.packed_end;
        self.packed_end += len;
        for cluster in host / CLUSTER..=(host + len - 1) / CLUSTER {
            match self.shared.last_mut() {
                // A compressed cluster has tens of bytes at least, so that these are few thousand.
                Some((last, count)) if *last == cluster => *count += 1,
                _ => {
                    self.shared.push((cluster, 1));
                    self.next = cluster + 1;
                }
            }
        }
        let sectors = (host + len - 1) / 512 - host / 512;
        *self.entry(guest)?.0 = COMPRESSED | sectors << SECTORS_SHIFT | host;
        Ok(host)
    }

    /// The L2 table at `index` of the L1 table.
    fn l2_table(&self, index: u64) -> Vec<u8> {
        let first = index * (L2_ENTRIES / PART_ENTRIES);
        let parts = first..first + L2_ENTRIES / PART_ENTRIES;
        words(parts.flat_map(|part| match self.parts.get(&part) {
            Some(part) => **part,
            None => [0; PART_ENTRIES as usize],
        }))
    }
}

/// Takes the next cluster.
const fn take(next: &mut u64) -> u64 {
    *next += 1;
    *next - 1
}

impl<W: WriteAt> Writer<W> {
    /// Begins an image of a disk of `virtual_size` bytes, rounded up to sectors, in an empty
    /// `target`, or one whose old contents do not matter.
    pub fn new(target: W, virtual_size: u64) -> io::Result<Self> {
        Self::with(target, virtual_size, WriterOptions::default())
    }

    /// As [`Writer::new`], with options.
    pub fn with(target: W, virtual_size: u64, options: WriterOptions) -> io::Result<Self> {
        let layout = Layout::new(virtual_size, CLUSTER_BITS)
            .map_err(|error| io::Error::new(io::ErrorKind::FileTooLarge, error))?;
        let first_free = layout.l1_offset / CLUSTER + layout.l1_clusters();
        // Until the header is there, what was in the target before must not pass for an image.
        target.zero_at(first_free * CLUSTER, 0)?;
        target.sync()?;
        let map = Mutex::new(Map::new(first_free));
        let packing = match options.compression {
            Compression::None => None,
            Compression::Zstd => Some(Packing::default()),
        };
        Ok(Self { target, layout, map, packing })
    }

    /// Writes what is left and the tables, and when all is durable the header.
    pub fn finish(&self) -> Result<(), Error> {
        self.write_rest().and_then(|()| self.write_tables()).map_err(Error::write)
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the clusters of which not every byte came.
    fn write_rest(&self) -> io::Result<()> {
        let Some(packing) = &self.packing else { return Ok(()) };
        while let Some((cluster, data)) = lock(&packing.gather).oldest(true) {
            if let Some(data) = data {
                self.pack(packing, &data, cluster * CLUSTER)?;
            }
        }
        Ok(())
    }

    fn write_tables(&self) -> io::Result<()> {
        let map = self.map();
        let mut l1 = vec![0; self.layout.l1_entries as usize];
        for (index, cluster) in &map.tables {
            l1[*index as usize] = (cluster * CLUSTER) | COPIED;
            self.target.write_all_at(&map.l2_table(*index), cluster * CLUSTER)?;
        }
        self.target.write_all_at(&words(l1), self.layout.l1_offset)?;
        self.write_refcounts(&map)?;
        self.target.sync()?;
        let header = self.layout.header(None, self.packing.is_some()).map_err(io::Error::other)?;
        self.target.write_all_at(&header, 0)?;
        self.target.sync()
    }

    /// Writes the refcount blocks behind the clusters, and the table that names them. Every cluster
    /// is used once, the blocks' own included, but for those that compressed ones share.
    fn write_refcounts(&self, map: &Map) -> io::Result<()> {
        let blocks = blocks_for(map.next, BLOCK_ENTRIES);
        let total = map.next + blocks;
        let mut shared = map.shared.iter().peekable();
        for index in 0..blocks {
            let first = index * BLOCK_ENTRIES;
            let ones = (total - first).min(BLOCK_ENTRIES) as usize;
            let mut block = [0, 1].repeat(ones);
            while let Some((cluster, count)) =
                shared.next_if(|(cluster, _)| *cluster < first + BLOCK_ENTRIES)
            {
                let at = (cluster - first) as usize * 2;
                block[at..at + 2].copy_from_slice(&count.to_be_bytes());
            }
            block.resize(CLUSTER as usize, 0);
            self.target.write_all_at(&block, (map.next + index) * CLUSTER)?;
        }
        let table = words((0..blocks).map(|index| (map.next + index) * CLUSTER));
        self.target.write_all_at(&table, self.layout.refcount_table_offset)
    }

    /// Stores `data`, which lies within one cluster.
    fn put_in_cluster(&self, data: &[u8], guest: u64) -> io::Result<()> {
        let mut map = self.map();
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

    /// Stores a whole cluster, compressed if that saves space.
    fn pack(&self, packing: &Packing, cluster: &[u8], guest: u64) -> io::Result<()> {
        packing.packers.pack(cluster, |packed| match packed {
            Packed::Zero => Ok(()),
            Packed::Plain => self.put_in_cluster(cluster, guest),
            Packed::Smaller(packed) => {
                let host = self.map().pack(guest, packed.len() as u64).map_err(io::Error::other)?;
                self.target.write_all_at(packed, host)
            }
        })
    }

    /// Stores a part of one cluster: `len` bytes, `data` or zeros. It waits for the others.
    fn gather(
        &self,
        packing: &Packing,
        data: Option<&[u8]>,
        len: u64,
        guest: u64,
    ) -> io::Result<()> {
        let (cluster, skip) = (guest / CLUSTER, guest % CLUSTER);
        let size = CLUSTER.min(self.layout.virtual_size - cluster * CLUSTER);
        let mut gather = lock(&packing.gather);
        if !gather.has(cluster) {
            if let Some(data) = data.filter(|data| data.len() as u64 == CLUSTER) {
                drop(gather);
                return self.pack(packing, data, guest);
            }
            if self.map().is_plain(guest) {
                drop(gather);
                return data.map_or(Ok(()), |data| self.put_in_cluster(data, guest));
            }
        }
        if let Some(whole) = gather.add(cluster, size, skip as usize, len, data) {
            drop(gather);
            return self.pack(packing, &whole, cluster * CLUSTER);
        }
        if let Some((cluster, Some(data))) = gather.oldest(false) {
            // The lock is kept, so that what comes for the cluster finds it in its place.
            self.put_in_cluster(&data, cluster * CLUSTER)?;
        }
        Ok(())
    }

    fn put_part(&self, data: Option<&[u8]>, len: u64, guest: u64) -> io::Result<()> {
        match (&self.packing, data) {
            (Some(packing), _) => self.gather(packing, data, len, guest),
            (None, Some(data)) => self.put_in_cluster(data, guest),
            (None, None) => Ok(()),
        }
    }
}

fn lock(gather: &Mutex<Gather>) -> MutexGuard<'_, Gather> {
    gather.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: WriteAt> Sink for Writer<W> {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        let (data, len) = match piece.body {
            Body::Data(data) => (Some(data), data.len() as u64),
            Body::Zero(_) if self.packing.is_none() => return Ok(()),
            Body::Zero(len) => (None, len),
        };
        let mut guest = piece.offset;
        let end = guest.checked_add(len).filter(|end| *end <= self.layout.virtual_size);
        let Some(end) = end else {
            let what = format!("a piece at {guest} is not on the disk");
            return Err(io::Error::other(Error::new(ErrorKind::OutOfRange, what)));
        };
        while guest < end {
            let len = (end - guest).min(CLUSTER - guest % CLUSTER);
            if data.is_none() && len == CLUSTER {
                // Clusters of zeros need not be told.
                guest = end - end % CLUSTER;
                continue;
            }
            let begin = (guest - piece.offset) as usize;
            self.put_part(data.map(|data| &data[begin..begin + len as usize]), len, guest)?;
            guest += len;
        }
        Ok(())
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
        assert_eq!(PARTS_MAX * size_of::<Part>(), 512 << 20);
    }
}
