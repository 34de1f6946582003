//! The serial port of a machine on this side: what the guest writes goes to the foreground, to a log and
//! to everyone who is attached; what anyone types goes to the guest.
//!
//! Only the foreground holds up the guest, as a slow line would. Everybody else gets what they can take.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::SerialLog;
use crate::control::Backlog;

/// Bytes of output that are kept for who attaches later.
const SCROLLBACK_MAX: usize = 64 << 10;

/// How often who types looks whether anyone still wants it.
const TYPE_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The serial port of a machine, over all its runs. Clones are the same port.
#[derive(Clone, Default)]
pub struct Console(Arc<Shared>);

#[derive(Default)]
struct Shared {
    output: Mutex<Output>,
    input: Mutex<Option<Arc<PipeWriter>>>,
}

#[derive(Default)]
struct Output {
    scrollback: VecDeque<u8>,
    attached: Vec<Backlog>,
    log: Option<SerialLog>,
}

impl Console {
    /// A port whose output goes to `log` too.
    pub fn new(log: Option<SerialLog>) -> Self {
        let output = Mutex::new(Output { log, ..Output::default() });
        Self(Arc::new(Shared { output, input: Mutex::default() }))
    }

    /// Where a machine's output goes: through here, and to `foreground`, for which it waits.
    pub fn output(&self, foreground: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Tee { console: self.clone(), foreground })
    }

    /// The input of the machine that starts now; the one before gets no more keys.
    pub fn keys(&self) -> io::Result<PipeReader> {
        let (reader, writer) = io::pipe()?;
        // A guest that reads nothing must not hold up who types.
        fcntl_setfl(&writer, fcntl_getfl(&writer)? | OFlags::NONBLOCK)?;
        *self.0.input.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(writer));
        Ok(reader)
    }

    /// Types `bytes`. Waits while the guest's input is full, unless `gives_up` says that nobody wants them
    /// typed any more. Between two runs there is nobody to type to.
    pub fn type_in(&self, mut bytes: &[u8], gives_up: &dyn Fn() -> bool) {
        while !bytes.is_empty() {
            let input = self.0.input.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(input) = input else { return };
            match (&*input).write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !gives_up() => {
                    let _ = poll(&mut [PollFd::new(&*input, PollFlags::OUT)], Some(&TYPE_WAIT));
                }
                Err(_) => return,
            }
        }
    }

    /// From now on what the guest writes goes to `client` too, beginning with the last output from before
    /// if it wants that; after what `answer` puts there, and with nothing lost between.
    pub(crate) fn attach(&self, client: &Backlog, scrollback: bool, answer: impl FnOnce()) {
        let mut output = self.output_now();
        answer();
        if scrollback {
            client.stream(output.scrollback.make_contiguous());
        }
        output.attached.push(client.clone());
    }

    /// Nobody is attached any more; returns who was.
    pub(crate) fn detach_all(&self) -> Vec<Backlog> {
        std::mem::take(&mut self.output_now().attached)
    }

    fn take(&self, bytes: &[u8]) {
        let mut output = self.output_now();
        let excess = (output.scrollback.len() + bytes.len()).saturating_sub(SCROLLBACK_MAX);
        let gone = excess.min(output.scrollback.len());
        output.scrollback.drain(..gone);
        output.scrollback.extend(&bytes[excess - gone..]);
        output.attached.retain(|client| {
            client.stream(bytes);
            !client.is_closed()
        });
        if let Some(log) = &mut output.log {
            log.write(bytes);
        }
    }

    fn output_now(&self) -> MutexGuard<'_, Output> {
        self.0.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

/// Output of one run.
struct Tee {
    console: Console,
    foreground: Box<dyn Write + Send>,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.console.take(bytes);
        // Whoever stopped reading in the foreground stops nobody else.
        let _ = self.foreground.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.foreground.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn client(console: &Console, scrollback: bool) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let backlog = Backlog::default();
        backlog.start_sending(ours).unwrap();
        console.attach(&backlog, scrollback, || {});
        theirs
    }

    fn read(mut client: &UnixStream, len: usize) -> String {
        let mut bytes = vec![0; len];
        client.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn everyone_sees_the_output_and_who_comes_late_its_end() {
        let console = Console::default();
        let mut output = console.output(Box::new(io::sink()));
        let early = client(&console, true);
        output.write_all(b"login: ").unwrap();
        let (late, fresh) = (client(&console, true), client(&console, false));
        output.write_all(b"root").unwrap();
        assert_eq!(read(&early, 11), "login: root");
        assert_eq!(read(&late, 11), "login: root");
        assert_eq!(read(&fresh, 4), "root");
        for backlog in console.detach_all() {
            backlog.close();
        }
        assert_eq!((&early).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_scrollback_has_a_limit() {
        let console = Console::default();
        let mut output = console.output(Box::new(io::sink()));
        for len in [SCROLLBACK_MAX - 1, 5, 2 * SCROLLBACK_MAX, 3] {
            output.write_all(&vec![b'a' + (len % 7) as u8; len]).unwrap();
            assert!(console.output_now().scrollback.len() <= SCROLLBACK_MAX);
        }
        output.write_all(b"end").unwrap();
        let scrollback = Vec::from(console.output_now().scrollback.clone());
        assert_eq!((scrollback.len(), scrollback.ends_with(b"end")), (SCROLLBACK_MAX, true));
    }

    #[test]
    fn a_guest_that_reads_nothing_holds_up_who_types_only_as_long_as_they_wish() {
        let console = Console::default();
        // Nobody there.
        console.type_in(b"lost", &|| false);
        let _reader = console.keys().unwrap();
        console.type_in(&vec![b'x'; 1 << 20], &|| true);
        // The next machine's input is empty again.
        let _next = console.keys().unwrap();
        console.type_in(b"root\n", &|| false);
    }

    #[test]
    fn a_foreground_that_is_gone_stops_nobody() {
        let console = Console::default();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut output = console.output(Box::new(writer));
        let client = client(&console, false);
        output.write_all(b"on and on").unwrap();
        assert_eq!(read(&client, 9), "on and on");
    }
}
