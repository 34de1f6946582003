//! Where the bytes of a container come from: collected chunks, or another thread.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use crossbeam_channel::Receiver;

/// The chunks that have come so far. Where they end and the stream has not, reading fails with
/// [`io::ErrorKind::WouldBlock`].
pub(super) struct Collected {
    chunks: std::vec::IntoIter<Bytes>,
    current: Bytes,
    ended: bool,
}

impl Collected {
    pub(super) fn new(chunks: Vec<Bytes>, ended: bool) -> Self {
        Self { chunks: chunks.into_iter(), current: Bytes::new(), ended }
    }
}

impl Read for Collected {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.next() {
                Some(chunk) => self.current = chunk,
                None if self.ended => return Ok(0),
                None => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
        Ok(take(&mut self.current, buf))
    }
}

/// The parts that another thread sends. An empty one is the end; without it the sender has given up.
pub(super) struct Parts {
    receiver: Receiver<Bytes>,
    current: Bytes,
    ended: bool,
}

impl Parts {
    pub(super) const fn new(receiver: Receiver<Bytes>) -> Self {
        Self { receiver, current: Bytes::new(), ended: false }
    }
}

impl Read for Parts {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.ended {
            self.current = self.receiver.recv().map_err(|_| io::Error::other("stopped"))?;
            self.ended = self.current.is_empty();
        }
        Ok(take(&mut self.current, buf))
    }
}

fn take(from: &mut Bytes, buf: &mut [u8]) -> usize {
    let len = from.len().min(buf.len());
    from.copy_to_slice(&mut buf[..len]);
    len
}
