//! A network by passt(1), a process of its own: frames over a UNIX stream, each behind its length in four
//! bytes, the most significant first. It does nothing of virtio's offloads.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;

use vmm_sys_util::epoll::EventSet;

use super::{Backend, FRAME_MAX, HEADER_LEN, Header};

/// Bytes of a frame's length.
const LENGTH_LEN: usize = 4;

/// Bytes that are read at once: a few frames of the largest size.
const READ_MAX: usize = 4 * (LENGTH_LEN + FRAME_MAX);

/// The connection to passt.
#[derive(Debug)]
pub struct Passt {
    stream: UnixStream,
    /// Started for this.
    process: Option<Child>,
    /// What it sent: the bytes from `start` to `end` are not yet the guest's.
    input: Box<[u8]>,
    start: usize,
    end: usize,
    /// The rest of a frame that it has not taken whole.
    output: Vec<u8>,
    is_up: bool,
}

impl Passt {
    /// Connects to the socket of a process that is running.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::new(UnixStream::connect(socket)?)
    }

    /// Speaks with a process over this socket.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            process: None,
            input: vec![0; READ_MAX].into_boxed_slice(),
            start: 0,
            end: 0,
            output: Vec::new(),
            is_up: true,
        })
    }

    /// Keeps the handle of `process`, which was started with the other end of the socket (`--fd`) and ends
    /// with it.
    #[must_use]
    pub fn kept(mut self, process: Child) -> Self {
        self.process = Some(process);
        self
    }

    /// What comes of an operation on the socket: nothing now, or nothing ever again.
    fn done(&mut self, done: io::Result<usize>) -> io::Result<usize> {
        match done {
            Ok(0) => Err(self.gone("it has closed the connection")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(self.gone(&error.to_string())),
            done => done,
        }
    }

    fn gone(&mut self, why: &str) -> io::Error {
        self.is_up = false;
        self.output.clear();
        (self.start, self.end) = (0, 0);
        io::Error::other(format!("passt is gone, and the network with it: {why}"))
    }

    /// The place of the next frame in the input, if all of it is there.
    fn next_frame(&mut self) -> io::Result<Option<std::ops::Range<usize>>> {
        let Some(length) = self.input[self.start..self.end].first_chunk::<LENGTH_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*length) as usize;
        if len > FRAME_MAX {
            return Err(self.gone(&format!("it sent a frame of {len} bytes")));
        }
        let frame = self.start + LENGTH_LEN..self.start + LENGTH_LEN + len;
        Ok((frame.end <= self.end).then_some(frame))
    }

    /// Reads behind what is there. False if there is nothing now.
    fn fill(&mut self) -> io::Result<bool> {
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let read = self.stream.read(&mut self.input[self.end..]);
        let read = self.done(read)?;
        self.end += read;
        Ok(read > 0)
    }
}

impl Backend for Passt {
    fn features(&self) -> u64 {
        0
    }

    fn mtu(&self) -> Option<u16> {
        None
    }

    fn begin(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn interest(&self, has_room: bool) -> EventSet {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, has_room);
        interest.set(EventSet::OUT, !self.output.is_empty());
        interest
    }

    fn poll(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            let written = self.stream.write(&self.output);
            let written = self.done(written)?;
            self.output.drain(..written);
        }
        Ok(())
    }

    fn can_send(&self) -> bool {
        self.output.is_empty()
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let Some(frame) = packet.get(HEADER_LEN..).filter(|_| self.is_up) else { return Ok(()) };
        let length = (frame.len() as u32).to_be_bytes();
        let written = self.stream.write_vectored(&[IoSlice::new(&length), IoSlice::new(frame)]);
        let written = self.done(written)?;
        self.output.extend(length.iter().chain(frame).skip(written));
        Ok(())
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.is_up {
            return Ok(None);
        }
        loop {
            let Some(frame) = self.next_frame()? else {
                if self.fill()? {
                    continue;
                }
                return Ok(None);
            };
            self.start = frame.end;
            let len = HEADER_LEN + frame.len();
            // A frame that is too large is dropped, as on any link.
            if let Some(packet) = packet.get_mut(..len) {
                packet[..HEADER_LEN].copy_from_slice(&Header::default().to_bytes());
                packet[HEADER_LEN..].copy_from_slice(&self.input[frame]);
                return Ok(Some(len));
            }
        }
    }

    fn is_up(&self) -> bool {
        self.is_up
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It ends when its connection does. By now this process may be one that signals nobody; who
            // has not ended yet is reaped by others.
            let _ = self.stream.shutdown(Shutdown::Both);
            let _ = process.try_wait();
        }
    }
}
