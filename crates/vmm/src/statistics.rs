//! What a machine has done so far. Devices own their counters, and count over all lives of the guest;
//! whoever asks gets plain numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Makes a struct of counters that threads share, and the struct of plain numbers that is read of it.
macro_rules! counters {
    (
        $(#[$shared_doc:meta])* $shared:ident,
        $(#[$plain_doc:meta])* $plain:ident { $($(#[$doc:meta])* $field:ident,)* }
    ) => {
        $(#[$shared_doc])*
        #[derive(Debug, Default)]
        pub struct $shared {
            $($(#[$doc])* pub $field: Counter,)*
        }

        $(#[$plain_doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $plain {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl $shared {
            /// The numbers now.
            pub fn read(&self) -> $plain {
                $plain { $($field: self.$field.get(),)* }
            }
        }
    };
}

counters! {
    /// What a disk's device counts.
    BlockCounters,
    /// What a guest has done with a disk.
    BlockStatistics {
        /// Bytes that were read.
        read_bytes,
        /// Reads that were answered, failed ones included.
        read_requests,
        /// Bytes that were written.
        written_bytes,
        /// Writes that were answered, failed ones included.
        write_requests,
        /// Flushes that were answered.
        flushes,
        /// Discards and requests to write zeros that were answered.
        discards,
        /// Requests that failed, for whatever reason.
        errors,
    }
}

counters! {
    /// What a network interface's device counts. Directions are the guest's.
    NetworkCounters,
    /// What a guest has done with a network interface. Directions are the guest's.
    NetworkStatistics {
        /// Bytes of frames that the guest got.
        received_bytes,
        /// Frames that the guest got.
        received_packets,
        /// Frames for the guest that were dropped, for want of room.
        received_dropped,
        /// Frames for the guest that failed.
        receive_errors,
        /// Bytes of frames that the guest sent.
        transmitted_bytes,
        /// Frames that the guest sent.
        transmitted_packets,
        /// The guest's frames that were dropped.
        transmitted_dropped,
        /// The guest's frames that could not be read or sent.
        transmit_errors,
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of a machine's devices by their names, which outlive a guest's restart.
#[derive(Debug, Default)]
pub struct Counters {
    disks: Named<BlockCounters>,
    networks: Named<NetworkCounters>,
}

type Named<T> = Mutex<Vec<(String, Arc<T>)>>;

impl Counters {
    /// The counters of the disk with this name.
    pub fn disk(&self, name: &str) -> Arc<BlockCounters> {
        named(&self.disks, name)
    }

    /// The counters of the network interface with this name.
    pub fn network(&self, name: &str) -> Arc<NetworkCounters> {
        named(&self.networks, name)
    }

    pub(crate) fn read_disks(&self) -> Vec<(String, BlockStatistics)> {
        read(&self.disks, BlockCounters::read)
    }

    pub(crate) fn read_networks(&self) -> Vec<(String, NetworkStatistics)> {
        read(&self.networks, NetworkCounters::read)
    }
}

fn named<T: Default>(all: &Named<T>, name: &str) -> Arc<T> {
    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, found)) = all.iter().find(|(known, _)| known == name) {
        return Arc::clone(found);
    }
    let new = Arc::<T>::default();
    all.push((name.to_owned(), Arc::clone(&new)));
    new
}

fn read<T, P>(all: &Named<T>, read: impl Fn(&T) -> P) -> Vec<(String, P)> {
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().map(|(name, counters)| (name.clone(), read(counters))).collect()
}

/// What a machine has done since its guest started last, and its devices since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The processors, by their numbers; none between two lives of the guest.
    pub processors: Vec<ProcessorStatistics>,
    /// The disks with their names.
    pub disks: Vec<(String, BlockStatistics)>,
    /// The network interfaces with their names.
    pub networks: Vec<(String, NetworkStatistics)>,
    /// How often the guest was started again.
    pub restarts: u64,
}

/// What a processor has done since its guest started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessorStatistics {
    /// How long its thread has had a processor of the host, in the guest and out of it; `None` if the
    /// host does not tell.
    pub time: Option<Duration>,
    /// How often it left the guest, by reason.
    pub exits: Vec<(&'static str, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_the_next_life_counts_on() {
        let counters = Counters::default();
        counters.disk("root").read_bytes.add(4096);
        counters.network("default").received_packets.add(1);
        let again = counters.disk("root");
        again.read_bytes.add(512);
        again.read_requests.add(1);
        counters.disk("seed");
        let root = BlockStatistics { read_bytes: 4608, read_requests: 1, ..Default::default() };
        let seed = BlockStatistics::default();
        assert_eq!(counters.read_disks(), [("root".to_owned(), root), ("seed".to_owned(), seed)]);
        assert_eq!(counters.read_networks()[0].1.received_packets, 1);
    }
}
