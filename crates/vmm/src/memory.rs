//! The guest's memory on the host: where it is taken from, and what the kernel is told about it.

#![expect(unsafe_code, reason = "advice on memory can destroy it; this advice does not")]

pub(crate) mod program;

use std::io;

use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::arch::x86_64::layout;
use crate::error::Error;

/// A size of huge pages, of which the host keeps a pool (`hugetlbfs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HugePages {
    /// 2 MiB.
    Size2Mi,
    /// 1 GiB.
    Size1Gi,
}

impl HugePages {
    /// Bytes of a page.
    pub const fn size(self) -> u64 {
        match self {
            Self::Size2Mi => 2 << 20,
            Self::Size1Gi => 1 << 30,
        }
    }

    /// The pool's folder, which has its counters as files.
    fn pool(self) -> String {
        format!("/sys/kernel/mm/hugepages/hugepages-{}kB", self.size() >> 10)
    }

    /// How many pages of the pool nobody uses; `None` where the processor has none of this size.
    pub fn free(self) -> Option<u64> {
        let count = fs_err::read_to_string(format!("{}/free_hugepages", self.pool())).ok()?;
        count.trim().parse().ok()
    }

    /// Refuses memory of `bytes` that is no whole number of pages.
    pub(crate) fn divide(self, bytes: u64) -> Result<u64, Error> {
        let page = self.size();
        let what =
            || format!("expected memory in whole huge pages of {page} bytes, got {bytes} bytes");
        bytes.is_multiple_of(page).then(|| bytes / page).ok_or_else(|| Error::Config(what()))
    }

    /// Looks whether a guest's memory of `bytes` can be had from the pool, for who takes it elsewhere.
    ///
    /// # Errors
    ///
    /// The pages are too few, or do not make up the memory: as a machine tells it.
    pub fn check(self, bytes: u64) -> Result<(), Error> {
        let wanted = self.divide(bytes)?;
        if self.free().is_some_and(|free| free >= wanted) {
            return Ok(());
        }
        Err(self.too_few(wanted, io::Error::from_raw_os_error(libc::ENOMEM)))
    }

    fn too_few(self, wanted: u64, source: io::Error) -> Error {
        Error::HugePages { page: self.size(), wanted, free: self.free(), pool: self.pool(), source }
    }
}

/// Takes `size` bytes of memory for a guest. Huge pages are taken at once; other memory when the
/// guest first uses it, in large pages where the kernel finds them.
pub(crate) fn allocate(size: u64, huge: Option<HugePages>) -> Result<GuestMemoryMmap, Error> {
    let failed = |source| match huge {
        Some(pages) => pages.too_few(size / pages.size(), source),
        None => Error::Memory { bytes: size, source },
    };
    let _gap = if huge.is_none() { align_next_mapping() } else { None };
    let region = |range: std::ops::Range<u64>| {
        let len = (range.end - range.start) as usize;
        let mapping = map(len, huge)?;
        advise(&mapping, huge);
        GuestRegionMmap::new(mapping, GuestAddress(range.start))
            .ok_or_else(|| io::Error::other("the addresses overflow"))
    };
    let regions: io::Result<Vec<GuestRegionMmap>> =
        layout::ram(size).into_iter().map(region).collect();
    let memory = regions
        .and_then(|regions| GuestMemoryMmap::from_regions(regions).map_err(io::Error::other));
    memory.map_err(failed)
}

fn map(len: usize, huge: Option<HugePages>) -> io::Result<MmapRegion> {
    use libc::{MAP_ANONYMOUS, MAP_HUGETLB, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE};
    let flags = match huge {
        // Without MAP_NORESERVE the pool's pages are ours from now on, or there is an error now.
        Some(pages) => MAP_HUGETLB | (pages.size().trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT,
        None => MAP_NORESERVE,
    };
    let flags = flags | MAP_PRIVATE | MAP_ANONYMOUS;
    MmapRegion::build(None, len, PROT_READ | PROT_WRITE, flags).map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => error,
        error => io::Error::other(error),
    })
}

/// Keeps the guest's memory out of core dumps, and asks for large pages where there is no pool.
/// Neither is needed, so that a kernel that refuses is no error.
fn advise(mapping: &MmapRegion, huge: Option<HugePages>) {
    let large = huge.is_none().then_some(Advice::LinuxHugepage);
    for advice in [Some(Advice::LinuxDontDump), large].into_iter().flatten() {
        // SAFETY: the range is exactly this mapping, and neither advice changes what it holds.
        let _ = unsafe { madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
    }
}

/// Fills the gap down to the next multiple of a large page, so that the mapping that follows below
/// it begins at one. KVM can use large pages only then, and Linux aligns large mappings by itself
/// from 6.7 on. Where the mapping lands elsewhere, the guest is slower and nothing else.
fn align_next_mapping() -> Option<MmapRegion> {
    const PAGE: usize = 0x1000;
    const LARGE_PAGE: usize = 2 << 20;
    let probe = MmapRegion::<()>::new(PAGE).ok()?;
    let gap = (probe.as_ptr() as usize + PAGE) % LARGE_PAGE;
    drop(probe);
    if gap == 0 { None } else { MmapRegion::new(gap).ok() }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend;

    use super::*;

    #[test]
    fn guest_memory_begins_at_large_pages() {
        for size in [64 << 20, 128 << 20, 4 << 30] {
            let memory = allocate(size, None).unwrap();
            for range in layout::ram(size) {
                let host = memory.get_host_address(GuestAddress(range.start)).unwrap();
                assert_eq!(host as usize % (2 << 20), 0, "{range:x?} of {size:#x}");
            }
        }
    }

    /// What the kernel says of the mapping that has this address.
    fn flags_of(address: u64) -> String {
        let text = fs_err::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in text.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let ends = range.map(|(a, b)| [a, b].map(|end| u64::from_str_radix(end, 16)));
            match ends {
                Some([Ok(start), Ok(end)]) => inside = (start..end).contains(&address),
                _ if inside && line.starts_with("VmFlags:") => return line.to_owned(),
                _ => {}
            }
        }
        panic!("{address:#x} is not mapped");
    }

    #[test]
    fn guest_memory_is_not_dumped_and_comes_in_large_pages() {
        let memory = allocate(64 << 20, None).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        let flags = flags_of(host as u64);
        for flag in ["dd", "hg"] {
            assert!(flags.split(' ').any(|found| found == flag), "{flag} is not in {flags}");
        }
    }

    #[test]
    fn huge_pages_that_are_not_there_are_an_error_with_numbers() {
        let free = HugePages::Size2Mi.free();
        // More than any pool of a machine that runs tests.
        let error = allocate(512 << 30, Some(HugePages::Size2Mi)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("262144 huge pages of 2097152 bytes"), "{text}");
        if let Some(free) = free {
            assert!(text.contains(&format!("{free} are free")), "{text}");
        }
        assert!(error.hint().unwrap().contains("nr_hugepages"), "{:?}", error.hint());
        let looked = HugePages::Size2Mi.check(512 << 30).unwrap_err();
        assert_eq!((looked.to_string(), looked.hint()), (text, error.hint()));
        assert!(HugePages::Size2Mi.check(3 << 20).unwrap_err().to_string().contains("whole huge"));
        assert!(free.is_none() || HugePages::Size2Mi.check(0).is_ok());
    }
}
