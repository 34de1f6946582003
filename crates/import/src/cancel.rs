//! Stopping an import from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// A switch that stops an import. Clones are the same switch; it is never switched back.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    cancelled: AtomicBool,
    wake: Notify,
}

impl Cancel {
    /// A switch that is off.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the import at its next chunk, or at once where it waits for its source. May be called
    /// from any thread and more than once.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        self.0.wake.notify_waiters();
    }

    /// Whether the switch is on.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Waits until the switch is on.
    pub async fn cancelled(&self) {
        // Registered before the flag is read, so that a call in between is not missed.
        let wake = self.0.wake.notified();
        if !self.is_cancelled() {
            wake.await;
        }
    }
}
