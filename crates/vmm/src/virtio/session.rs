//! One life of a device between DRIVER_OK and reset: its virtqueues, and the thread that serves
//! them.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Interrupt, Request, VirtioDevice, Virtqueue};
use crate::sandbox::{self, Role};

/// What a device works with.
#[derive(Debug)]
pub struct Session {
    memory: GuestMemoryMmap,
    features: u64,
    queues: Vec<Virtqueue>,
    stop: Arc<Stop>,
    epoll: Epoll,
    events: Vec<EpollEvent>,
    /// Nobody has looked at the virtqueues yet, whose doorbells may have rung before there was a
    /// session to hear them.
    fresh: bool,
}

/// What a device woke up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The driver rang the doorbell of this virtqueue, or may have.
    Queue(u16),
    /// A descriptor of [`Session::watch`] is ready.
    Ready {
        /// The number under which it is watched.
        token: u32,
        /// What for.
        events: EventSet,
    },
}

/// The transport's request to end a session.
#[derive(Debug)]
struct Stop {
    requested: AtomicBool,
    event: EventFd,
}

/// Epoll token of the stop event. Those of the virtqueues are their places in the session, and those of
/// a device's own descriptors have this bit.
const STOP_TOKEN: u64 = u64::MAX;
const DEVICE_TOKEN: u64 = 1 << 32;

/// Events that are taken from the kernel at once.
const EVENTS: usize = 16;

impl Session {
    /// A session over the virtqueues that the driver has enabled.
    pub(super) fn new(
        memory: GuestMemoryMmap,
        features: u64,
        queues: Vec<Virtqueue>,
    ) -> io::Result<Self> {
        let stop = Stop { requested: AtomicBool::new(false), event: EventFd::new(0)? };
        Self::under(Arc::new(stop), memory, features, queues)
    }

