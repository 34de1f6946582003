//! The configuration space of one function (PCI 3.0 §6.1, type 0 header): bytes, and for each bit
//! whether the guest may write it. That one mask gives read-only identity, the sizing protocol of
//! BARs, and the fixed and writable fields of capabilities. Knows nothing of buses and devices.

use std::fmt;

/// The bytes of a conventional configuration space; what lies behind them in an extended one reads
/// as zeros, which means "no extended capability".
const SIZE: usize = 256;

/// Base address registers of a type 0 header.
pub const BAR_COUNT: usize = 6;

const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
const BARS: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the header ends and capabilities may begin.
const HEADER_END: usize = 0x40;

/// Command register: the function answers accesses to its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may write memory. Kept for the guest to read back and otherwise
/// ignored: firmware drivers that never set it are common, and a driver that needs DMA to stop
/// resets the device.
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command register: no INTx. There is none, but drivers check that the bit sticks.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status register: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// BAR bits 2:1 = 0b10: a 64-bit address, which takes the next register for its upper half.
const BAR_MEMORY_64: u32 = 0b100;

/// What a function says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Who made it.
    pub vendor: u16,
    /// What it is among its vendor's devices.
    pub device: u16,
    /// Base class, sub-class and programming interface, `0xBBSSPP`.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor and device.
    pub subsystem: (u16, u16),
}

/// The configuration space of one function.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    /// A set bit can be changed by the guest.
    writable: [u8; SIZE],
    /// Size in bytes of the region behind each BAR; 0 where there is none.
    bar_sizes: [u64; BAR_COUNT],
    /// The pointer byte that the next capability's offset is stored in.
    last_pointer: usize,
    end: usize,
}

