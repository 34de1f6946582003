//! A reader whose next bytes can be looked at before they are taken.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::refuse;
use crate::ErrorKind;

/// How many bytes are read at once, and how far one can look ahead without the buffer growing.
pub(super) const BUFFER: usize = 128 << 10;

/// What the readers of one stack share.
#[derive(Debug)]
pub(super) struct Gauge {
    /// How far the outermost container has been read.
    position: AtomicU64,
    /// Nobody wants the rest.
    stopped: AtomicBool,
    /// How many bytes may still come out of all readers, the outermost excepted.
    budget: AtomicU64,
}

impl Gauge {
    pub(super) const fn new(budget: u64) -> Self {
        Self {
            position: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            budget: AtomicU64::new(budget),
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Makes whoever reads fail soon.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn spend(&self, len: usize) -> io::Result<()> {
        let spent = self.budget.fetch_sub(len as u64, Ordering::Relaxed);
        if spent < len as u64 {
            let what = "the disk does not begin near the start of its archive";
            return Err(refuse(ErrorKind::TooLarge, what));
        }
        Ok(())
    }
}

/// Buffers a reader. Once that has ended it is not asked again.
pub(super) struct Peek {
    inner: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    ended: bool,
    outermost: bool,
    gauge: Arc<Gauge>,
}

impl Peek {
    pub(super) fn new(inner: Box<dyn Read + Send>, gauge: Arc<Gauge>) -> Self {
        let buffer = vec![0; BUFFER];
        Self { inner, buffer, start: 0, end: 0, ended: false, outermost: false, gauge }
    }

    /// The reader of the file itself, whose progress is the position.
    pub(super) fn outermost(inner: Box<dyn Read + Send>, gauge: Arc<Gauge>) -> Self {
        Self { outermost: true, ..Self::new(inner, gauge) }
    }

    /// The next `len` bytes, fewer only where the end is nearer. They are not taken.
    pub(super) fn head(&mut self, len: usize) -> io::Result<&[u8]> {
        while self.end - self.start < len && !self.ended {
            if self.buffer.len() - self.start < len {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
                self.buffer.resize(self.buffer.len().max(len), 0);
            }
            self.fill()?;
        }
        Ok(&self.buffer[self.start..self.end.min(self.start + len)])
    }

    fn fill(&mut self) -> io::Result<()> {
        let Self { inner, buffer, end, ended, .. } = self;
        let len = pull(inner, &mut buffer[*end..], &self.gauge)?;
        *end += len;
        *ended = len == 0;
        if self.outermost { Ok(()) } else { self.gauge.spend(len) }
    }

    fn advance(&self, len: usize) {
        if self.outermost {
            self.gauge.position.fetch_add(len as u64, Ordering::Relaxed);
        }
    }
}

fn pull(inner: &mut dyn Read, buf: &mut [u8], gauge: &Gauge) -> io::Result<usize> {
    if gauge.stopped.load(Ordering::Relaxed) {
        return Err(io::Error::other("stopped"));
    }
    inner.read(buf)
}

impl BufRead for Peek {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end && !self.ended {
            (self.start, self.end) = (0, 0);
            self.fill()?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        self.advance(len);
    }
}

impl Read for Peek {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end && !self.ended && !self.outermost && buf.len() >= BUFFER {
            let len = pull(&mut self.inner, buf, &self.gauge)?;
            self.ended = len == 0;
            self.gauge.spend(len)?;
            return Ok(len);
        }
        let from = self.fill_buf()?;
        let len = from.len().min(buf.len());
        buf[..len].copy_from_slice(&from[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl fmt::Debug for Peek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peek")
            .field("buffered", &(self.end - self.start))
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in parts of odd lengths.
    struct Odd(Vec<u8>, usize);

    impl Read for Odd {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1 % 7 + 1;
            let len = self.1.min(buf.len()).min(self.0.len());
            buf[..len].copy_from_slice(&self.0[..len]);
            self.0.drain(..len);
            Ok(len)
        }
    }

    #[test]
    fn what_was_looked_at_is_still_there() {
        let data: Vec<u8> = (0..3 * BUFFER).map(|i| (i / 7) as u8).collect();
        for buf_len in [1000, 2 * BUFFER] {
            let gauge = Arc::new(Gauge::new(0));
            let mut peek =
                Peek::outermost(Box::new(Odd(data[..20_000].to_vec(), 0)), gauge.clone());
            let (mut back, mut buf) = (Vec::new(), vec![0; buf_len]);
            for len in [1, 512, 3, 700].into_iter().cycle() {
                let at = back.len();
                assert_eq!(peek.head(len).unwrap(), &data[at..(at + len).min(20_000)]);
                let len = peek.read(&mut buf).unwrap();
                back.extend_from_slice(&buf[..len]);
                if len == 0 {
                    break;
                }
            }
            assert!(back == data[..20_000]);
            assert_eq!(gauge.position(), 20_000);
        }
        let mut peek = Peek::outermost(Box::new(Odd(data.clone(), 0)), Arc::new(Gauge::new(0)));
        assert_eq!(peek.head(2 * BUFFER + 5).unwrap(), &data[..2 * BUFFER + 5]);
    }

    #[test]
    fn the_budget_and_the_stop_end_it() {
        let gauge = Arc::new(Gauge::new(10));
        let mut peek = Peek::new(Box::new(io::repeat(0)), gauge.clone());
        assert!(peek.head(11).is_err());
        let mut peek = Peek::outermost(Box::new(io::repeat(0)), gauge.clone());
        peek.head(11).unwrap();
        gauge.stop();
        assert!(peek.head(BUFFER + 1).is_err());
    }
}
