//! What goes over a guest's wire, written to a file that Wireshark and tcpdump read: the classic format of
//! pcap(5) with nanoseconds. Checksums that the guest or the host leave to others are not in it.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::time::SystemTime;

use super::FRAME_MAX;

/// "Time in nanoseconds", version 2.4, and Ethernet frames (pcap-savefile(5)).
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
const ETHERNET: u32 = 1;

/// The most bytes of a file. What comes then is not written.
const CAPTURE_MAX: u64 = 1 << 30;

/// A file of captured frames.
pub struct Capture {
    /// None once the file is full or cannot be written.
    file: Option<BufWriter<Box<dyn Write + Send>>>,
    len: u64,
    clock: fn() -> SystemTime,
}

impl Capture {
    /// Writes frames to `file`, which is empty, until it has 1 GiB.
    #[expect(clippy::disallowed_methods, reason = "frames are captured when they pass")]
    pub fn new(file: Box<dyn Write + Send>) -> io::Result<Self> {
        Self::with_clock(file, SystemTime::now)
    }

    fn with_clock(file: Box<dyn Write + Send>, clock: fn() -> SystemTime) -> io::Result<Self> {
        let mut capture = Self { file: Some(BufWriter::new(file)), len: 0, clock };
        let mut header = MAGIC.to_le_bytes().to_vec();
        VERSION.iter().for_each(|number| header.extend(number.to_le_bytes()));
        for word in [0, 0, FRAME_MAX as u32, ETHERNET] {
            header.extend(word.to_le_bytes());
        }
        capture.write(&[&header])?;
        capture.flush()?;
        Ok(capture)
    }

    /// Adds a frame that passes now. An error is told once: the file ends there.
    pub fn frame(&mut self, frame: &[u8]) -> io::Result<()> {
        let now = (self.clock)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut header = [0; 16];
        let len = frame.len() as u32;
        let words = [now.as_secs() as u32, now.subsec_nanos(), len, len];
        for (slot, word) in header.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        self.write(&[&header, frame])
    }

    /// Puts what was captured into the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.attempt(|file| file.flush())
    }

    fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.len += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let is_full = self.len > CAPTURE_MAX;
        self.attempt(|file| {
            if is_full {
                file.flush()?;
                return Err(io::Error::other(format!("it is full with {CAPTURE_MAX} bytes")));
            }
            parts.iter().try_for_each(|part| file.write_all(part))
        })
    }

    fn attempt(
        &mut self,
        write: impl FnOnce(&mut BufWriter<Box<dyn Write + Send>>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let done = write(file);
        if done.is_err() {
            self.file = None;
        }
        done
    }
}

impl fmt::Debug for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capture").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn frames_stand_in_the_file_with_their_times() {
        let shared = Shared::default();
        let clock = || SystemTime::UNIX_EPOCH + Duration::new(0x0102_0304, 7);
        let mut capture = Capture::with_clock(Box::new(shared.clone()), clock).unwrap();
        capture.frame(b"frame").unwrap();
        capture.flush().unwrap();
        let bytes = shared.0.lock().unwrap();
        assert_eq!(&bytes[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(&bytes[20..], b"\x01\0\0\0\x04\x03\x02\x01\x07\0\0\0\x05\0\0\0\x05\0\0\0frame");
    }

    #[test]
    fn a_full_file_is_told_once_and_grows_no_more() {
        let shared = Shared::default();
        let mut capture = Capture::new(Box::new(shared.clone())).unwrap();
        capture.len = CAPTURE_MAX - 20;
        assert!(capture.frame(b"frame").is_err());
        assert!(capture.frame(b"frame").is_ok());
        assert_eq!(shared.0.lock().unwrap().len(), 24);
    }
}
