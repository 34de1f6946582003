//! The entropy device (§5.4): fills what the driver offers with the host's randomness.

use std::io::Write;

use rustix::rand::{GetRandomFlags, getrandom};

use super::{Error, Request, Session, VirtioDevice};

/// Device type (§5).
const KIND: u16 = 4;

/// Size of the one virtqueue. Drivers have one request under way, seldom more.
const QUEUE_SIZE: u16 = 8;

/// Most bytes of one answer. Drivers ask for a few dozen; a larger buffer is filled in part, as the
/// specification allows, so that no request keeps the thread busy for long.
const ANSWER_MAX: usize = 4096;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Entropy(());

impl Entropy {
    /// An entropy device.
    pub const fn new() -> Self {
        Self(())
    }
}

impl VirtioDevice for Entropy {
    fn kind(&self) -> u16 {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        session.serve(|_, request| answer(request))
    }
}

fn answer(request: &mut Request<'_>) -> Result<u32, Error> {
    let mut buffer = [0; ANSWER_MAX];
    let wanted = request.writable().min(ANSWER_MAX);
    let mut filled = 0;
    while filled < wanted {
        match getrandom(&mut buffer[filled..wanted], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Host(error.into())),
        }
    }
    request.write_all(&buffer[..filled])?;
    Ok(request.written())
}
