//! A child process that is watched: its end by a pidfd, its standard output and error by threads.
#![expect(clippy::disallowed_methods, reason = "engines are child processes")]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Ended, Running, Serial, Woken};
use crate::control::{Remote, wire};
use crate::{Cancel, Error};

/// Lines of standard error that are kept: errors come last.
const STDERR_LINES_MAX: usize = 20;
/// Bytes of one kept line.
const STDERR_LINE_MAX: u64 = 4096;
/// How long to wait for the end of a pipe after the child's own end. Only a grandchild that holds
/// the pipe open makes a difference.
pub(super) const PIPE_GRACE: Duration = Duration::from_secs(2);
/// How long a machine may take to end that was told to. What the guest wanted stored is stored by then;
/// this is for what it has only written.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// Bytes of standard output that are passed on at once: few enough for a slow terminal to take them
/// within [`PIPE_GRACE`].
const COPY_LEN: usize = 4 << 10;

/// A running child. It is killed when this is dropped: a machine never outlives who watches it.
#[derive(Debug)]
pub(super) struct Child {
    process: process::Child,
    pidfd: OwnedFd,
    /// A message whenever some output was passed on; closed when all was.
    output: Receiver<()>,
    stderr: Receiver<String>,
    last_words: Option<String>,
    status: Option<ExitStatus>,
}

impl Child {
    pub(super) fn spawn(
        program: &Path,
        arguments: &[OsString],
        serial: Serial,
    ) -> Result<Self, Error> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(serial.input).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A Ctrl-C at the terminal is for the supervisor, which then ends the machine.
        command.process_group(0);
        let mut process = command
            .spawn()
            .map_err(|source| Error::Spawn { program: program.to_owned(), source })?;
        let watched = pidfd_open(Pid::from_child(&process), PidfdFlags::empty())
            .map_err(Error::system("watching the machine"))
            .and_then(|pidfd| {
                let output = pass_on(process.stdout.take(), serial.output)?;
                Ok((pidfd, output, keep_tail(process.stderr.take())?))
            });
        match watched {
            Ok((pidfd, output, stderr)) => {
                Ok(Self { process, pidfd, output, stderr, last_words: None, status: None })
            }
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }

    /// Waits as [`super::Running::wait`] does; the exit status is `Ok`, what came before it `Err`.
    fn wait(
        &mut self,
        cancel: &Cancel,
        timeout: Option<Duration>,
    ) -> Result<Result<ExitStatus, Woken>, Error> {
        if let Some(status) = self.status {
            return Ok(Ok(status));
        }
        let (cancelled, ended) = cancel
            .wait(Some(self.pidfd.as_fd()), timeout)
            .map_err(Error::system("waiting for the machine"))?;
        match (ended, cancelled) {
            (true, _) => self.join().map(Ok),
            (false, true) => Ok(Err(Woken::Cancelled)),
            (false, false) => Ok(Err(Woken::TimedOut)),
        }
    }

    /// Waits for the child's end, and until all its output was passed on.
    fn join(&mut self) -> Result<ExitStatus, Error> {
        // `std` remembers the status, so that a second wait returns the same.
        let status = self.process.wait().map_err(Error::system("waiting for the machine"))?;
        self.status = Some(status);
        // As long as there is progress; whoever stopped reading does not get the rest.
        while self.output.recv_timeout(PIPE_GRACE).is_ok() {}
        Ok(status)
    }

