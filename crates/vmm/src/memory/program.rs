//! The program's own code in memory: half of what a machine takes beside its guest, and most of it only
//! needed until the guest starts.

#![expect(unsafe_code, reason = "the loader lists the program's segments by pointers")]

use std::ffi::{c_int, c_void};
use std::ops::Range;

use libc::{PF_W, PT_LOAD, dl_iterate_phdr, dl_phdr_info};
use rustix::mm::{Advice, madvise};

const PAGE: usize = 0x1000;

/// Gives the pages of code and constants back to the page cache. What still runs comes back from there,
/// page by page.
pub(crate) fn release() {
    for segment in segments() {
        let len = segment.len();
        let start = std::ptr::without_provenance_mut::<c_void>(segment.start);
        // SAFETY: what is written to is no part of these segments, so that their pages are those of the
        // file and read the same when they come back. A kernel that refuses has changed nothing.
        let _ = unsafe { madvise(start, len, Advice::LinuxDontNeed) };
    }
}

/// The whole pages of the segments of this program and its libraries that cannot be written to.
fn segments() -> Vec<Range<usize>> {
    /// Adds those of one object.
    unsafe extern "C" fn add(info: *mut dl_phdr_info, _: usize, list: *mut c_void) -> c_int {
        // SAFETY: the loader gives a valid object for the time of this call, with as many headers as it
        // says; `list` is what is passed on below, and nobody else has it now.
        let (base, headers, list) = unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            (info.dlpi_addr as usize, headers, &mut *list.cast::<Vec<Range<usize>>>())
        };
        let constant =
            headers.iter().filter(|part| part.p_type == PT_LOAD && part.p_flags & PF_W == 0);
        list.extend(constant.filter_map(|part| {
            let start = base + part.p_vaddr as usize;
            let range = start.next_multiple_of(PAGE)..(start + part.p_memsz as usize) / PAGE * PAGE;
            (!range.is_empty()).then_some(range)
        }));
        0
    }
    let mut list = Vec::new();
    // SAFETY: `add` does not unwind, and gets the list that it expects.
    unsafe { dl_iterate_phdr(Some(add), (&raw mut list).cast()) };
    list
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static WRITTEN: AtomicUsize = AtomicUsize::new(7);

    #[test]
    fn code_is_released_and_data_is_not() {
        let segments = segments();
        let holds = |address: usize| segments.iter().any(|segment| segment.contains(&address));
        assert!(holds(release as *const () as usize));
        assert!(!holds(&raw const WRITTEN as usize));
        let local = 0;
        assert!(!holds(&raw const local as usize));
        WRITTEN.store(8, Ordering::Relaxed);
        release();
        assert_eq!(WRITTEN.load(Ordering::Relaxed), 8);
    }
}
