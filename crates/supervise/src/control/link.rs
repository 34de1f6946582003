//! The line between a supervisor and our own machine: two pipes that the machine inherits, one for
//! requests, and one for answers and events.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use fs_err::File;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;
use serde_json::Value;

use super::lines::{Line, read_line};
use super::station::{EventSink, Remote};
use super::wire::{
    self, ANSWER_MAX, Command, ErrorBody, ErrorCode, Event, EventLine, LINE_MAX, Request, Response,
    parse_request,
};
use super::{CallFailed, Calls};

/// Lines that wait to be sent to a supervisor that does not read.
const LINES_MAX: usize = 256;

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    child: Option<(OwnedFd, OwnedFd)>,
}

#[derive(Debug)]
struct Shared {
    calls: Calls<Response>,
    events: EventSink,
}

/// What a machine sends.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Event(EventLine),
    Response(Response),
}

impl Link {
    /// A line whose other end a child inherits.
    pub(crate) fn new() -> io::Result<Self> {
        let (requests, questions) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, replies) = pipe_with(PipeFlags::CLOEXEC)?;
        // Another child that is started at this moment inherits these ends too. It may keep the answers
        // open when the machine is gone; nobody waits for their end.
        fcntl_setfd(&requests, FdFlags::empty())?;
        fcntl_setfd(&replies, FdFlags::empty())?;
        let calls = Calls::new(std::fs::File::from(questions));
        let shared = Arc::new(Shared { calls, events: EventSink::default() });
        let listener = Arc::clone(&shared);
        let listen = move || listener.listen(std::fs::File::from(answers));
        thread::Builder::new().name("link".to_owned()).spawn(listen)?;
        Ok(Self { shared, child: Some((requests, replies)) })
    }

    /// The numbers of the descriptors that the child inherits, as [`serve`] takes them.
    pub(crate) fn numbers(&self) -> String {
        let number = |end: &OwnedFd| end.as_raw_fd().to_string();
        let child = self.child.as_ref();
        child.map(|(read, write)| [number(read), number(write)].join(",")).unwrap_or_default()
    }

    /// Closes this process's copy of the child's end, once the child has its own.
    pub(crate) fn handed_over(&mut self) {
        self.child = None;
    }

    /// What reaches the machine.
    pub(crate) fn remote(&self) -> Arc<dyn Remote> {
        Arc::clone(&self.shared) as Arc<dyn Remote>
    }
}

impl Shared {
    /// Hears the machine until it is gone, or says what it should not.
    fn listen(&self, answers: impl Read) {
        let mut reader = BufReader::new(answers);
        while let Ok(Line::Whole(line)) = read_line(&mut reader, ANSWER_MAX) {
            match serde_json::from_slice(&line) {
                Ok(Message::Event(line)) => self.events.send(line.event),
                Ok(Message::Response(response)) => {
                    self.calls.answer(response.id.unwrap_or_default(), response);
                }
                Err(_) => break,
            }
        }
        self.calls.close();
    }
}

impl Remote for Shared {
    fn execute(&self, command: &Command) -> Result<Value, ErrorBody> {
        let question = |id| wire::line(&Request { id: Some(id), command: command.clone() });
        let answer = self.calls.call(question).map_err(unanswered)?;
        answer.outcome.into_result()
    }

    fn events(&self) -> &EventSink {
        &self.events
    }
}

/// What a client is told of a machine that does not answer.
pub(crate) fn unanswered(failed: CallFailed) -> ErrorBody {
    match failed {
        CallFailed::Gone => ErrorBody::new(ErrorCode::NotRunning, "the machine has ended"),
        CallFailed::TimedOut => ErrorBody::new(ErrorCode::TimedOut, "the machine does not answer"),
    }
}

/// The machine's end, for what it has to tell. Clones are the same end.
#[derive(Clone)]
pub struct LinkEnd(SyncSender<Vec<u8>>);

impl LinkEnd {
    /// Tells the supervisor. Never waits: to one that does not read nothing more is told.
    pub fn tell(&self, event: Event) {
        let _ = self.0.try_send(wire::line(&EventLine { event, time_ms: 0 }));
    }
}

impl fmt::Debug for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinkEnd").finish_non_exhaustive()
    }
}

/// The machine's descriptors, before it has threads: to read from, and to write to.
#[derive(Debug)]
pub struct LinkEnds {
    requests: File,
    replies: File,
}

/// Opens the descriptors whose numbers the command line names.
pub fn take(numbers: &str) -> io::Result<LinkEnds> {
    let (requests, replies) = numbers.split_once(',').unwrap_or_default();
    let requests = File::open(format!("/proc/self/fd/{requests}"))?;
    let replies = File::options().write(true).open(format!("/proc/self/fd/{replies}"))?;
    Ok(LinkEnds { requests, replies })
}

/// The machine's half: answers its supervisor with `execute`, one request after the other, on threads of
/// its own.
pub fn serve(
    ends: LinkEnds,
    execute: impl Fn(Command) -> Result<Value, ErrorBody> + Send + 'static,
) -> io::Result<LinkEnd> {
    let LinkEnds { requests, replies: mut stream } = ends;
    let (lines, queue) = sync_channel::<Vec<u8>>(LINES_MAX);
    let send = move || for_each_while(&queue, |line| stream.write_all(&line).is_ok());
    thread::Builder::new().name("link-send".to_owned()).spawn(send)?;
    let answers = lines.clone();
    let answer = move || {
        let mut reader = BufReader::new(requests);
        while let Ok(Line::Whole(line)) = read_line(&mut reader, LINE_MAX) {
            let (id, command) = parse_request(&line);
            let outcome = command.and_then(&execute).into();
            if answers.send(wire::line(&Response { id, outcome })).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("link".to_owned()).spawn(answer)?;
    Ok(LinkEnd(lines))
}

fn for_each_while<T>(queue: &Receiver<T>, act: impl FnMut(T) -> bool) {
    queue.iter().map(act).take_while(|goes_on| *goes_on).for_each(drop);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_machine_answers_and_tells() {
        let mut link = Link::new().unwrap();
        let (heard, events) = channel();
        let end = serve(take(&link.numbers()).unwrap(), |command| match command {
            Command::Pause => Ok("done".into()),
            _ => Err(ErrorBody::new(ErrorCode::Failed, "not today")),
        });
        let end = end.unwrap();
        link.handed_over();
        let remote = link.remote();
        end.tell(Event::Paused);
        assert_eq!(remote.execute(&Command::Pause), Ok("done".into()));
        assert_eq!(remote.execute(&Command::Nmi).unwrap_err().message, "not today");
        // What came before anyone listened is heard too.
        remote.events().listen(Box::new(move |event| heard.send(event).unwrap()));
        end.tell(Event::Resumed);
        let two: Vec<Event> = (0..2).map(|_| events.recv().unwrap()).collect();
        assert_eq!(two, [Event::Paused, Event::Resumed]);
    }

    #[test]
    fn a_machine_that_is_gone_is_said_to_be() {
        let mut link = Link::new().unwrap();
        link.handed_over();
        let error = link.remote().execute(&Command::Pause).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotRunning);
        assert!(take("99999,99998").is_err());
        assert!(take("").is_err());
    }
}
