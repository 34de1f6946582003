//! Gives guest memory back to the host. What the guest reads there afterwards is zeros.

#![expect(unsafe_code, reason = "the kernel is told which addresses hold nothing any more")]

use rustix::mm::{Advice, madvise};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::PAGE;

/// Bits of `mmap`'s flags on Linux: the mapping is shared, is of huge pages, and of which (`mmap(2)`).
const MAP_SHARED: i32 = 0x01;
const MAP_HUGETLB: i32 = 0x4_0000;
const MAP_HUGE_SHIFT: u32 = 26;
const MAP_HUGE_MASK: i32 = 0x3f;

/// How a machine's memory is given back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Release {
    advice: Advice,
    /// Only whole pages of this size can be given back.
    page: usize,
}

impl Release {
    /// As the mapping of `memory` wants it.
    pub(super) fn of(memory: &GuestMemoryMmap) -> Self {
        Self::of_flags(memory.iter().next().map_or(0, |region| region.flags()))
    }

    fn of_flags(flags: i32) -> Self {
        // In memory of a file, shared, the page must go from the file: the mapping alone is not enough.
        let advice =
            if flags & MAP_SHARED != 0 { Advice::LinuxRemove } else { Advice::LinuxDontNeed };
        let huge = flags & MAP_HUGETLB != 0;
        // Without a size they are the system's default, on this architecture 2 MiB.
        let page = match flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK {
            _ if !huge => PAGE as usize,
            0 => 2 << 20,
            shift => 1 << shift,
        };
        Self { advice, page }
    }

    /// Gives the whole pages of `piece` back. Returns how many bytes that was: none where the kernel
    /// cannot, which costs the host memory and nothing else.
    pub(super) fn release(&self, piece: &VolatileSlice<'_>) -> u64 {
        let guard = piece.ptr_guard_mut();
        let start = guard.as_ptr() as usize;
        let first = start.next_multiple_of(self.page);
        let end = (start + piece.len()) / self.page * self.page;
        if first >= end {
            return 0;
        }
        let address = guard.as_ptr().wrapping_add(first - start);
        // SAFETY: the range lies within a piece of guest memory, which stays mapped while it is
        // borrowed. Nothing but the guest relies on what is there, and Rust code has no references.
        match unsafe { madvise(address.cast(), end - first, self.advice) } {
            Ok(()) => (end - first) as u64,
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn only_whole_pages_go_and_read_as_zeros() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        let release = Release::of(&memory);
        for (start, len, gone) in [
            (0x1000, 0x1000, 0x1000..0x2000),
            (0x0800, 0x1000, 0..0),
            (0x0fff, 0x2002, 0x1000..0x3000),
            (0x3fff, 1, 0..0),
        ] {
            memory.write_slice(&[7; 0x4000], GuestAddress(0)).unwrap();
            let pieces = memory.get_slices(GuestAddress(start), len);
            let released: u64 = pieces.map(|piece| release.release(&piece.unwrap())).sum();
            assert_eq!(released, gone.end - gone.start, "{start:#x} {len:#x}");
            let mut found = [0; 0x4000];
            memory.read_slice(&mut found, GuestAddress(0)).unwrap();
            for (at, byte) in (0..).zip(found) {
                assert_eq!(byte == 0, gone.contains(&at), "{start:#x} {len:#x}: {at:#x}");
            }
        }
    }

    #[test]
    fn each_kind_of_memory_is_given_back_in_its_pages() {
        for (flags, page, removed) in [
            (0x22, 4096, false),
            (0x01, 4096, true),
            (MAP_HUGETLB | 0x22, 2 << 20, false),
            (MAP_HUGETLB | 21 << 26 | 0x01, 2 << 20, true),
            (MAP_HUGETLB | 30 << 26, 1 << 30, false),
        ] {
            let release = Release::of_flags(flags);
            assert_eq!(release.page, page, "{flags:#x}");
            assert_eq!(matches!(release.advice, Advice::LinuxRemove), removed, "{flags:#x}");
        }
    }
}
