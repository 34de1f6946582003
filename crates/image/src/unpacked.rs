//! Compressed clusters of an image, for reads of any part of one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::codec::{Codec, Unpacker};
use crate::recent::Recent;
use crate::{Error, ReadAt};

/// How many bytes of decompressed clusters are kept for the next read, but at least one cluster.
const KEPT_MAX: usize = 1 << 20;
/// How many decompressors wait for the next read.
const IDLE_MAX: usize = 16;

/// What was decompressed last, and what it takes to decompress more.
pub(crate) struct Unpacked {
    codec: Codec,
    /// The bytes of a cluster.
    size: usize,
    recent: Mutex<Recent<u64, Arc<[u8]>>>,
    idle: Mutex<Vec<Idle>>,
}

/// What decompressing a cluster takes.
struct Idle {
    unpacker: Unpacker,
    packed: Vec<u8>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unpacked {
    /// For clusters of `size` bytes.
    pub(crate) fn new(codec: Codec, size: usize) -> Self {
        let recent = Mutex::new(Recent::new((KEPT_MAX / size).max(1)));
        Self { codec, size, recent, idle: Mutex::default() }
    }

    /// Fills `buf` from byte `skip` on of the cluster that is compressed in the `len` bytes at
    /// `host`.
    pub(crate) fn read(
        &self,
        source: &impl ReadAt,
        (host, len): (u64, u64),
        skip: usize,
        buf: &mut [u8],
    ) -> Result<(), Error> {
        if let Some(cluster) = lock(&self.recent).get(&host) {
            buf.copy_from_slice(&cluster[skip..skip + buf.len()]);
            return Ok(());
        }
        // Who reads a whole cluster has no use for it again.
        if buf.len() == self.size {
            return self.unpack(source, (host, len), buf);
        }
        let mut cluster = vec![0; self.size];
        self.unpack(source, (host, len), &mut cluster)?;
        buf.copy_from_slice(&cluster[skip..skip + buf.len()]);
        let mut recent = lock(&self.recent);
        // Another thread may have been faster.
        if recent.get(&host).is_none() {
            recent.put(host, cluster.into());
        }
        Ok(())
    }

    /// Decompresses a cluster. Several threads do so at once.
    fn unpack(
        &self,
        source: &impl ReadAt,
        (host, len): (u64, u64),
        cluster: &mut [u8],
    ) -> Result<(), Error> {
        let idle = lock(&self.idle).pop();
        let mut idle =
            idle.unwrap_or_else(|| Idle { unpacker: Unpacker::new(), packed: Vec::new() });
        // The last sector may reach beyond the file: writers round up.
        let there = source.len().saturating_sub(host).min(len);
        idle.packed.resize(there as usize, 0);
        source.read_exact_at(&mut idle.packed, host).map_err(|error| Error::read(error, host))?;
        idle.unpacker
            .unpack(self.codec, &idle.packed, cluster)
            .map_err(|fault| fault.in_cluster(host, there < len))?;
        let mut waiting = lock(&self.idle);
        if waiting.len() < IDLE_MAX {
            waiting.push(idle);
        }
        Ok(())
    }
}
