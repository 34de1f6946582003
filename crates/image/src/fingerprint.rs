//! A digest of a disk's content that does not depend on how the disk is stored, nor on the order in
//! which its pieces come.
//!
//! The disk is cut into blocks of [`BLOCK`] bytes, the last of them filled up with zeros. A block of
//! nothing but zeros counts for nothing, so that holes cost nothing. Every other one is hashed, with its
//! number behind it, to [`LANES`] numbers of 16 bits, and these are summed up over all blocks, each
//! modulo 2^16. This is LtHash (Bellare and Micciancio 1997, "A New Paradigm for Collision-Free
//! Hashing: Incrementality at Reduced Cost"), with the parameters of Lewi et al. 2019, "Securing Update
//! Propagation with Homomorphic Hashing", and BLAKE3 as the hash of a block. The fingerprint is the
//! BLAKE3 of [`DOMAIN`], the disk's size, and the sums, all in little-endian order.
//!
//! A [`Collector`] makes it on the way: pieces that hold whole blocks are hashed where they are. Parts
//! of blocks are put together in a few MiB of memory; a block that does not fit is read again from
//! where the disk was stored. [`Fingerprint::of`] makes it of any disk.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Body, Disk, Error, ErrorKind, Piece, ReadAt, Sink, copy, zero};

/// The length of a block, in bytes.
pub const BLOCK: usize = 64 << 10;
/// How many sums there are: lthash16 with a security of over 200 bits.
pub const LANES: usize = 1024;
/// What stands before everything else in the last hash.
pub const DOMAIN: &[u8] = b"bootyard disk fingerprint v1\0";
/// What stands before the colon.
const NAME: &str = "lthash-blake3";
/// How many blocks are put together at a time: 4 MiB. Where pieces come in the disk's order there is
/// about one for each thread.
const PARTIAL_MAX: usize = (4 << 20) / BLOCK;
/// How many runs of blocks that are to be read again are kept apart. Where there are more, it is less
/// work to read the whole disk.
const AGAIN_MAX: usize = 1 << 14;

