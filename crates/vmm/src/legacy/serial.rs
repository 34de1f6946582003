//! The first serial port, which is the guest's console.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::exit::ExitLatch;

/// Where the guest's output goes; shared, because the port is made anew at each start.
pub(crate) type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// How long input waits before it looks again whether the guest reads. A guest that has put the
/// port into loop-back does not tell when it leaves it.
const INPUT_RETRY: Duration = Duration::from_millis(50);

pub(crate) struct SerialPort {
    port: Mutex<Serial<Interrupt, Drained, Terminal>>,
    drained: Arc<Condvar>,
    exit: Arc<ExitLatch>,
}

impl SerialPort {
    /// A port whose interrupt line is `interrupt`, in a machine that ends with `exit`.
    pub(crate) fn new(interrupt: EventFd, output: Output, exit: Arc<ExitLatch>) -> Self {
        let drained = Arc::new(Condvar::new());
        let events = Drained(Arc::clone(&drained));
        let terminal = Terminal { output, exit: Arc::clone(&exit) };
        let port = Serial::with_events(Interrupt(interrupt), events, terminal);
        Self { port: Mutex::new(port), drained, exit }
    }

    /// Types `bytes` into the guest, as fast as it reads them. Gives up when the machine ends.
    pub(crate) fn feed(&self, mut bytes: &[u8]) {
        let mut port = self.port.lock().expect("no holder of this lock panics");
        while !bytes.is_empty() && !self.exit.is_posted() {
            match port.enqueue_raw_bytes(bytes) {
                Ok(taken) if taken > 0 => bytes = &bytes[taken..],
                _ => {
                    let waited = self.drained.wait_timeout(port, INPUT_RETRY);
                    port = waited.expect("no holder of this lock panics").0;
                }
            }
        }
    }
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").finish_non_exhaustive()
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut port = self.port.lock().expect("no holder of this lock panics");
        data.fill(0);
        data[0] = port.read(offset as u8);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut port = self.port.lock().expect("no holder of this lock panics");
        // A console that cannot be written to, such as a closed pipe, does not stop the guest.
        let _ = port.write(offset as u8, data[0]);
    }
}

/// The interrupt line, edge-triggered.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Wakes the input when the guest has read what was there.
struct Drained(Arc<Condvar>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.notify_one();
    }
}

/// The port's end of [`Output`].
struct Terminal {
    output: Output,
    exit: Arc<ExitLatch>,
}

/// How long a terminal that takes no more bytes is left alone before the next try.
const OUTPUT_RETRY: Duration = Duration::from_millis(1);

impl Write for Terminal {
    /// A terminal may take nothing for a while; the guest then waits, as it would for a slow line,
    /// and nothing is lost. Only a machine that ends does not wait.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = self.output.lock().expect("no holder of this lock panics");
        loop {
            match output.write(bytes).map_err(|error| (error.kind(), error)) {
                Err((io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted, _)) => {}
                result => return result.map_err(|(_, error)| error),
            }
            if self.exit.is_posted() {
                return Ok(bytes.len());
            }
            std::thread::sleep(OUTPUT_RETRY);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.lock().expect("no holder of this lock panics").flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps what it is given and is busy every second time.
    #[derive(Clone, Default)]
    struct SlowTerminal(Arc<Mutex<(bool, Vec<u8>)>>);

    impl Write for SlowTerminal {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.0.lock().unwrap();
            state.0 = !state.0;
            if state.0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            state.1.extend_from_slice(&bytes[..1]);
            Ok(1)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port(terminal: impl Write + Send + 'static) -> SerialPort {
        let output: Output = Arc::new(Mutex::new(Box::new(terminal)));
        SerialPort::new(EventFd::new(0).unwrap(), output, Arc::new(ExitLatch::default()))
    }

    /// Never takes anything.
    struct StoppedTerminal;

    impl Write for StoppedTerminal {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_terminal_loses_nothing() {
        let terminal = SlowTerminal::default();
        let port = port(terminal.clone());
        b"Linux version".iter().for_each(|byte| port.write(0, &[*byte]));
        assert_eq!(terminal.0.lock().unwrap().1, b"Linux version");
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole() {
        let port = port(SlowTerminal::default());
        let typed: Vec<u8> = (0..200).collect();
        let read = std::thread::scope(|scope| {
            scope.spawn(|| port.feed(&typed));
            let mut read = Vec::new();
            while read.len() < typed.len() {
                let (mut status, mut byte) = ([0], [0]);
                port.read(5, &mut status);
                if status[0] & 1 != 0 {
                    port.read(0, &mut byte);
                    read.push(byte[0]);
                }
            }
            read
        });
        assert_eq!(read, typed);
    }

    #[test]
    fn neither_direction_waits_for_a_machine_that_has_ended() {
        let port = port(StoppedTerminal);
        port.exit.post(Ok(crate::Exit::Stopped));
        port.feed(&[0; 200]);
        port.write(0, b"!");
    }
}