    /// Tells the machine to end, and kills it if it does not.
    fn stop(&mut self, remote: Arc<dyn Remote>) -> Result<(), Error> {
        // On a thread: one that does not even read must not hold up its end.
        start("stop", move || drop(remote.execute(&wire::Command::Stop)))?;
        let never = Cancel::new().map_err(Error::system("making a pipe"))?;
        let deadline = Instant::now() + STOP_GRACE;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            match self.wait(&never, Some(rest))? {
                Ok(_) => return Ok(()),
                Err(_) if rest.is_zero() => return self.kill(),
                Err(_) => {}
            }
        }
    }

    fn kill(&mut self) -> Result<(), Error> {
        // The child is not reaped before `join`, so that the id is still its own.
        self.process.kill().map_err(Error::system("killing the machine"))
    }

    /// The last lines of the standard error of a child that has ended.
    pub(super) fn last_words(&mut self) -> String {
        let stderr = &self.stderr;
        let wait = || stderr.recv_timeout(PIPE_GRACE).unwrap_or_default();
        self.last_words.get_or_insert_with(wait).clone()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// What an engine knows of its child's guest.
pub(super) trait Guest {
    /// What reaches into it.
    fn remote(&self) -> Arc<dyn Remote>;

    /// What the end of `child`, with `status`, means for it. May be asked again.
    fn ended(&mut self, child: &mut Child, status: ExitStatus) -> Ended;
}

/// A machine: a child, which ends before what it was given goes away, and its guest.
#[derive(Debug)]
pub(super) struct Watched<G> {
    pub(super) child: Child,
    pub(super) guest: G,
}

impl<G: Guest> Running for Watched<G> {
    fn remote(&self) -> Option<Arc<dyn Remote>> {
        Some(self.guest.remote())
    }

    fn pid(&self) -> u32 {
        self.child.process.id()
    }

    fn wait(&mut self, cancel: &Cancel, timeout: Option<Duration>) -> Result<Woken, Error> {
        let waited = self.child.wait(cancel, timeout)?;
        Ok(waited.map_or_else(
            |woken| woken,
            |status| Woken::Ended(self.guest.ended(&mut self.child, status)),
        ))
    }

    fn kill(&mut self) -> Result<(), Error> {
        self.child.stop(self.guest.remote())
    }

    fn join(&mut self) -> Result<Ended, Error> {
        let status = self.child.join()?;
        Ok(self.guest.ended(&mut self.child, status))
    }
}

/// Copies a standard output to where it shall go. The child never has that descriptor itself: QEMU
/// makes what it inherits non-blocking, for everybody who shares it.
fn pass_on(
    stdout: Option<impl Read + Send + 'static>,
    output: Box<dyn Write + Send>,
) -> Result<Receiver<()>, Error> {
    let (progress, receiver) = mpsc::sync_channel(1);
    if let Some(stdout) = stdout {
        start("engine-stdout", move || copy(stdout, output, &progress))?;
    }
    Ok(receiver)
}

fn copy(mut from: impl Read, mut to: impl Write, progress: &SyncSender<()>) {
    let mut buffer = vec![0; COPY_LEN];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            // If nobody reads it any more, the machine still runs on.
            Ok(len) => drop(to.write_all(&buffer[..len]).and_then(|()| to.flush())),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
        // One message that nobody has looked at yet is enough.
        let _ = progress.try_send(());
    }
}

/// Reads a standard error to its end and then sends the last lines of it.
fn keep_tail(stderr: Option<impl Read + Send + 'static>) -> Result<Receiver<String>, Error> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stderr) = stderr {
        start("engine-stderr", move || drop(sender.send(tail(stderr))))?;
    }
    Ok(receiver)
}

fn start(name: &str, what: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(what);
    thread.map(drop).map_err(Error::system("watching the machine"))
}

/// The last lines of a stream, each cut to its limit.
fn tail(stream: impl Read) -> String {
    let mut reader = BufReader::new(stream);
    let mut lines: VecDeque<String> = VecDeque::new();
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(STDERR_LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return Vec::from(lines).join("\n"),
            Ok(_) => {}
        }
        if lines.len() == STDERR_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let text: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        let expected: Vec<String> = (980..1000).map(|number| format!("line {number}")).collect();
        assert_eq!(tail(text.as_bytes()), expected.join("\n"));
        assert_eq!(tail(&b"no end"[..]), "no end");
        assert_eq!(tail(vec![b'x'; 1 << 20].as_slice()).len(), 20 * 4096 + 19);
    }
}
