//! What waits to be sent to one client: a queue with a limit, and the thread that empties it.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes that wait for a client. A console's whole scrollback fits in.
pub(crate) const BACKLOG_MAX: usize = 1 << 20;

/// The queue. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backlog(Arc<(Mutex<Waiting>, Condvar)>);

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Bytes that were left out since the last one that was not.
    lost: u64,
    /// Nothing more comes.
    closed: bool,
    /// Everything that was taken is sent.
    idle: bool,
}

impl Backlog {
    /// Appends an object that is sent as a whole or, for want of room, not at all; tells which.
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        let mut waiting = self.lock();
        let fits = !waiting.closed && waiting.bytes.len() + bytes.len() <= BACKLOG_MAX;
        if fits {
            waiting.bytes.extend(bytes);
            self.0.1.notify_all();
        }
        fits
    }

    /// Appends an object for which there is always room: there is one at a time.
    pub(super) fn push_always(&self, bytes: &[u8]) {
        self.lock().bytes.extend(bytes);
        self.0.1.notify_all();
    }

    /// Appends to a stream. For want of room the end of it is left out, and the client is told how much
    /// once there is room again.
    pub(crate) fn stream(&self, bytes: &[u8]) {
        let mut waiting = self.lock();
        if waiting.closed {
            return;
        }
        // Room that is worth a note, so that a slow reader does not get notes only.
        if waiting.lost > 0 && waiting.bytes.len() <= BACKLOG_MAX / 2 {
            let note = format!("\r\n[bootyard: {} bytes were left out here]\r\n", waiting.lost);
            waiting.bytes.extend(note.as_bytes());
            waiting.lost = 0;
        }
        let room = match waiting.lost {
            0 => BACKLOG_MAX.saturating_sub(waiting.bytes.len()).min(bytes.len()),
            _ => 0,
        };
        waiting.bytes.extend(&bytes[..room]);
        waiting.lost += (bytes.len() - room) as u64;
        self.0.1.notify_all();
    }

    /// Waits until so much has been sent that another object fits in, or the client is gone.
    pub(super) fn wait_for_room(&self) {
        let full = |waiting: &mut Waiting| !waiting.closed && waiting.bytes.len() > BACKLOG_MAX / 2;
        let waited = self.0.1.wait_while(self.lock(), full);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Nothing more comes; what waits is still sent.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_all();
    }

    /// Whether both are the same queue.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Waits until everything is sent, no longer than `limit`.
    pub(super) fn drain(&self, limit: Duration) {
        let busy = |waiting: &mut Waiting| !waiting.bytes.is_empty() || !waiting.idle;
        drop(self.0.1.wait_timeout_while(self.lock(), limit, busy));
    }

    /// Sends to `stream` on a thread of its own, until the queue is closed and empty or the client gone.
    pub(crate) fn start_sending(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let backlog = self.clone();
        let send = move || {
            while let Some(bytes) = backlog.take() {
                if stream.write_all(&bytes).is_err() {
                    backlog.close();
                    backlog.lock().bytes.clear();
                    break;
                }
            }
            let _ = stream.shutdown(Shutdown::Both);
            backlog.lock().idle = true;
            backlog.0.1.notify_all();
        };
        thread::Builder::new().name("control-send".to_owned()).spawn(send).map(drop)
    }

    /// What waits, as soon as there is something; `None` at the end.
    fn take(&self) -> Option<Vec<u8>> {
        let mut waiting = self.lock();
        waiting.idle = true;
        self.0.1.notify_all();
        let empty = |waiting: &mut Waiting| !waiting.closed && waiting.bytes.is_empty();
        waiting = self.0.1.wait_while(waiting, empty).unwrap_or_else(PoisonError::into_inner);
        waiting.idle = false;
        let bytes = std::mem::take(&mut waiting.bytes);
        self.0.1.notify_all();
        (!bytes.is_empty()).then(|| bytes.into())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_slow_reader_is_told_what_it_missed() {
        let backlog = Backlog::default();
        backlog.stream(&vec![b'a'; BACKLOG_MAX - 10]);
        backlog.stream(&[b'b'; 30]);
        backlog.stream(b"lost too");
        assert!(!backlog.push(b"no room"));
        assert_eq!(backlog.take().unwrap().len(), BACKLOG_MAX);
        backlog.stream(b"here again");
        let rest = String::from_utf8(backlog.take().unwrap()).unwrap();
        assert_eq!(rest, "\r\n[bootyard: 28 bytes were left out here]\r\nhere again");
    }

    #[test]
    fn what_waits_at_the_end_is_sent() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let backlog = Backlog::default();
        let long = vec![b'x'; 500_000];
        assert!(backlog.push(&long));
        backlog.start_sending(ours).unwrap();
        backlog.close();
        assert!(!backlog.push(b"late"));
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).unwrap();
        assert_eq!(read, long);
        backlog.drain(Duration::from_secs(10));
    }

    #[test]
    fn a_client_that_goes_holds_up_nobody() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let backlog = Backlog::default();
        backlog.start_sending(ours).unwrap();
        drop(theirs);
        while backlog.push(&[b'x'; 1000]) {
            thread::sleep(Duration::from_millis(1));
        }
        backlog.wait_for_room();
        backlog.drain(Duration::from_secs(10));
        assert!(backlog.is_closed());
    }
}
