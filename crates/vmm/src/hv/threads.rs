//! The threads of the processors, and how others get them out of the guest.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{Buses, Vcpu};
use crate::error::Error;
use crate::exit::{Exit, ExitLatch};
use crate::gate::{Gate, Seat};
use crate::sandbox::{self, Role};
use crate::statistics::ProcessorStatistics;

/// How long a kicked thread may take before it is kicked again: a signal that arrives just before
/// the thread enters the guest is lost.
pub(crate) const KICK_EVERY: Duration = Duration::from_millis(2);

/// The processors as other threads see them.
#[derive(Debug)]
pub(crate) struct Crew {
    gate: Arc<Gate>,
    seats: Vec<Arc<Seat>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Crew {
    /// A crew of `processors`, none of which runs yet, behind `gate`.
    pub(crate) fn new(processors: u32, gate: Arc<Gate>) -> Self {
        let seats = (0..processors).map(|_| Arc::default()).collect();
        Self { gate, seats, threads: Mutex::default() }
    }

    /// Kicks those processors that are in the guest; false if none is. One can be there before others
    /// have its thread's handle: it is kicked the next time.
    pub(crate) fn kick_out(&self) -> bool {
        let mut any = false;
        let threads = self.threads();
        for (index, seat) in self.seats.iter().enumerate() {
            if seat.is_in_guest() {
                any = true;
                threads.get(index).inspect(|thread| kick(thread));
            }
        }
        any
    }

    /// Sends the first processor a non-maskable interrupt.
    pub(crate) fn inject_nmi(&self) {
        let Some(seat) = self.seats.first() else { return };
        seat.ask_for_nmi();
        // Whoever is not in the guest takes it on the way there.
        while seat.is_nmi_due() && seat.is_in_guest() {
            if let Some(thread) = self.threads().first() {
                kick(thread);
            }
            std::thread::sleep(KICK_EVERY);
        }
    }

    /// Whether the first processor has still to take a non-maskable interrupt.
    #[cfg(test)]
    pub(crate) fn is_nmi_due(&self) -> bool {
        self.seats.first().is_some_and(|seat| seat.is_nmi_due())
    }

    pub(crate) fn statistics(&self) -> Vec<ProcessorStatistics> {
        self.seats.iter().map(|seat| seat.statistics()).collect()
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kick(thread: &JoinHandle<()>) {
    // Fails only for a thread that has just ended.
    let _ = thread.kill(SIGRTMIN());
}

/// The threads of all processors. Dropping them stops them.
#[derive(Debug)]
pub(crate) struct VcpuThreads {
    crew: Arc<Crew>,
    exit: Arc<ExitLatch>,
}

impl VcpuThreads {
    /// Starts one thread for each of `vcpus` of the machine called `machine`, which others see as
    /// `crew`. They end when something is posted in `exit`.
    pub(crate) fn start(
        machine: &str,
        vcpus: Vec<Vcpu>,
        buses: &Arc<Buses>,
        exit: &Arc<ExitLatch>,
        crew: Arc<Crew>,
    ) -> Result<Self, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Device {
            device: "processor threads",
            source,
        };
        register_signal_handler(SIGRTMIN(), on_kick).map_err(|error| failed(error.into()))?;
        let started = Self { crew, exit: Arc::clone(exit) };
        for (mut vcpu, seat) in vcpus.into_iter().zip(&started.crew.seats) {
            // Linux keeps the first 15 bytes.
            let name = format!("vcpu{} {machine}", vcpu.id);
            let (buses, exit) = (Arc::clone(buses), Arc::clone(exit));
            let (gate, seat) = (Arc::clone(&started.crew.gate), Arc::clone(seat));
            let body = move || {
                let run = catch_unwind(AssertUnwindSafe(|| vcpu.run(&buses, &exit, &gate, &seat)));
                if run.is_err() {
                    seat.leave();
                    exit.post(Err(Error::Panicked(vcpu.id)));
                }
            };
            let thread = sandbox::spawn(Role::Processor, name, body);
            started.crew.threads().push(thread.map_err(|error| failed(error.into()))?);
        }
        Ok(started)
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.exit.post(Ok(Exit::Stopped));
        loop {
            self.crew.gate.wake();
            let threads = self.crew.threads();
            if threads.iter().all(JoinHandle::is_finished) {
                break;
            }
            threads.iter().filter(|thread| !thread.is_finished()).for_each(kick);
            drop(threads);
            std::thread::sleep(KICK_EVERY);
        }
        for thread in self.crew.threads().drain(..) {
            // A panic of the thread has been posted by it.
            let _ = thread.join();
        }
    }
}

/// Does nothing: a signal that is handled makes `KVM_RUN` return. (The type parameter is libc's
/// `siginfo_t`, which we need not name.)
extern "C" fn on_kick<Info>(_: std::ffi::c_int, _: *mut Info, _: *mut std::ffi::c_void) {}

/// Processors whose guest does nothing but wait for a kick, in place of KVM's. Each entry counts.
#[cfg(test)]
pub(crate) fn start_fake_processors(
    crew: &Arc<Crew>,
    exit: &Arc<ExitLatch>,
    entries: &Arc<std::sync::atomic::AtomicU64>,
) -> VcpuThreads {
    use std::sync::atomic::Ordering;

    register_signal_handler(SIGRTMIN(), on_kick).unwrap();
    for seat in &crew.seats {
        let (gate, seat) = (Arc::clone(&crew.gate), Arc::clone(seat));
        let (exit, entries) = (Arc::clone(exit), Arc::clone(entries));
        let body = move || {
            seat.take();
            while !exit.is_posted() {
                if !seat.enter(&gate) {
                    gate.wait(&exit);
                    continue;
                }
                seat.take_nmi();
                entries.fetch_add(1, Ordering::SeqCst);
                // Ends early at a kick.
                let long = rustix::event::Timespec { tv_sec: 0, tv_nsec: 3_000_000 };
                let _ = rustix::event::poll(&mut [], Some(&long));
                seat.leave();
            }
        };
        crew.threads().push(std::thread::spawn(body));
    }
    VcpuThreads { crew: Arc::clone(crew), exit: Arc::clone(exit) }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::mpsc::channel;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::bus::BusDevice;
    use crate::legacy::SerialPort;

    #[test]
    fn a_processor_whose_thread_has_just_started_is_seen_in_the_guest() {
        let crew = Crew::new(2, Arc::default());
        assert!(!crew.kick_out());
        assert!(crew.seats[1].enter(&crew.gate));
        assert!(crew.kick_out());
        crew.seats[1].leave();
        assert!(!crew.kick_out());
    }

    #[test]
    fn a_console_that_nobody_reads_delays_neither_a_pause_nor_an_end() {
        register_signal_handler(SIGRTMIN(), on_kick).unwrap();
        let (_reader, mut console) = io::pipe().unwrap();
        let capacity = rustix::pipe::fcntl_getpipe_size(&console).unwrap();
        console.write_all(&vec![0; capacity]).unwrap();
        let exit = Arc::new(ExitLatch::default());
        let output: crate::legacy::Output = Arc::new(Mutex::new(Box::new(console)));
        let port = Arc::new(SerialPort::new(EventFd::new(0).unwrap(), output, exit.clone()));
        let (writing, begun) = channel();
        let crew = Arc::new(Crew::new(2, Arc::default()));
        for _ in 0..2 {
            let (port, writing) = (Arc::clone(&port), writing.clone());
            let write = move || {
                writing.send(()).unwrap();
                port.write(0, b"!");
            };
            crew.threads().push(std::thread::spawn(write));
        }
        let threads = VcpuThreads { crew: Arc::clone(&crew), exit };
        begun.recv().unwrap();
        begun.recv().unwrap();
        // Into the system call, most probably.
        std::thread::sleep(Duration::from_millis(50));
        assert!(crew.threads().iter().all(|thread| !thread.is_finished()));
        assert!(!crew.kick_out(), "nobody is in the guest");
        let (ended, end) = channel();
        std::thread::spawn(move || {
            drop(threads);
            ended.send(()).unwrap();
        });
        end.recv_timeout(Duration::from_secs(20)).expect("the threads end");
    }
}
