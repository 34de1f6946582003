//! Where port and memory accesses of the guest find their device.
//!
//! A vCPU thread that leaves the guest for an access that is not RAM looks it up here. There are
//! two buses in a machine, one for I/O ports and one for memory-mapped registers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, RwLock};

/// A device's registers on a [`Bus`].
///
/// Accesses come from every vCPU thread at once; a device guards its own state. What the guest
/// writes is hostile: a device answers odd offsets and widths as hardware would, and never panics.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) from the register at `offset` into the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data` (1 to 8 bytes) for the register at `offset` into the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// The map from addresses to devices.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Claim>>,
}

/// The end of a range, whose start is the key in the map, and who answers there.
type Claim = (u64, Arc<dyn BusDevice>);

/// Two devices claim one address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address range {:#x}..{:#x} is taken", range.start, range.end)]
pub struct RangeTaken {
    range: Range<u64>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `range`, which must be free.
    pub fn insert(&self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), RangeTaken> {
        let mut ranges = self.ranges.write().expect("no holder of this lock panics");
        let below = ranges.range(..range.end).next_back();
        if below.is_some_and(|(_, (end, _))| *end > range.start) || range.is_empty() {
            return Err(RangeTaken { range });
        }
        ranges.insert(range.start, (range.end, device));
        Ok(())
    }

    /// Takes away the device whose range begins at `start`, if there is one.
    pub fn remove(&self, start: u64) {
        self.ranges.write().expect("no holder of this lock panics").remove(&start);
    }

    /// Takes away all devices.
    pub fn clear(&self) {
        self.ranges.write().expect("no holder of this lock panics").clear();
    }

    /// Reads from the device at `address`. Where there is none the bus floats: all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `address`. Where there is none the write is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// The device is cloned out of the lock, so that its own handler may change the bus (a PCI BAR
    /// that moves does).
    fn find(&self, address: u64) -> Option<(u64, Arc<dyn BusDevice>)> {
        let ranges = self.ranges.read().expect("no holder of this lock panics");
        let (start, (end, device)) = ranges.range(..=address).next_back()?;
        (address < *end).then(|| (address - start, Arc::clone(device)))
    }
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self.ranges.read().expect("no holder of this lock panics");
        f.debug_list().entries(ranges.iter().map(|(start, (end, _))| start..end)).finish()
    }
}
