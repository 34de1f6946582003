//! What else of the host's kernel a machine uses.

#![expect(unsafe_code, reason = "Landlock tells its version by a system call only")]

use std::io;

/// Whether this process may use io_uring.
///
/// # Errors
///
/// The kernel has none, or forbids it.
pub fn probe_io_uring() -> io::Result<()> {
    io_uring::IoUring::new(1).map(drop)
}

/// The version of Landlock's interface; `None` where it is off or the kernel is too old.
pub fn landlock_version() -> Option<u32> {
    /// `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call makes nothing and reads no memory.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION)
    };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landlock_is_there_if_the_kernel_lists_it() {
        let Ok(modules) = fs_err::read_to_string("/sys/kernel/security/lsm") else { return };
        assert_eq!(modules.contains("landlock"), landlock_version().is_some());
    }
}
