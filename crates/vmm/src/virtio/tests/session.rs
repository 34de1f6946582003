//! A device that listens to more than its virtqueues: to its configuration, and to a descriptor of its
//! own; and one that serves its virtqueues from several threads.

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::{DEVICE, Driver, GuestQueue, Machine};
use super::{BUFFER, QUEUE, common};
use crate::virtio::{DeviceConfig, Error, Session, VirtioDevice, Wake};

/// Adds one to its first configuration byte for each write of the driver to the second, and for each
/// signal of its event.
#[derive(Debug)]
struct Counter {
    config: DeviceConfig,
    event: EventFd,
}

const WRITTEN: u32 = 7;
const SIGNALLED: u32 = 8;

impl VirtioDevice for Counter {
    fn kind(&self) -> u16 {
        42
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[4]
    }

    fn config(&self) -> DeviceConfig {
        self.config.clone()
    }

    fn reset(&mut self) {
        self.config.update(|bytes| bytes.fill(0));
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let written = self.config.written().expect("a writable configuration");
        session.watch(written, WRITTEN, EventSet::IN)?;
        session.watch(&self.event, SIGNALLED, EventSet::IN)?;
        let mut wakes = Vec::new();
        while session.wait(None, &mut wakes)? {
            for wake in &wakes {
                match *wake {
                    Wake::Ready { token: WRITTEN, .. } => written.read()?,
                    Wake::Ready { .. } => self.event.read()?,
                    Wake::Queue(_) => continue,
                };
                self.config.update(|bytes| bytes[0] += 1);
            }
        }
        Ok(())
    }
}

#[test]
fn a_configuration_changes_from_both_sides() {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let config = DeviceConfig::writable(vec![0, 0, 9], 1..2).unwrap();
    let device = Counter { config: config.clone(), event: event.try_clone().unwrap() };
    let (machine, _function, address) = Machine::with(device);
    let driver = Driver::bind(&machine, address);
    for _life in 0..2 {
        let _queue = driver.start(0, QUEUE);
        let generation = driver.read::<1>(super::COMMON, 0x15);
        assert_eq!(driver.read::<3>(DEVICE, 0)[..2], [0, 0]);

        machine.mmio_write(driver.registers[&DEVICE], &[5, 6, 7]);
        assert_eq!(machine.interrupt().data, 0x4000, "the configuration's vector");
        assert_eq!(driver.read::<2>(DEVICE, 0), [1, 6], "the driver writes what is its to write");
        assert_ne!(driver.read::<1>(super::COMMON, 0x15), generation);

        event.write(1).unwrap();
        assert_eq!(machine.interrupt().data, 0x4000);
        assert_eq!(driver.read::<1>(DEVICE, 0), [2]);
        driver.reset();
        assert_eq!(config.bytes()[..2], [0, 0]);
    }
}

/// Answers each virtqueue from a thread of its own.
#[derive(Debug)]
struct Parallel;

impl VirtioDevice for Parallel {
    fn kind(&self) -> u16 {
        42
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[4, 4]
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let mut sessions = session.split()?;
        std::thread::scope(|scope| {
            let serve = |session: &mut Session| session.serve(|index, _| Ok(u32::from(index)));
            let threads: Vec<_> =
                sessions.iter_mut().map(|session| scope.spawn(move || serve(session))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })
    }
}

#[test]
fn a_session_is_split_by_virtqueue_and_ends_as_one() {
    let (machine, _function, address) = Machine::with(Parallel);
    let driver = Driver::bind(&machine, address);
    for _life in 0..2 {
        driver.reset();
        driver.add_status(super::ACKNOWLEDGE | super::DRIVER);
        driver.accept(super::VERSION_1);
        driver.add_status(super::FEATURES_OK);
        let mut queues: Vec<_> = [(0, QUEUE), (1, QUEUE + 0x4000)]
            .map(|(index, base)| GuestQueue::set_up(&driver, index, base, false))
            .into();
        driver.enable_vector(1);
        driver.enable_vector(2);
        driver.add_status(super::DRIVER_OK);
        for (index, queue) in (0..).zip(&mut queues) {
            queue.offer(0, &[(BUFFER, 8, true)]);
            queue.ring();
            assert_eq!(machine.interrupt().data, 0x4001 + index);
            assert_eq!(queue.take_used(), Some((0, index)));
        }
        driver.reset();
    }
    assert_eq!(driver.read16(common::QUEUE_SIZE), 4);
}
