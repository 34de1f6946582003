//! Counts who uses places of a file that must not change hands meanwhile, where no lock can be held:
//! a request that the kernel works on outlives every function.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// The places of one disk that are in use.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    count: AtomicUsize,
    /// Somebody waits until there are none. Spares everybody else a system call.
    awaited: AtomicBool,
    lock: Mutex<()>,
    none: Condvar,
}

/// A place that is in use as long as this lives.
#[derive(Debug)]
pub struct Pinned<'d>(&'d Pins);

impl Pins {
    /// One place more. The caller holds a lock that whoever waits holds alone.
    pub(crate) fn pin(&self) -> Pinned<'_> {
        self.count.fetch_add(1, Ordering::SeqCst);
        Pinned(self)
    }

    /// Waits until no place is in use.
    pub(crate) fn wait_for_none(&self) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.awaited.store(true, Ordering::SeqCst);
        let in_use = |_: &mut ()| self.count.load(Ordering::SeqCst) > 0;
        drop(self.none.wait_while(lock, in_use).unwrap_or_else(PoisonError::into_inner));
        self.awaited.store(false, Ordering::SeqCst);
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let last = self.0.count.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.0.awaited.load(Ordering::SeqCst) {
            drop(self.0.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.0.none.notify_all();
        }
    }
}
