//! How a guest ends, and who hears of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::error::Error;

/// How a run of the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a restart.
    Reset,
    /// The guest's kernel panicked, or its processor could not go on.
    Crash {
        /// What happened, for people.
        why: String,
    },
    /// [`crate::Control::stop`] ended it.
    Stopped,
}

/// The first reason to end that anyone posts; whoever comes later is too late.
#[derive(Debug, Default)]
pub(crate) struct ExitLatch {
    outcome: Mutex<Option<Result<Exit, Error>>>,
    /// Every processor looks here each time it leaves the guest, so it takes no lock.
    is_posted: AtomicBool,
    posted: Condvar,
}

impl ExitLatch {
    pub(crate) fn post(&self, outcome: Result<Exit, Error>) {
        let mut slot = self.outcome.lock().expect("no holder of this lock panics");
        slot.get_or_insert(outcome);
        self.is_posted.store(true, Ordering::Release);
        self.posted.notify_all();
    }

    /// True once there is a reason to end, also after it was taken.
    pub(crate) fn is_posted(&self) -> bool {
        self.is_posted.load(Ordering::Acquire)
    }

    /// Waits for the first reason to end; it stays posted.
    pub(crate) fn wait(&self) {
        let slot = self.outcome.lock().expect("no holder of this lock panics");
        let waited = self.posted.wait_while(slot, |slot| slot.is_none());
        drop(waited.expect("no holder of this lock panics"));
    }

    /// Waits no longer than `limit`. False if there is no reason to end then.
    pub(crate) fn wait_for(&self, limit: Duration) -> bool {
        let slot = self.outcome.lock().expect("no holder of this lock panics");
        let waited = self.posted.wait_timeout_while(slot, limit, |slot| slot.is_none());
        !waited.expect("no holder of this lock panics").1.timed_out()
    }

    /// The reason, which is there after [`ExitLatch::wait`].
    pub(crate) fn take(&self) -> Option<Result<Exit, Error>> {
        self.outcome.lock().expect("no holder of this lock panics").take()
    }
}
