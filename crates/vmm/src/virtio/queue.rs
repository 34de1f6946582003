//! A virtqueue as a device sees it: whole, checked requests come out, answers go in, and the driver
//! is interrupted when it wants to be. The ring's layout is the `virtio-queue` crate's business.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::segments::Segments;
use super::{Error, Interrupt};

/// Most descriptors of one request. Linux makes indirect tables longer than the ring, so the ring's
/// size is no limit; this one bounds the memory that a request takes here.
const DESCRIPTORS_MAX: usize = 4096;

/// Avail ring flag: the driver polls (§2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// Places in the rings (§2.7.6, §2.7.8): flags, the index, and what it counts. Behind the heads of the
/// avail ring stands the used index at which the driver wants an interrupt.
const RING_INDEX: u64 = 2;
const AVAIL_HEADS: u64 = 4;
const USED_ELEMENTS: u64 = 4;

/// A virtqueue that the driver has enabled.
#[derive(Debug)]
pub struct Virtqueue {
    index: u16,
    queue: Queue,
    event: EventFd,
    interrupt: Arc<Interrupt>,
    /// How far the used ring was when the driver's wish to be interrupted was last looked at.
    signalled: u16,
}

/// One descriptor chain: what the driver sends, and room for the answer.
pub struct Request<'m> {
    head: u16,
    sent: Segments<'m>,
    room: Segments<'m>,
}

impl Virtqueue {
    /// Takes the addresses that the driver has set up and checks that they lie in `memory`.
    pub(super) fn new(
        index: u16,
        queue: Queue,
        memory: &GuestMemoryMmap,
        event: EventFd,
        interrupt: Arc<Interrupt>,
    ) -> Result<Self, Error> {
        if !queue.is_valid(memory) {
            return Err(Error::Queue { index, source: virtio_queue::Error::FindMemoryRegion });
        }
        Ok(Self { index, queue, event, interrupt, signalled: 0 })
    }

    /// Its number among the device's virtqueues.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Signalled when the driver has made buffers available.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// The next request, if the driver has one.
    pub fn next<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Option<Request<'m>>, Error> {
        let index = self.index;
        let broken = |source| Error::Queue { index, source };
        let next = self.queue.iter(memory).map_err(broken)?.next();
        next.map(|chain| Request::new(index, memory, chain)).transpose()
    }

    /// Takes back the last [`Virtqueue::next`]: the same request is the next one again.
    pub fn undo_next(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives the request of [`Request::head`] back to the driver, and interrupts it if it waits for
    /// that. At least the first `written` bytes of the room for the answer are filled.
    pub fn complete(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), Error> {
        self.put_used(memory, head, written)?;
        self.signal(memory)
    }

    /// Like [`Virtqueue::complete`], but leaves the interrupt to one [`Virtqueue::signal`] for many.
    pub fn put_used(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), Error> {
        self.put_used_together(memory, &[(head, written)])
    }

    /// Gives several requests back, as heads and lengths, that the driver sees all at once: what is one
    /// packet in several buffers.
    pub fn put_used_together(
        &mut self,
        memory: &GuestMemoryMmap,
        used: &[(u16, u32)],
    ) -> Result<(), Error> {
        let (ring, size) = (self.queue.used_ring(), self.queue.size());
        let mut next = self.queue.next_used();
        let broken = |source| self.broken(virtio_queue::Error::GuestMemory(source));
        for &(head, written) in used {
            let element = [u32::from(head).to_le(), written.to_le()];
            let at = GuestAddress(ring + USED_ELEMENTS + 8 * u64::from(next % size));
            memory.write_obj(element, at).map_err(broken)?;
            next = next.wrapping_add(1);
        }
        let index = GuestAddress(ring + RING_INDEX);
        memory.store(next.to_le(), index, Ordering::Release).map_err(broken)?;
        self.queue.set_next_used(next);
        Ok(())
    }

    /// Interrupts the driver if it waits for what was put into the used ring since the last time.
    pub fn signal(&mut self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        if self.driver_waits(memory).map_err(|source| self.broken(source))? {
            self.interrupt.queue(self.index);
        }
        Ok(())
    }

    /// The driver need not ring the doorbell: the device is looking anyway.
    pub fn disable_notification(&mut self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        self.queue.disable_notification(memory).map_err(|source| self.broken(source))
    }

    /// The driver must ring the doorbell from now on. True if it made buffers available before it
    /// could know.
    pub fn enable_notification(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        self.queue.enable_notification(memory).map_err(|source| self.broken(source))
    }

    fn driver_waits(&mut self, memory: &GuestMemoryMmap) -> Result<bool, virtio_queue::Error> {
        let (avail, next) = (self.queue.avail_ring(), self.queue.next_used());
        let load = |at: u64| -> Result<u16, virtio_queue::Error> {
            let value = memory.load(GuestAddress(avail + at), Ordering::Relaxed);
            value.map(u16::from_le).map_err(virtio_queue::Error::GuestMemory)
        };
        // What was used is in memory before the driver's wish is read (§2.7.7.2).
        fence(Ordering::SeqCst);
        let before = std::mem::replace(&mut self.signalled, next);
        if !self.queue.event_idx_enabled() {
            return Ok(load(0)? & AVAIL_NO_INTERRUPT == 0);
        }
        let event = load(AVAIL_HEADS + 2 * u64::from(self.queue.size()))?;
        Ok(next.wrapping_sub(event).wrapping_sub(1) < next.wrapping_sub(before))
    }

    fn broken(&self, source: virtio_queue::Error) -> Error {
        Error::Queue { index: self.index, source }
    }
}

