//! Compressing clusters as they are complete: pieces of one are gathered, whole ones are compressed
//! on the thread that brings them. Decides nothing about places in the file.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use zstd::bulk::Compressor;
use zstd::zstd_safe;

use super::writer::CLUSTER;
use crate::zero::is_zero;

/// zstd's own default: on the files of a system it is about as small as the next levels, and at
/// least as fast as one disk.
const LEVEL: i32 = 3;
/// How many clusters are gathered at a time: 32 MiB. Decoders bring a disk in its order or in that
/// of the image file, so that few are incomplete.
const GATHERED_MAX: usize = 512;
/// What is saved by compressing is counted in sectors.
const SECTOR: usize = 512;

/// Compressors, as many as are used at once.
#[derive(Default)]
pub(super) struct Packers {
    idle: Mutex<Vec<Packer>>,
}

/// A compressor, and where it writes.
struct Packer {
    compressor: Compressor<'static>,
    packed: Vec<u8>,
}

/// What became of a cluster's contents.
pub(super) enum Packed<'a> {
    Zero,
    Smaller(&'a [u8]),
    /// Compressing it saves nothing.
    Plain,
}

impl Packers {
    /// Compresses a cluster and calls `store` with what came out.
    pub(super) fn pack(
        &self,
        cluster: &[u8],
        store: impl FnOnce(Packed<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        if is_zero(cluster) {
            return store(Packed::Zero);
        }
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let packer = idle().pop();
        let mut packer = match packer {
            Some(packer) => packer,
            None => Packer {
                compressor: Compressor::new(LEVEL)?,
                packed: Vec::with_capacity(zstd_safe::compress_bound(CLUSTER as usize)),
            },
        };
        let len = packer.compressor.compress_to_buffer(cluster, &mut packer.packed)?;
        let smaller = len + SECTOR <= CLUSTER as usize;
        let stored =
            store(if smaller { Packed::Smaller(&packer.packed[..len]) } else { Packed::Plain });
        idle().push(packer);
        stored
    }
}

impl fmt::Debug for Packers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packers").finish_non_exhaustive()
    }
}

/// Clusters of which some bytes are there, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Gather {
    partial: HashMap<u64, Partial>,
    /// The numbers by age.
    order: BTreeMap<u64, u64>,
    clock: u64,
}

/// A cluster of which some bytes are there.
#[derive(Debug)]
struct Partial {
    /// With zeros where nothing is yet. Nothing if there were only zeros so far.
    data: Option<Vec<u8>>,
    /// How many bytes are there. Pieces do not overlap.
    covered: u64,
    age: u64,
}

impl Gather {
    /// True if some bytes of the cluster are here.
    pub(super) fn has(&self, cluster: u64) -> bool {
        self.partial.contains_key(&cluster)
    }

    /// Adds `len` bytes of the cluster, of which `size` are on the disk: `data` at `skip`, or
    /// zeros. Returns the cluster once it is complete, and nothing if it is all zeros.
    pub(super) fn add(
        &mut self,
        cluster: u64,
        size: u64,
        skip: usize,
        len: u64,
        data: Option<&[u8]>,
    ) -> Option<Vec<u8>> {
        let clock = &mut self.clock;
        let order = &mut self.order;
        let partial = self.partial.entry(cluster).or_insert_with(|| {
            *clock += 1;
            order.insert(*clock, cluster);
            Partial { data: None, covered: 0, age: *clock }
        });
        if let Some(data) = data {
            let whole = partial.data.get_or_insert_with(|| vec![0; CLUSTER as usize]);
            whole[skip..skip + data.len()].copy_from_slice(data);
        }
        partial.covered += len;
        if partial.covered < size {
            return None;
        }
        self.take(cluster)
    }

    fn take(&mut self, cluster: u64) -> Option<Vec<u8>> {
        let partial = self.partial.remove(&cluster)?;
        self.order.remove(&partial.age);
        partial.data
    }

    /// Takes the oldest cluster out, complete or not, if there are too many, or any at the `end`.
    pub(super) fn oldest(&mut self, end: bool) -> Option<(u64, Option<Vec<u8>>)> {
        if !end && self.partial.len() <= GATHERED_MAX {
            return None;
        }
        let cluster = *self.order.first_key_value()?.1;
        Some((cluster, self.take(cluster)))
    }
}
