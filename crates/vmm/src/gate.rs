//! Where processors wait while their machine is paused, and how others know which of them are in the
//! guest.
//!
//! A processor says that it is in the guest, and then looks whether the gate is closed; who closes the
//! gate then looks who is in the guest. In a single order of all these accesses one of the two sees the
//! other, so that no processor slips through.

#![expect(unsafe_code, reason = "the clock of another thread is read")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::exit::ExitLatch;
use crate::statistics::ProcessorStatistics;

/// The gate of a machine, open at first.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    lock: Mutex<()>,
    moved: Condvar,
}

impl Gate {
    /// Closes or opens it.
    pub(crate) fn set_closed(&self, closed: bool) {
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(closed, Ordering::SeqCst);
        self.moved.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits until the gate opens or the machine ends. Who ends it calls [`Gate::wake`].
    pub(crate) fn wait(&self, exit: &ExitLatch) {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |(): &mut ()| self.is_closed() && !exit.is_posted();
        drop(self.moved.wait_while(held, waits).unwrap_or_else(PoisonError::into_inner));
    }

    /// Lets those who wait look whether their machine has ended.
    pub(crate) fn wake(&self) {
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.moved.notify_all();
    }
}

/// Why a processor left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitReason {
    PortRead,
    PortWrite,
    MemoryRead,
    MemoryWrite,
    Interrupted,
    Other,
}

/// The names of the reasons, in their order.
const REASONS: [&str; 6] =
    ["port-read", "port-write", "memory-read", "memory-write", "interrupted", "other"];

/// What other threads know of one processor.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    in_guest: AtomicBool,
    nmi: AtomicBool,
    exits: [AtomicU64; REASONS.len()],
    /// The clock that counts the time of the processor's thread.
    clock: OnceLock<libc::clockid_t>,
}

impl Seat {
    /// Remembers the clock of the calling thread, which is this processor's.
    pub(crate) fn take(&self) {
        let mut clock = 0;
        // SAFETY: a thread's own handle is valid, and there is room for the answer.
        let found = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
        if found == 0 {
            let _ = self.clock.set(clock);
        }
    }

    /// Says that the processor enters the guest; false if it must not.
    pub(crate) fn enter(&self, gate: &Gate) -> bool {
        self.in_guest.store(true, Ordering::SeqCst);
        let enters = !gate.is_closed();
        if !enters {
            self.in_guest.store(false, Ordering::SeqCst);
        }
        enters
    }

    /// The processor is back.
    pub(crate) fn leave(&self) {
        self.in_guest.store(false, Ordering::SeqCst);
    }

    pub(crate) fn is_in_guest(&self) -> bool {
        self.in_guest.load(Ordering::SeqCst)
    }

    /// Counts a reason for having left. Only the processor's own thread counts.
    pub(crate) fn count(&self, reason: ExitReason) {
        let count = &self.exits[reason as usize];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Asks for a non-maskable interrupt at the next entry.
    pub(crate) fn ask_for_nmi(&self) {
        self.nmi.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_nmi_due(&self) -> bool {
        self.nmi.load(Ordering::SeqCst)
    }

    /// Takes the wish for a non-maskable interrupt.
    pub(crate) fn take_nmi(&self) -> bool {
        self.nmi.load(Ordering::SeqCst) && self.nmi.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn statistics(&self) -> ProcessorStatistics {
        let counts = self.exits.iter().map(|count| count.load(Ordering::Relaxed));
        ProcessorStatistics {
            time: self.clock.get().copied().and_then(time_on_cpu),
            exits: REASONS.into_iter().zip(counts).collect(),
        }
    }
}

/// Time on a processor of the host, the guest's included; `None` for a thread that has ended.
fn time_on_cpu(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: there is room for the answer. A clock whose thread has ended is an error.
    let read = unsafe { libc::clock_gettime(clock, &mut time) };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    (read == 0).then(|| Duration::new(seconds, time.tv_nsec as u32))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn nobody_enters_while_the_gate_is_closed() {
        let (gate, seat) = (Gate::default(), Seat::default());
        assert!(seat.enter(&gate) && seat.is_in_guest());
        seat.leave();
        gate.set_closed(true);
        assert!(!seat.enter(&gate) && !seat.is_in_guest());
        gate.set_closed(false);
        assert!(seat.enter(&gate));
    }

    #[test]
    fn who_waits_goes_on_when_the_gate_opens_or_the_machine_ends() {
        for ends in [false, true] {
            let (gate, exit) = (Arc::new(Gate::default()), Arc::new(ExitLatch::default()));
            gate.set_closed(true);
            let waiting = thread::spawn({
                let (gate, exit) = (gate.clone(), exit.clone());
                move || gate.wait(&exit)
            });
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            if ends {
                exit.post(Ok(crate::Exit::Stopped));
                gate.wake();
            } else {
                gate.set_closed(false);
            }
            waiting.join().unwrap();
        }
    }

    #[test]
    fn a_seat_knows_its_threads_time_and_exits() {
        let seat = Seat::default();
        assert_eq!(seat.statistics().time, None);
        seat.take();
        let before = seat.statistics().time.unwrap();
        let spent = (0..20_000_000_u64).fold(0, |sum: u64, n| sum.wrapping_mul(31) ^ n);
        std::hint::black_box(spent);
        seat.count(ExitReason::PortWrite);
        seat.count(ExitReason::PortWrite);
        let after = seat.statistics();
        assert!(after.time.unwrap() > before);
        assert_eq!(after.exits[1], ("port-write", 2));
        assert_eq!(after.exits.iter().map(|(_, count)| count).sum::<u64>(), 2);
    }

    #[test]
    fn a_wish_for_an_nmi_is_taken_once() {
        let seat = Seat::default();
        assert!(!seat.take_nmi());
        seat.ask_for_nmi();
        assert!(seat.is_nmi_due() && seat.take_nmi() && !seat.take_nmi());
    }
}
