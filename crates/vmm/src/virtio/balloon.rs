//! The memory balloon (§5.5): takes memory from the guest and gives it back to the host, as its owner
//! wishes through a [`BalloonControl`], and tells what the guest says of its memory.
//!
//! The guest decides: it inflates the balloon as far as it can spare pages, deflates it where it would
//! otherwise run out of memory, and reports pages that it does not use, balloon or not. What it names
//! may be anything. Numbers that are no memory are passed over, and a page that it names while it uses
//! it costs the guest what is on it, and nobody else anything.
//!
//! Page poisoning and hints of free pages are not offered: the first is the guest's own business, the
//! second is for migration.

mod control;
mod release;

use std::io::Read;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::epoll::EventSet;

use super::{DeviceConfig, Error, Request, Session, VirtioDevice, Wake};
use release::Release;

pub use control::{BalloonControl, GuestFigures};

/// Features (§5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;

/// The virtqueues (§5.5.2): for pages that go, pages that come, figures, and two for reports of free
/// pages. The specification gives them number 4; Linux counts only the virtqueues that it uses, as QEMU
/// does, so that it is number 3, or 2 without figures. Reports of 32 pieces must find room.
const QUEUE_SIZES: [u16; 5] = [128, 128, 16, 128, 128];
const STATISTICS: u16 = 2;

/// What the driver uses a virtqueue for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Inflate,
    Deflate,
    Statistics,
    Report,
    Nothing,
}

impl Use {
    fn of(queue: u16, features: u64) -> Self {
        match queue {
            0 => Self::Inflate,
            1 => Self::Deflate,
            STATISTICS if features & F_STATS_VQ != 0 => Self::Statistics,
            _ if features & F_PAGE_REPORTING != 0 => Self::Report,
            _ => Self::Nothing,
        }
    }
}

/// Bytes of a page as the balloon counts, whatever the guest's own are (§5.5.6).
pub(super) const PAGE: u64 = 4096;

/// Offset and size of the number of pages that the driver says it has given (§5.5.4).
const ACTUAL: usize = 4;
const CONFIG_SIZE: usize = 8;

/// Bytes of page numbers that are read at once.
const CHUNK: usize = 4096;
/// Chunks that are read of one request: 64 Ki pages. What more it names stays with the guest, so that no
/// request keeps the thread for long.
const CHUNKS_MAX: usize = 64;

/// Session token of the wish for new figures.
const WANTED: u32 = 0;

/// The balloon device.
#[derive(Debug)]
pub struct Balloon {
    control: BalloonControl,
    config: DeviceConfig,
    /// The buffer of the last figures, which is returned to the driver to ask for new ones.
    held: Option<u16>,
}

impl Balloon {
    /// A balloon whose owner has `control`. A control has one balloon at a time: the last one.
    pub fn new(control: &BalloonControl) -> std::io::Result<Self> {
        let config = DeviceConfig::writable(vec![0; CONFIG_SIZE], ACTUAL..CONFIG_SIZE)?;
        control.attach(&config);
        Ok(Self { control: control.clone(), config, held: None })
    }

    /// Takes what the driver says of its memory, and keeps its buffer.
    fn take_figures(&mut self, session: &mut Session) -> Result<(), Error> {
        let memory = session.memory();
        // A driver can refill the virtqueue for ever.
        while !session.is_stopped() {
            let Some(queue) = session.queue(STATISTICS) else { return Ok(()) };
            let Some(mut request) = queue.next(&memory)? else {
                if queue.enable_notification(&memory)? {
                    continue;
                }
                return Ok(());
            };
            let figures = GuestFigures::read(&mut request)?;
            self.control.told(figures);
            // A driver has one such buffer. One that has more gets the old one back.
            if let Some(old) = self.held.replace(request.head()) {
                queue.complete(&memory, old, 0)?;
            }
        }
        Ok(())
    }