/// The content of a disk, as `lthash-blake3:HEX`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Reads all data of `disk` in `workers` threads; what is known to be zeros is not read.
    pub fn of(disk: &dyn Disk, workers: NonZeroUsize) -> Result<Self, Error> {
        let collector = Collector::new();
        copy(disk, &collector, workers)?;
        collector.finish(disk.virtual_size(), Some(&Whole(disk)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Why a text is not a fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected `{NAME}:` and 64 hexadecimal digits, got `{0}`")]
pub struct ParseFingerprintError(String);

impl FromStr for Fingerprint {
    type Err = ParseFingerprintError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let digits = text.strip_prefix(NAME)?.strip_prefix(':')?.as_bytes();
            let mut bytes = [0; 32];
            let pairs = digits.chunks_exact(2);
            if digits.len() != bytes.len() * 2 {
                return None;
            }
            for (byte, pair) in bytes.iter_mut().zip(pairs) {
                let digit = |at: usize| char::from(pair[at]).to_digit(16);
                *byte = (digit(0)? << 4 | digit(1)?) as u8;
            }
            Some(Self(bytes))
        };
        parse().ok_or_else(|| ParseFingerprintError(text.to_owned()))
    }
}

/// Makes a [`Fingerprint`] of the pieces of a disk as they pass.
///
/// They may come in any order and from several threads, but each byte of the disk once, as a
/// [`Sink`]'s do. As a `Sink` of its own it never fails.
#[derive(Debug)]
pub struct Collector {
    sums: Mutex<Sums>,
    partial: Mutex<Partial>,
    /// How many bytes have passed.
    passed: AtomicU64,
}

impl Collector {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self {
            sums: Mutex::new(Sums([0; LANES])),
            partial: Mutex::new(Partial::default()),
            passed: AtomicU64::new(0),
        }
    }

    /// Takes note of a piece. Whole blocks of it are hashed by the calling thread.
    pub fn put(&self, piece: &Piece<'_>) {
        let begin = piece.offset;
        let len = match piece.body {
            Body::Data(data) => {
                let mut sums = Sums([0; LANES]);
                let mut at = 0;
                while at < data.len() {
                    let (block, within) = place(begin + at as u64);
                    let len = (BLOCK - within).min(data.len() - at);
                    let part = &data[at..at + len];
                    if len == BLOCK {
                        sums.add_block(block, part);
                    } else {
                        self.part(block, within, len, Some(part));
                    }
                    at += len;
                }
                lock(&self.sums).add(&sums);
                data.len() as u64
            }
            Body::Zero(len) => {
                self.zeros(begin, begin + len);
                len
            }
        };
        self.passed.fetch_add(len, Ordering::Relaxed);
    }

    /// Whole blocks of zeros are nothing; parts of blocks at both ends may make one whole.
    fn zeros(&self, begin: u64, end: u64) {
        let (first, last) = (place(begin), place(end));
        if first.0 == last.0 {
            return self.part(first.0, first.1, last.1 - first.1, None);
        }
        if first.1 > 0 {
            self.part(first.0, first.1, BLOCK - first.1, None);
        }
        self.part(last.0, 0, last.1, None);
    }

    /// Takes `len` bytes at `within` of a block, zeros without `data`.
    fn part(&self, block: u64, within: usize, len: usize, data: Option<&[u8]>) {
        if len == 0 {
            return;
        }
        let whole = lock(&self.partial).take(block, within, len, data);
        if let Some(bytes) = whole {
            self.add_block(block, &bytes);
        }
    }

    fn add_block(&self, block: u64, bytes: &[u8]) {
        let mut sums = Sums([0; LANES]);
        sums.add_block(block, bytes);
        lock(&self.sums).add(&sums);
    }

    /// The fingerprint of the disk of `virtual_size` bytes, all of which has passed.
    ///
    /// `stored` is where the disk is stored by now. It is read if parts of blocks have come so far
    /// apart from each other that they could not be kept. Fails with [`ErrorKind::Mismatch`] if there
    /// are such blocks and it is not given, and if more or less than the disk has passed.
    pub fn finish(
        self,
        virtual_size: u64,
        stored: Option<&dyn ReadAt>,
    ) -> Result<Fingerprint, Error> {
        let passed = self.passed.into_inner();
        if passed != virtual_size {
            let what = format!("expected {virtual_size} bytes of the disk to pass, got {passed}");
            return Err(Error::new(ErrorKind::Mismatch, what));
        }
        let mut sums = self.sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut partial = self.partial.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (last, last_len) = place(virtual_size);
        for (block, part) in std::mem::take(&mut partial.blocks) {
            match part.bytes {
                Some(bytes) if block == last && part.filled == last_len => {
                    sums.add_block(block, &bytes);
                }
                None if block == last && part.filled == last_len => {}
                _ => partial.again(block),
            }
        }
        if partial.all {
            sums = Sums([0; LANES]);
            partial.again = BTreeMap::from([(0, virtual_size.div_ceil(BLOCK as u64))]);
        }
        for (first, end) in partial.again {
            let stored = stored.ok_or_else(|| {
                let what = "the disk has come in too small pieces for its fingerprint, and cannot \
                            be read again";
                Error::new(ErrorKind::Mismatch, what)
            })?;
            for block in first..end {
                sums.add_stored(block, virtual_size, stored)?;
            }
        }
        Ok(sums.finish(virtual_size))
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink for Collector {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        Self::put(self, &piece);
        Ok(())
    }
}

/// The block in which an offset is, and where in it.
const fn place(offset: u64) -> (u64, usize) {
    (offset / BLOCK as u64, (offset % BLOCK as u64) as usize)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The blocks of which only parts have come.
#[derive(Debug, Default)]
struct Partial {
    blocks: BTreeMap<u64, Part>,
    /// How many blocks were ever begun.
    begun: u64,
    /// Runs of blocks that are to be read again: each first one, and the one behind the last.
    again: BTreeMap<u64, u64>,
    /// There were too many such runs: everything is.
    all: bool,
}

#[derive(Debug)]
struct Part {
    /// When it was begun, in numbers of blocks.
    age: u64,
    filled: usize,
    /// `None` while all of it is zeros.
    bytes: Option<Vec<u8>>,
}

impl Partial {
    /// Takes part of a block. Gives the block if it is whole by that and not all zeros.
    fn take(
        &mut self,
        block: u64,
        within: usize,
        len: usize,
        data: Option<&[u8]>,
    ) -> Option<Vec<u8>> {
        let before = self.again.range(..=block).next_back();
        if self.all || before.is_some_and(|(_, end)| block < *end) {
            return None;
        }
        if self.blocks.len() == PARTIAL_MAX && !self.blocks.contains_key(&block) {
            let (oldest, _) = self.blocks.iter().min_by_key(|(_, part)| part.age)?;
            let oldest = *oldest;
            self.blocks.remove(&oldest);
            self.again(oldest);
        }
        let part = self.blocks.entry(block).or_insert_with(|| {
            self.begun += 1;
            Part { age: self.begun, filled: 0, bytes: None }
        });
        if let Some(data) = data {
            let bytes = part.bytes.get_or_insert_with(|| vec![0; BLOCK]);
            bytes[within..within + len].copy_from_slice(data);
        }
        part.filled += len;
        debug_assert!(part.filled <= BLOCK, "a part of block {block} has come twice");
        if part.filled < BLOCK { None } else { self.blocks.remove(&block)?.bytes }
    }

    /// Notes that a block is to be read again.
    fn again(&mut self, block: u64) {
        if self.all {
            return;
        }
        let end = self.again.remove(&(block + 1)).unwrap_or(block + 1);
        match self.again.range_mut(..block).next_back() {
            Some((_, before)) if *before == block => *before = end,
            _ => {
                self.again.insert(block, end);
            }
        }
        if self.again.len() > AGAIN_MAX {
            self.all = true;
            self.again.clear();
            self.blocks.clear();
        }
    }
}

/// What is summed up.
#[derive(Clone)]
struct Sums([u16; LANES]);

impl Sums {
    fn add(&mut self, other: &Self) {
        for (sum, other) in self.0.iter_mut().zip(&other.0) {
            *sum = sum.wrapping_add(*other);
        }
    }

    fn add_block(&mut self, block: u64, bytes: &[u8]) {
        if zero::is_zero(bytes) {
            return;
        }
        let mut hasher = blake3::Hasher::new();
        // Its own 1 KiB chunks begin where the hash's do, which is what makes it fast.
        hasher.update(bytes);
        hasher.update(&block.to_le_bytes());
        let mut lanes = [0; LANES * 2];
        hasher.finalize_xof().fill(&mut lanes);
        for (sum, lane) in self.0.iter_mut().zip(lanes.chunks_exact(2)) {
            *sum = sum.wrapping_add(u16::from_le_bytes([lane[0], lane[1]]));
        }
    }

    fn add_stored(
        &mut self,
        block: u64,
        virtual_size: u64,
        stored: &dyn ReadAt,
    ) -> Result<(), Error> {
        let offset = block * BLOCK as u64;
        let mut bytes = vec![0; BLOCK];
        let len = (virtual_size - offset).min(BLOCK as u64) as usize;
        stored
            .read_exact_at(&mut bytes[..len], offset)
            .map_err(|error| Error::read(error, offset))?;
        self.add_block(block, &bytes);
        Ok(())
    }

    fn finish(&self, virtual_size: u64) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(&virtual_size.to_le_bytes());
        for sum in self.0 {
            hasher.update(&sum.to_le_bytes());
        }
        Fingerprint(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sums").finish_non_exhaustive()
    }
}

/// A disk as something to read from.
struct Whole<'a>(&'a dyn Disk);

impl ReadAt for Whole<'_> {
    fn len(&self) -> u64 {
        self.0.virtual_size()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use bootyard_testkit::{pseudo_random, qemu_img, require_tool};
    use proptest::prelude::*;

    use super::*;
    use crate::raw::RawDisk;
    use crate::support::push;

    const WORKERS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

    /// Blocks of noise, of zeros and of a little data, and a short one.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 9 * BLOCK + 1536];
        disk[..3 * BLOCK].copy_from_slice(&pseudo_random(3 * BLOCK, 5));
        disk[5 * BLOCK + 700] = 1;
        disk[8 * BLOCK - 1] = 2;
        disk[9 * BLOCK..][..9].fill(3);
        disk
    }

    fn of(disk: &[u8]) -> Fingerprint {
        Fingerprint::of(&RawDisk::read_only(disk.to_vec()), WORKERS).unwrap()
    }

    /// The definition, word for word.
    fn defined(disk: &[u8]) -> String {
        let mut state = vec![0_u16; 1024];
        for (index, block) in disk.chunks(65_536).enumerate() {
            let mut block = block.to_vec();
            block.resize(65_536, 0);
            if block == [0; 65_536] {
                continue;
            }
            let mut lanes = [0; 2048];
            let input = [&block[..], &(index as u64).to_le_bytes()].concat();
            blake3::Hasher::new().update(&input).finalize_xof().fill(&mut lanes);
            for lane in 0..1024 {
                let number = u16::from_le_bytes([lanes[2 * lane], lanes[2 * lane + 1]]);
                state[lane] = state[lane].wrapping_add(number);
            }
        }
        let mut all = b"bootyard disk fingerprint v1\0".to_vec();
        all.extend((disk.len() as u64).to_le_bytes());
        all.extend(state.iter().flat_map(|lane| lane.to_le_bytes()));
        format!("lthash-blake3:{}", blake3::hash(&all).to_hex())
    }

    #[test]
    fn it_is_what_its_definition_says() {
        for disk in [&disk()[..], &[], &[0; 4096], &[7; 512], &disk()[..2 * BLOCK]] {
            assert_eq!(of(disk).to_string(), defined(disk));
        }
        // Pinned: volumes carry it.
        assert_eq!(
            of(&[7; 512]).to_string(),
            "lthash-blake3:4706c855bead81809cb0d48ffa4f9beb134e806739be73c652376ef979611b3e"
        );
    }

    #[test]
    fn it_is_read_back_from_its_text() {
        let fingerprint = of(&disk());
        let text = fingerprint.to_string();
        assert_eq!(text.parse(), Ok(fingerprint));
        for bad in ["", "sha256:00", &text[1..], &text[..77], &text.replace(':', ":g")[..78]] {
            let error = bad.parse::<Fingerprint>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("got `{bad}`")), "{error}");
        }
    }

    #[test]
    fn any_difference_makes_another() {
        let disk = disk();
        let same = of(&disk);
        for at in [0, 3 * BLOCK - 1, 4 * BLOCK, 5 * BLOCK + 700, disk.len() - 1] {
            let mut other = disk.clone();
            other[at] ^= 0x40;
            assert_ne!(of(&other), same, "bit at {at}");
        }
        let swapped = [&disk[BLOCK..2 * BLOCK], &disk[..BLOCK], &disk[2 * BLOCK..]].concat();
        assert_ne!(of(&swapped), same);
        assert_ne!(of(&[&disk[..], &[0; 512]].concat()), same);
        assert_ne!(of(&[&[0; BLOCK], &disk[..]].concat()), same);
    }

    /// Pieces of `disk`, cut at `cuts` and in the order of `keys`, by as many threads as they like.
    fn collect(disk: &[u8], cuts: &[usize], keys: &[u32]) -> Collector {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % disk.len()).collect();
        cuts.extend([0, disk.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut keys = keys.iter().cycle();
        let mut pieces: Vec<_> =
            cuts.windows(2).map(|cut| (keys.next(), cut[0], &disk[cut[0]..cut[1]])).collect();
        pieces.sort_by_key(|(key, ..)| *key);
        let collector = Collector::new();
        std::thread::scope(|scope| {
            for half in pieces.chunks(pieces.len().div_ceil(2)) {
                let collector = &collector;
                scope.spawn(move || {
                    for (_, offset, data) in half {
                        let zero = zero::is_zero(data);
                        let body =
                            if zero { Body::Zero(data.len() as u64) } else { Body::Data(data) };
                        collector.put(&Piece { offset: *offset as u64, body });
                    }
                });
            }
        });
        collector
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn cuts_and_order_make_no_difference(
            cuts in prop::collection::vec(any::<usize>(), 0..60),
            keys in prop::collection::vec(any::<u32>(), 1..60),
        ) {
            let disk = disk();
            let collector = collect(&disk, &cuts, &keys);
            let fingerprint = collector.finish(disk.len() as u64, None).unwrap();
            prop_assert_eq!(fingerprint.to_string(), defined(&disk));
        }
    }

    #[test]
    fn what_cannot_be_kept_is_read_again() {
        // All even sectors, then all odd ones: of more blocks than are put together at a time.
        let blocks = PARTIAL_MAX * 2 + 3;
        let mut disk = pseudo_random(blocks * BLOCK, 9);
        disk.truncate(disk.len() - 512);
        disk[9 * BLOCK..][..5 * BLOCK].fill(0);
        let collect = || {
            let collector = Collector::new();
            for odd in [0, 1] {
                for (sector, data) in disk.chunks(4096).enumerate().filter(|(at, _)| at % 2 == odd)
                {
                    let piece = Piece { offset: sector as u64 * 4096, body: Body::Data(data) };
                    collector.put(&piece);
                    let partial = lock(&collector.partial);
                    assert!(partial.blocks.len() <= PARTIAL_MAX);
                }
            }
            collector
        };
        let size = disk.len() as u64;
        let fingerprint = collect().finish(size, Some(&disk)).unwrap();
        assert_eq!(fingerprint.to_string(), defined(&disk));
        assert_eq!(collect().finish(size, None).unwrap_err().kind(), ErrorKind::Mismatch);
        let error = collect().finish(size - 1, Some(&disk)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    }

    #[test]
    fn runs_to_be_read_again_are_few_or_all() {
        let mut partial = Partial::default();
        for block in [5, 3, 4, 9, 7, 8, 0] {
            partial.again(block);
        }
        assert_eq!(partial.again, BTreeMap::from([(0, 1), (3, 6), (7, 10)]));
        for block in 0..=AGAIN_MAX as u64 {
            partial.again(100 + block * 2);
        }
        assert!(partial.all && partial.again.is_empty());
        let disk = disk();
        let collector = collect(&disk, &[], &[]);
        *lock(&collector.partial) = partial;
        let fingerprint = collector.finish(disk.len() as u64, Some(&disk)).unwrap();
        assert_eq!(fingerprint.to_string(), defined(&disk));
    }

    #[test]
    fn every_format_has_the_same() {
        if !require_tool("qemu-img") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut disk = disk();
        disk.resize(10 * BLOCK, 0);
        let raw = dir.path().join("raw");
        fs_err::write(&raw, &disk).unwrap();
        let expected = of(&disk);
        for (format, options) in [
            ("qcow2", "cluster_size=64k"),
            ("qcow2", "cluster_size=512"),
            ("qcow2", "cluster_size=2M"),
            ("vmdk", "subformat=monolithicSparse"),
            ("vmdk", "subformat=streamOptimized"),
            ("vdi", "static=off"),
        ] {
            let path = dir.path().join("image");
            let [from, to] = [&raw, &path].map(|path| path.to_str().unwrap());
            qemu_img(["convert", "-O", format, "-o", options, from, to]);
            let file = fs_err::read(&path).unwrap();
            let opened = crate::open(file.clone()).unwrap();
            assert_eq!(Fingerprint::of(&*opened, WORKERS).unwrap(), expected, "{options}");
            let collector = std::sync::Arc::new(Collector::new());
            let summary = push(&file, &[65_536], collector.clone()).unwrap();
            let collector = std::sync::Arc::into_inner(collector).unwrap();
            let streamed = collector.finish(summary.virtual_size, Some(&disk)).unwrap();
            assert_eq!(streamed, expected, "{options} as a stream");
        }
    }
}
