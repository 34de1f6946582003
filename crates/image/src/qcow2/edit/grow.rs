//! Making the disk in an image larger.

use super::Editor;
use crate::qcow2::header::{Header, L1_BYTES_MAX, at};
use crate::raw::round_up;
use crate::stream::Storage;
use crate::{Error, ErrorKind};

/// How often a place for the L1 table is looked for, since it must be in one piece. One that does not
/// fit between other things fits behind them.
const PLACES_MAX: usize = 64;

impl<S: Storage> Editor<S> {
    /// Gives the disk `virtual_size` bytes, or as many more as fill a sector; what is new reads as
    /// zeros, or as the backing disk where that is larger. Fails where the disk would become smaller.
    ///
    /// After a power cut the disk has the one size or the other.
    pub fn grow(self, virtual_size: u64) -> Result<(), Error> {
        let virtual_size = round_up(virtual_size);
        if virtual_size < self.virtual_size {
            let what = format!("a disk of {} bytes does not shrink", self.virtual_size);
            return Err(Error::new(ErrorKind::OutOfRange, what));
        }
        let _alone = self.gate.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut state = self.lock();
        if state.header.version < 3 && state.header.snapshots > 0 {
            let what = "an image of version 2 with snapshots cannot be resized";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        state.commit(&self.storage)?;
        let entries = virtual_size.div_ceil(state.header.l2_coverage());
        if entries <= u64::from(state.header.l1_entries) {
            self.name_size(virtual_size, &state.header)?;
            return Ok(());
        }
        if entries * 8 > L1_BYTES_MAX {
            let what = format!("a disk of {virtual_size} bytes does not fit in such clusters");
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let clusters = (entries * 8).div_ceil(self.cluster_size());
        let place = state.contiguous(&self.storage, clusters)?;
        let mut table: Vec<u8> = state.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        table.resize((clusters * self.cluster_size()) as usize, 0);
        let host = place.start * self.cluster_size();
        self.storage.write_all_at(&table, host).map_err(Error::write)?;
        // The table is durable, and counted, before the header names it.
        state.commit(&self.storage)?;
        let header = &state.header;
        let old = super::open::clusters_of(
            &(header.l1_offset..header.l1_offset + header.l1_len()),
            self.cluster_bits,
        );
        state.header.l1_offset = host;
        state.header.l1_entries = entries as u32;
        self.name_size(virtual_size, &state.header)?;
        state.unallocate(&self.storage, old)?;
        state.commit(&self.storage)
    }

    /// Writes the size and the place of the L1 table to the header: 24 bytes of one sector.
    fn name_size(&self, virtual_size: u64, header: &Header) -> Result<(), Error> {
        let mut fields = [0; 24];
        fields[..8].copy_from_slice(&virtual_size.to_be_bytes());
        // Behind the size is the method of encryption, which is none.
        fields[12..16].copy_from_slice(&header.l1_entries.to_be_bytes());
        fields[16..].copy_from_slice(&header.l1_offset.to_be_bytes());
        self.storage.write_all_at(&fields, at::SIZE).map_err(Error::write)?;
        self.storage.sync().map_err(Error::write)
    }
}

impl super::state::State {
    /// Takes as many clusters that follow each other.
    fn contiguous(
        &mut self,
        storage: &dyn Storage,
        clusters: u64,
    ) -> Result<std::ops::Range<u64>, Error> {
        let mut short = Vec::new();
        let mut found = None;
        while found.is_none() && short.len() < PLACES_MAX {
            let place = self.refcounts.allocate(storage, clusters)?;
            match place.end - place.start == clusters {
                true => found = Some(place),
                false => short.push(place),
            }
        }
        for place in short {
            self.unallocate(storage, place)?;
        }
        found.ok_or_else(|| {
            let what = format!("no room for {clusters} clusters in a row in the image file");
            Error::new(ErrorKind::TooLarge, what)
        })
    }
}
