//! Open files that go over a UNIX socket beside lines of text (`SCM_RIGHTS`, unix(7)).

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Sends a line, and `passed` with its first byte.
pub(super) fn send_line(
    mut stream: &UnixStream,
    line: &[u8],
    passed: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let Some(passed) = passed else { return stream.write_all(line) };
    let passed = [passed];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    beside.push(SendAncillaryMessage::ScmRights(&passed));
    let send = || sendmsg(stream, &[IoSlice::new(line)], &mut beside, SendFlags::NOSIGNAL);
    let sent = retry_on_intr(send)?;
    stream.write_all(&line[sent..])
}

/// Reads what [`send_line`] sends. A file is there when the last byte of its line is.
#[derive(Debug)]
pub(super) struct Inbox {
    stream: UnixStream,
    passed: VecDeque<OwnedFd>,
}

impl Inbox {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, passed: VecDeque::new() }
    }

    /// The oldest file that nobody has taken yet.
    pub(super) fn take_passed(&mut self) -> Option<OwnedFd> {
        self.passed.pop_front()
    }
}

impl Read for Inbox {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let bytes = &mut [IoSliceMut::new(buf)];
        let received = recvmsg(&self.stream, bytes, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                self.passed.extend(passed);
            }
        }
        Ok(received.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Seek};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn files_come_in_the_order_of_their_lines_however_these_are_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.rewind().unwrap();
            file
        };
        let long = [vec![b'x'; 300 << 10], b"\n".to_vec()].concat();
        let sender = std::thread::spawn(move || {
            send_line(&ours, b"none\n", None).unwrap();
            send_line(&ours, b"one\n", Some(file("1").as_fd())).unwrap();
            send_line(&ours, &long, Some(file("2").as_fd())).unwrap();
        });
        let mut reader = BufReader::new(Inbox::new(theirs));
        let mut lines = Vec::new();
        for _ in 0..3 {
            let mut line = Vec::new();
            reader.read_until(b'\n', &mut line).unwrap();
            lines.push(line.len());
        }
        sender.join().unwrap();
        assert_eq!(lines, [5, 4, (300 << 10) + 1]);
        for text in ["1", "2"] {
            let passed = reader.get_mut().take_passed().unwrap();
            assert!(
                rustix::io::fcntl_getfd(&passed).unwrap().contains(rustix::io::FdFlags::CLOEXEC)
            );
            let mut read = String::new();
            std::fs::File::from(passed).read_to_string(&mut read).unwrap();
            assert_eq!(read, text);
        }
        assert!(reader.get_mut().take_passed().is_none());
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