impl ConfigSpace {
    /// A function without BARs and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar_sizes: [0; BAR_COUNT],
            last_pointer: CAPABILITIES,
            end: HEADER_END,
        };
        space.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(DEVICE_ID, &identity.device.to_le_bytes());
        space.set(REVISION, &[identity.revision]);
        space.set(CLASS, &identity.class.to_le_bytes()[..3]);
        space.set(SUBSYSTEM_VENDOR_ID, &identity.subsystem.0.to_le_bytes());
        space.set(SUBSYSTEM_ID, &identity.subsystem.1.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(CACHE_LINE_SIZE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Makes registers `bar` and `bar + 1` a 64-bit memory BAR over a region of `size` bytes.
    ///
    /// # Panics
    ///
    /// Panics if `size` is not a power of two from 16 bytes to 2 GiB, or if a register is in use:
    /// a mistake of the device's author.
    pub fn add_bar(&mut self, bar: usize, size: u64) {
        assert!(size.is_power_of_two() && (16..=1 << 31).contains(&size), "size of BAR {bar}");
        assert!(self.writable[BARS + 4 * bar..][..8] == [0; 8], "BAR {bar} is in use");
        self.bar_sizes[bar] = size;
        self.set(BARS + 4 * bar, &BAR_MEMORY_64.to_le_bytes());
        // The bits below the size are fixed at zero; a driver that writes all ones reads it there.
        self.allow(BARS + 4 * bar, &(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability and gives the offset of its ID byte. `body` follows the two bytes of ID
    /// and link; the guest may change the bits that are set in `writable`, which may be shorter.
    ///
    /// # Panics
    ///
    /// Panics if the space is full: a mistake of the device's author.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let offset = self.end;
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        self.set(self.last_pointer, &[u8::try_from(offset).expect("checked by the slices above")]);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_pointer = offset + 1;
        self.end = (offset + 2 + body.len()).next_multiple_of(4);
        offset
    }

    /// Overwrites bytes whether or not the guest may.
    ///
    /// # Panics
    ///
    /// Panics beyond the end of the space.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// The `N` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// Panics beyond the end of the space.
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.bytes[offset..offset + N].try_into().expect("the slice has N bytes")
    }

    /// What the guest reads at `offset`. Zeros beyond the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// What the guest writes at `offset`: changes the bits that it may change.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, new) in (offset..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }

    /// The size of the region behind each BAR, for those that exist.
    pub fn bars(&self) -> impl Iterator<Item = (usize, u64)> + use<> {
        self.bar_sizes.into_iter().enumerate().filter(|(_, size)| *size != 0)
    }

    /// The address in `bar`.
    pub fn bar_address(&self, bar: usize) -> u64 {
        u64::from_le_bytes(self.get(BARS + 4 * bar)) & !0xf
    }

    /// Puts `address`, a multiple of the region's size, into `bar`.
    pub fn set_bar_address(&mut self, bar: usize, address: u64) {
        self.write(BARS + 4 * bar, &address.to_le_bytes());
    }

    /// The function answers accesses to its memory BARs.
    pub fn decodes_memory(&self) -> bool {
        u16::from_le_bytes(self.get(COMMAND)) & COMMAND_MEMORY != 0
    }

    /// Switches the answering of memory accesses on, as firmware does after placing the BARs.
    pub fn enable_memory(&mut self) {
        self.write(COMMAND, &COMMAND_MEMORY.to_le_bytes());
    }
}

impl fmt::Debug for ConfigSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = |offset| u16::from_le_bytes(self.get(offset));
        write!(f, "ConfigSpace({:04x}:{:04x})", id(VENDOR_ID), id(DEVICE_ID))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_80_00,
        revision: 1,
        subsystem: (0x1af4, 0x40),
    };

    fn read32(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_can_be_read_but_not_written() {
        let mut space = ConfigSpace::new(IDENTITY);
        for offset in [0x00, 0x08, 0x2c] {
            space.write(offset, &[0xff; 4]);
        }
        assert_eq!(read32(&space, 0x00), 0x1042_1af4);
        assert_eq!(read32(&space, 0x08), 0x0180_0001);
        assert_eq!(read32(&space, 0x2c), 0x0040_1af4);
    }

    #[test]
    fn a_bar_tells_its_size_and_takes_aligned_addresses() {
        let mut space = ConfigSpace::new(IDENTITY);
        space.add_bar(2, 0x4000);
        space.write(0x18, &[0xff; 4]);
        space.write(0x1c, &[0xff; 4]);
        assert_eq!((read32(&space, 0x18), read32(&space, 0x1c)), (0xffff_c004, 0xffff_ffff));
        space.write(0x18, &0xe001_2345_u32.to_le_bytes());
        space.write(0x1c, &[1, 0, 0, 0]);
        assert_eq!(space.bar_address(2), 0x1_e001_0000);
        assert_eq!(space.bars().collect::<Vec<_>>(), [(2, 0x4000)]);
    }

    #[test]
    fn absent_bars_and_unknown_command_bits_stay_zero() {
        let mut space = ConfigSpace::new(IDENTITY);
        space.write(0x10, &[0xff; 4]);
        space.write(0x04, &[0xff; 4]);
        assert_eq!(read32(&space, 0x10), 0);
        assert_eq!(read32(&space, 0x04), 0x0406);
    }

    #[test]
    fn capabilities_form_a_list_with_a_mask_for_each_bit() {
        let mut space = ConfigSpace::new(IDENTITY);
        let first = space.add_capability(0x09, &[0x10, 1, 2], &[]);
        let second = space.add_capability(0x11, &[0x03, 0x00, 7, 7], &[0x00, 0xc0]);
        assert_eq!(space.get::<1>(0x34), [u8::try_from(first).unwrap()]);
        assert_eq!(space.get::<2>(first), [0x09, u8::try_from(second).unwrap()]);
        assert_eq!(second % 4, 0);
        space.write(second, &[0xff; 6]);
        assert_eq!(space.get::<6>(second), [0x11, 0, 0x03, 0xc0, 7, 7]);
        assert_eq!(read32(&space, 0x04) >> 16, 0x10);
    }

    #[test]
    fn accesses_across_the_end_are_cut() {
        let mut space = ConfigSpace::new(IDENTITY);
        space.write(254, &[0xff; 8]);
        let mut data = [9; 8];
        space.read(252, &mut data);
        assert_eq!(data, [0; 8]);
        space.read(0xffc, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
