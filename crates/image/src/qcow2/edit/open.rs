//! Opening an image for writing: what is refused, and which clusters are tables.

use std::ops::Range;
use std::sync::{Condvar, Mutex, RwLock};

use super::Editor;
use super::rebuild::rebuild;
use super::refcounts::Refcounts;
use super::state::State;
use crate::open::read_head;
use crate::pins::Pins;
use crate::qcow2::header::{Given, Header, at, bit};
use crate::qcow2::image::{check_inside, check_tables, read_l1};
use crate::qcow2::table::{Named, Tables};
use crate::stream::Storage;
use crate::unpacked::Unpacked;
use crate::{Disk, Error, ErrorKind};

/// How many clusters the snapshots' own tables may have altogether: 2 GiB of disk for each of 1000
/// snapshots with the smallest clusters, of 512 bytes.
const SNAPSHOT_CLUSTERS_MAX: u64 = 1 << 20;

/// Where the snapshots' tables are.
#[derive(Debug)]
pub(super) struct Snapshots {
    /// The snapshot table.
    pub(super) table: Range<u64>,
    /// Their L1 tables.
    pub(super) l1: Vec<Range<u64>>,
}

/// Opens the image in `storage` for reading and writing. An overlay needs its `backing` disk, which
/// is only read.
///
/// An image whose refcounts are said to be out of date gets new ones. The refcounts of others are
/// believed, but no table is ever overwritten on their word. Refused are images with external data
/// files, encryption, or subclusters, and those marked as corrupt.
pub fn edit<S: Storage>(storage: S, backing: Option<Box<dyn Disk>>) -> Result<Editor<S>, Error> {
    let header = Header::parse(&read_head(&storage)?)?;
    refuse(&header, backing.is_some())?;
    let l1 = read_l1(&storage, &header, &header.active())?;
    let snapshots = snapshots(&header, &storage)?;
    let tables = guarded(&header, &l1, &snapshots)?;
    let refcounts = Refcounts::open(&header, &storage, tables)?;
    let unpacked = Unpacked::new(header.codec, header.cluster_size() as usize);
    let (cluster_bits, version, virtual_size, incompatible) =
        (header.cluster_bits, header.version, header.virtual_size, header.incompatible);
    let mut state = State::new(header, l1, refcounts);
    if incompatible & bit::DIRTY != 0 {
        rebuild(&mut state, &storage, &snapshots)?;
        let clean = (incompatible & !bit::DIRTY).to_be_bytes();
        storage.write_all_at(&clean, at::INCOMPATIBLE).map_err(Error::write)?;
        storage.sync().map_err(Error::write)?;
    }
    Ok(Editor {
        storage,
        backing,
        cluster_bits,
        version,
        virtual_size,
        gate: RwLock::new(()),
        pins: Pins::default(),
        state: Mutex::new(state),
        idle: Condvar::new(),
        unpacked,
    })
}

fn refuse(header: &Header, backing: bool) -> Result<(), Error> {
    let given = Given { backing, data_file: false };
    if let Some(refusal) = header.refusal(given) {
        return Err(refusal);
    }
    header.refuse_needless(given)?;
    if header.extended_l2() {
        let what = "writing to images with subclusters (extended L2 entries) is not supported";
        return Err(Error::new(ErrorKind::Unsupported, what).at(at::INCOMPATIBLE));
    }
    Ok(())
}

/// Finds the tables of the snapshots.
fn snapshots(header: &Header, storage: &dyn Storage) -> Result<Snapshots, Error> {
    let begin = header.snapshots_offset;
    let mut snapshots = Snapshots { table: begin..begin, l1: Vec::new() };
    let mut clusters = 0;
    for entry in check_tables(storage, header)? {
        let state = entry.state(header)?;
        check_inside("L1 table", state.l1_offset, state.l1_len(), storage.len())?;
        clusters += state.l1_len().div_ceil(header.cluster_size());
        if clusters > SNAPSHOT_CLUSTERS_MAX {
            let what = "the snapshots have too many tables to write to the image";
            return Err(Error::new(ErrorKind::TooLarge, what).at(begin));
        }
        snapshots.l1.push(state.l1_offset..state.l1_offset + state.l1_len());
        snapshots.table.end = entry.end;
    }
    Ok(snapshots)
}

/// The clusters of all tables that are not refcounts.
fn guarded(header: &Header, l1: &[u64], snapshots: &Snapshots) -> Result<Vec<u64>, Error> {
    let tables = Tables::new(header, &header.active());
    let mut named = Named::default();
    let mut guarded = vec![0];
    for (at, entry) in (header.l1_offset..).step_by(8).zip(l1) {
        if let Some(l2) = tables.l2_offset(*entry, at)? {
            named.add(l2, at)?;
            guarded.push(l2 >> header.cluster_bits);
        }
    }
    let active = header.l1_offset..header.l1_offset + header.l1_len();
    for range in snapshots.l1.iter().chain([&active, &snapshots.table]) {
        guarded.extend(clusters_of(range, header.cluster_bits));
    }
    Ok(guarded)
}

/// The clusters that the bytes of `range` are in.
pub(super) const fn clusters_of(range: &Range<u64>, cluster_bits: u32) -> Range<u64> {
    if range.start == range.end {
        return 0..0;
    }
    range.start >> cluster_bits..((range.end - 1) >> cluster_bits) + 1
}