impl<'m> Request<'m> {
    fn new(
        index: u16,
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<Self, Error> {
        let head = chain.head_index();
        let [sent, room] = segments(index, memory, chain)?;
        Ok(Self { head, sent, room })
    }

    /// What identifies the request in the rings.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes of the driver that have not been read.
    pub fn readable(&self) -> usize {
        self.sent.left()
    }

    /// Bytes of room for the answer that have not been written.
    pub fn writable(&self) -> usize {
        self.room.left()
    }

    /// Bytes of the answer that have been written.
    pub fn written(&self) -> u32 {
        u32::try_from(self.room.done()).expect("a chain has less than 2^32 bytes")
    }

    /// What the driver sent, as far as it has not been read.
    pub fn sent(&mut self) -> &mut Segments<'m> {
        &mut self.sent
    }

    /// The room for the answer, as far as it has not been written.
    pub fn room(&mut self) -> &mut Segments<'m> {
        &mut self.room
    }

    /// Cuts off the last `len` bytes of the room for the answer.
    pub fn split_tail(&mut self, len: usize) -> Option<Segments<'m>> {
        self.room.split_off(self.writable().checked_sub(len)?)
    }
}

impl Read for Request<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.sent.read(buf)
    }
}

impl Write for Request<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.room.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("head", &self.head).finish_non_exhaustive()
    }
}

/// The memory that a chain names: what the driver sends, and the room for the answer. The iterator over a
/// chain ends silently where the chain is broken (a loop, a descriptor outside of its table or of
/// memory), so a chain whose last descriptor names a next one is broken.
fn segments<'m>(
    index: u16,
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
) -> Result<[Segments<'m>; 2], Error> {
    let [mut sent, mut room] = [Segments::default(), Segments::default()];
    let mut last = None;
    for (count, descriptor) in chain.enumerate() {
        if count == DESCRIPTORS_MAX {
            return Err(Error::Malformed("too many descriptors"));
        }
        let writable = descriptor.is_write_only();
        if last.is_some_and(|(room, _)| room) && !writable {
            return Err(Error::Malformed("a device-readable descriptor behind a writable one"));
        }
        last = Some((writable, descriptor.has_next()));
        let (to, access) = match writable {
            true => (&mut room, Permissions::Write),
            false => (&mut sent, Permissions::Read),
        };
        let broken = |_| Error::Queue { index, source: virtio_queue::Error::FindMemoryRegion };
        let pieces = memory.get_slices(descriptor.addr(), descriptor.len() as usize, access);
        for piece in pieces.map_err(broken)? {
            to.push(piece.map_err(broken)?);
        }
    }
    match last {
        None => Err(Error::Malformed("the first descriptor cannot be read")),
        Some((_, true)) => Err(Error::Malformed("the descriptor chain is cut off")),
        Some((_, false)) => Ok([sent, room]),
    }
}
