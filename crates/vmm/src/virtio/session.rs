//! One life of a device between DRIVER_OK and reset: its virtqueues, and the thread that serves
//! them.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Interrupt, Request, VirtioDevice, Virtqueue};

/// What a device works with.
#[derive(Debug)]
pub struct Session {
    memory: GuestMemoryMmap,
    features: u64,
    queues: Vec<Virtqueue>,
    stop: Arc<Stop>,
}

/// The transport's request to end a session.
#[derive(Debug)]
struct Stop {
    requested: AtomicBool,
    event: EventFd,
}

/// Epoll token of the stop event; the virtqueues' are their places in the session.
const STOP_TOKEN: u64 = u64::MAX;

impl Session {
    /// A session over the virtqueues that the driver has enabled.
    pub(super) fn new(
        memory: GuestMemoryMmap,
        features: u64,
        queues: Vec<Virtqueue>,
    ) -> io::Result<Self> {
        let stop = Stop { requested: AtomicBool::new(false), event: EventFd::new(0)? };
        Ok(Self { memory, features, queues, stop: Arc::new(stop) })
    }

    /// The features that the driver has accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Answers requests in the order in which they come, until the session is stopped. `answer` is
    /// given the number of the virtqueue, and says how many bytes of the room for its answer it has
    /// filled from the start on.
    pub fn serve(
        &mut self,
        mut answer: impl FnMut(u16, &mut Request<'_>) -> Result<u32, Error>,
    ) -> Result<(), Error> {
        let Self { memory, queues, stop, .. } = self;
        let epoll = Epoll::new()?;
        watch(&epoll, stop.event.as_raw_fd(), STOP_TOKEN)?;
        for (token, queue) in (0..).zip(queues.iter_mut()) {
            watch(&epoll, queue.event().as_raw_fd(), token)?;
            // The doorbell may have rung before anyone listened.
            drain(queue, memory, stop, &mut answer)?;
        }
        let mut events = vec![EpollEvent::default(); queues.len() + 1];
        loop {
            let count = match epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            if stop.requested() {
                return Ok(());
            }
            for event in events.iter().take(count) {
                let queue = usize::try_from(event.data()).ok().and_then(|at| queues.get_mut(at));
                if let Some(queue) = queue {
                    // Resets the event. Fails only where it was reset already.
                    let _ = queue.event().read();
                    drain(queue, memory, stop, &mut answer)?;
                }
            }
        }
    }
}

/// Answers what `queue` holds. Ends early when the session is stopped, because a driver can refill
/// the virtqueue for ever.
fn drain(
    queue: &mut Virtqueue,
    memory: &GuestMemoryMmap,
    stop: &Stop,
    answer: &mut impl FnMut(u16, &mut Request<'_>) -> Result<u32, Error>,
) -> Result<(), Error> {
    loop {
        queue.disable_notification(memory)?;
        while !stop.requested() {
            let Some(mut request) = queue.next(memory)? else { break };
            let written = answer(queue.index(), &mut request)?;
            queue.complete(memory, request.head(), written)?;
        }
        if stop.requested() || !queue.enable_notification(memory)? {
            return Ok(());
        }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))
}

impl Stop {
    fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}

/// A device that runs on its own thread.
pub(super) struct Worker {
    stop: Arc<Stop>,
    thread: JoinHandle<Box<dyn VirtioDevice>>,
}

impl Worker {
    /// Moves `device` to a new thread and runs it there. When it fails, the driver is told through
    /// `interrupt`. Where the host has no thread for it, the device is lost.
    pub(super) fn start(
        mut device: Box<dyn VirtioDevice>,
        mut session: Session,
        interrupt: Arc<Interrupt>,
    ) -> io::Result<Self> {
        let stop = Arc::clone(&session.stop);
        let thread =
            thread::Builder::new().name(format!("virtio-{}", device.kind())).spawn(move || {
                // A bug in one device ends that device, and not in silence.
                let run = AssertUnwindSafe(|| device.run(&mut session));
                if let Err(fault) = catch_unwind(run).unwrap_or(Err(Error::Panicked)) {
                    interrupt.fail(fault);
                }
                device
            })?;
        Ok(Self { stop, thread })
    }

    /// Ends the session and gives the device back.
    pub(super) fn stop(self) -> Box<dyn VirtioDevice> {
        self.stop.requested.store(true, Ordering::Release);
        // Fails only for a counter at its limit, which wakes the thread just as well.
        let _ = self.stop.event.write(1);
        self.thread.join().expect("the thread catches its panics")
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