    fn under(
        stop: Arc<Stop>,
        memory: GuestMemoryMmap,
        features: u64,
        queues: Vec<Virtqueue>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let listen = |event: &EventFd, events, token| {
            epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(events, token))
        };
        listen(&stop.event, EventSet::IN, STOP_TOKEN)?;
        for (token, queue) in (0..).zip(&queues) {
            // Each ring is an edge, whatever the event counts: nobody has to reset it.
            listen(queue.event(), EventSet::IN | EventSet::EDGE_TRIGGERED, token)?;
        }
        let events = vec![EpollEvent::default(); EVENTS];
        Ok(Self { memory, features, queues, stop, epoll, events, fresh: true })
    }

    /// The features that the driver has accepted.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The guest's memory. Copies are cheap, and requests borrow them.
    pub fn memory(&self) -> GuestMemoryMmap {
        self.memory.clone()
    }

    /// The virtqueue with this number, if the driver has enabled it.
    pub fn queue(&mut self, index: u16) -> Option<&mut Virtqueue> {
        self.queues.iter_mut().find(|queue| queue.index() == index)
    }

    /// The first virtqueue, for a device that has one, or one in each session.
    pub fn any_queue(&mut self) -> Option<&mut Virtqueue> {
        self.queues.first_mut()
    }

    /// Hands the virtqueues out to one session each, for a device that serves them from several threads.
    /// All end when this one is stopped.
    pub fn split(&mut self) -> io::Result<Vec<Self>> {
        let queues = std::mem::take(&mut self.queues);
        let alone = |queue: Virtqueue| {
            let stop = Arc::clone(&self.stop);
            Self::under(stop, self.memory.clone(), self.features, vec![queue])
        };
        queues.into_iter().map(alone).collect()
    }

    /// Serves each virtqueue on a thread of its own, named after `name`, the last of them on this one.
    /// When one ends, however it does, all end. Gives the first error.
    pub fn serve_split(
        &mut self,
        name: &str,
        serve: impl Fn(&mut Self) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let mut sessions = self.split()?;
        let Some(mut last) = sessions.pop() else { return Ok(()) };
        let run = |session: &mut Self| {
            let _end = EndAll(Arc::clone(&session.stop));
            serve(session)
        };
        thread::scope(|scope| {
            // From here on, so that all end where the host has no thread for one.
            let _end = EndAll(Arc::clone(&self.stop));
            let start = |mut session: Self| {
                let index = session.queues.first().map_or(0, Virtqueue::index);
                let thread = thread::Builder::new().name(format!("virtio-{name}-{index}"));
                thread.spawn_scoped(scope, move || run(&mut session))
            };
            let threads = sessions.into_iter().map(start).collect::<io::Result<Vec<_>>>()?;
            let results = std::iter::once(run(&mut last)).chain(
                threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::Panicked))),
            );
            results.fold(Ok(()), Result::and)
        })
    }

    /// Also wakes up for `events` of `fd`, until [`Session::unwatch`] or until the descriptor is closed.
    pub fn watch(&self, fd: &impl AsRawFd, token: u32, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events, DEVICE_TOKEN | u64::from(token));
        match self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.epoll.ctl(ControlOperation::Modify, fd.as_raw_fd(), event)
            }
            watched => watched,
        }
    }

    /// No longer wakes up for `fd`.
    pub fn unwatch(&self, fd: &impl AsRawFd) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default())
    }

    /// Sleeps until there is something to do, or `timeout` has passed, and replaces what is in `wakes`
    /// by it. False once the session is stopped: the device ends then. The first time there is all to do.
    pub fn wait(&mut self, timeout: Option<Duration>, wakes: &mut Vec<Wake>) -> io::Result<bool> {
        wakes.clear();
        if std::mem::take(&mut self.fresh) {
            wakes.extend(self.queues.iter().map(|queue| Wake::Queue(queue.index())));
            return Ok(!self.stop.requested());
        }
        // Rounded up, or a sleep of less than a millisecond would become none, over and over.
        let millis = timeout.map_or(-1, |timeout| {
            i32::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
        });
        let count = match self.epoll.wait(millis, &mut self.events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            count => count?,
        };
        for event in &self.events[..count] {
            match event.data() {
                STOP_TOKEN => {}
                token if token & DEVICE_TOKEN != 0 => {
                    wakes.push(Wake::Ready { token: token as u32, events: event.event_set() });
                }
                token => wakes.push(Wake::Queue(self.queues[token as usize].index())),
            }
        }
        Ok(!self.stop.requested())
    }

    /// Whether the device has to end: for one that has been at work for long.
    pub fn is_stopped(&self) -> bool {
        self.stop.requested()
    }

    /// Answers requests in the order in which they come, until the session is stopped. `answer` is
    /// given the number of the virtqueue, and says how many bytes of the room for its answer it has
    /// filled from the start on.
    pub fn serve(
        &mut self,
        mut answer: impl FnMut(u16, &mut Request<'_>) -> Result<u32, Error>,
    ) -> Result<(), Error> {
        let mut wakes = Vec::new();
        while self.wait(None, &mut wakes)? {
            for wake in &wakes {
                if let Wake::Queue(index) = *wake {
                    self.drain(index, &mut answer)?;
                }
            }
        }
        Ok(())
    }

    /// Answers what virtqueue `index` holds. Ends early when the session is stopped, because a driver
    /// can refill the virtqueue for ever.
    pub fn drain(
        &mut self,
        index: u16,
        mut answer: impl FnMut(u16, &mut Request<'_>) -> Result<u32, Error>,
    ) -> Result<(), Error> {
        let Self { memory, queues, stop, .. } = self;
        let Some(queue) = queues.iter_mut().find(|queue| queue.index() == index) else {
            return Ok(());
        };
        loop {
            queue.disable_notification(memory)?;
            while !stop.requested() {
                let Some(mut request) = queue.next(memory)? else { break };
                let written = answer(index, &mut request)?;
                queue.complete(memory, request.head(), written)?;
            }
            if stop.requested() || !queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }
}

/// Stops the threads of a device when one of them ends.
struct EndAll(Arc<Stop>);

impl Drop for EndAll {
    fn drop(&mut self) {
        self.0.request();
    }
}

impl Stop {
    fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // Fails only for a counter at its limit, which wakes the threads just as well.
        let _ = self.event.write(1);
    }

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
        let (role, name) = (Role::of_device(device.kind()), format!("virtio-{}", device.kind()));
        let thread = sandbox::spawn(role, name, move || {
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
        self.stop.request();
        self.thread.join().expect("the thread catches its panics")
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