    /// Asks the driver for new figures, if it has told some before.
    fn ask_for_figures(&mut self, session: &mut Session) -> Result<(), Error> {
        let memory = session.memory();
        let Some(queue) = session.queue(STATISTICS) else { return Ok(()) };
        match self.held.take() {
            Some(head) => queue.complete(&memory, head, 0),
            None => Ok(()),
        }
    }

    fn serve(&mut self, index: u16, session: &mut Session) -> Result<(), Error> {
        let memory = session.memory();
        let release = Release::of(&memory);
        match Use::of(index, session.features()) {
            Use::Statistics => self.take_figures(session),
            Use::Inflate => session.drain(index, |_, request| {
                self.control.released(inflate(request, &memory, &release)?);
                Ok(0)
            }),
            Use::Report => session.drain(index, |_, request| {
                let pieces = request.room().pieces();
                self.control.released(pieces.iter().map(|piece| release.release(piece)).sum());
                Ok(0)
            }),
            // Pages that come back are there when the guest touches them.
            Use::Deflate | Use::Nothing => session.drain(index, |_, _| Ok(0)),
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> u16 {
        VIRTIO_ID_BALLOON as u16
    }

    fn features(&self) -> u64 {
        F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> DeviceConfig {
        self.config.clone()
    }

    fn reset(&mut self) {
        self.held = None;
        self.config.update(|bytes| bytes[ACTUAL..].fill(0));
        self.control.forget_figures();
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let wanted = self.control.wanted().try_clone()?;
        session.watch(&wanted, WANTED, EventSet::IN)?;
        let mut wakes = Vec::new();
        while session.wait(None, &mut wakes)? {
            for wake in &wakes {
                match *wake {
                    Wake::Queue(index) => self.serve(index, session)?,
                    Wake::Ready { .. } => {
                        // Resets the event. Fails only where it was reset already.
                        let _ = wanted.read();
                        self.ask_for_figures(session)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Gives the pages that `request` names back to the host. Returns how many bytes that was.
fn inflate(
    request: &mut Request<'_>,
    memory: &GuestMemoryMmap,
    release: &Release,
) -> Result<u64, Error> {
    let mut released = 0;
    let mut chunk = [0; CHUNK];
    for _ in 0..CHUNKS_MAX {
        let len = request.readable().min(CHUNK) & !3;
        if len == 0 {
            break;
        }
        request.read_exact(&mut chunk[..len])?;
        let numbers = chunk[..len].chunks_exact(4).map(|bytes| {
            u64::from(u32::from_le_bytes(bytes.try_into().expect("chunks of four bytes")))
        });
        for (first, count) in runs(numbers) {
            let (start, len) = (GuestAddress(first * PAGE), (count * PAGE) as usize);
            let Ok(pieces) = memory.get_slices(start, len, Permissions::Write) else { continue };
            // From the first page on that is no memory, nothing of the run is.
            released +=
                pieces.map_while(Result::ok).map(|piece| release.release(&piece)).sum::<u64>();
        }
    }
    Ok(released)
}

/// Joins page numbers that follow one another, upwards or downwards, to runs: first page, and count.
fn runs(numbers: impl Iterator<Item = u64>) -> impl Iterator<Item = (u64, u64)> {
    let mut numbers = numbers.peekable();
    std::iter::from_fn(move || {
        let mut first = numbers.next()?;
        let mut count = 1;
        while let Some(next) = numbers.next_if(|next| *next + 1 == first || *next == first + count)
        {
            first = first.min(next);
            count += 1;
        }
        Some((first, count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_row_are_one_run_in_either_direction() {
        for (numbers, expected) in [
            (&[][..], &[][..]),
            (&[7], &[(7, 1)]),
            (&[7, 8, 9, 20, 21], &[(7, 3), (20, 2)]),
            (&[9, 8, 7, 0], &[(7, 3), (0, 1)]),
            (&[7, 7, 8, 6], &[(7, 1), (6, 3)]),
            (&[0xffff_ffff, 0], &[(0xffff_ffff, 1), (0, 1)]),
        ] {
            assert_eq!(runs(numbers.iter().copied()).collect::<Vec<_>>(), expected, "{numbers:?}");
        }
    }
}
