//! Compressed clusters, unpacked, the last few of them kept.

use crate::codec::{Codec, Unpacker};
use crate::recent::Recent;
use crate::stream::Storage;
use crate::{Error, ErrorKind};

/// How many bytes of unpacked clusters are kept, but at least one cluster.
const KEPT: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Packed {
    codec: Codec,
    cluster: usize,
    unpacker: Unpacker,
    /// By the host offsets where they begin, the latest used last. Such a place is never written
    /// while a cluster is there, and no new compressed cluster is made.
    kept: Recent<u64, Vec<u8>>,
}

impl Packed {
    pub(super) fn new(codec: Codec, cluster: usize) -> Self {
        Self {
            codec,
            cluster,
            unpacker: Unpacker::new(),
            kept: Recent::new((KEPT / cluster).max(1)),
        }
    }

    /// The cluster whose compressed bytes are among the `len` at `host`.
    pub(super) fn cluster(
        &mut self,
        storage: &dyn Storage,
        host: u64,
        len: u64,
    ) -> Result<&[u8], Error> {
        if self.kept.get(&host).is_none() {
            let unpacked = self.unpack(storage, host, len)?;
            self.kept.put(host, unpacked);
        }
        Ok(self.kept.get(&host).expect("it was there or was just put there"))
    }

    fn unpack(&mut self, storage: &dyn Storage, host: u64, len: u64) -> Result<Vec<u8>, Error> {
        // The last sector may reach beyond the file: writers round up.
        let there = storage.len().saturating_sub(host).min(len);
        let mut packed = vec![0; there as usize];
        storage.read_exact_at(&mut packed, host).map_err(|error| Error::read(error, host))?;
        let mut cluster = vec![0; self.cluster];
        self.unpacker.unpack(self.codec, &packed, &mut cluster).map_err(|fault| {
            let kind = if there < len { ErrorKind::Truncated } else { ErrorKind::Corrupt };
            Error::new(kind, format!("the compressed cluster {fault}")).at(host)
        })?;
        Ok(cluster)
    }
}
