//! The line between a supervisor and our own machine: a socket that the machine inherits, for requests in
//! one direction, and answers and events in the other. With a request to insert a medium goes the open
//! image: the machine cannot open any.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use rustix::io::{FdFlags, fcntl_setfd};
use serde::Deserialize;
use serde_json::Value;

use super::lines::{Line, read_line};
use super::passing::Inbox;
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
    child: Option<UnixStream>,
}

/// Opens an image that is to be inserted, as a machine opens those that it starts with.
pub type OpenMedium = fn(&Path) -> Result<OwnedFd, ErrorBody>;

#[derive(Debug)]
struct Shared {
    calls: Calls<Response>,
    events: EventSink,
    open_medium: OpenMedium,
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
    pub(crate) fn new(open_medium: OpenMedium) -> io::Result<Self> {
        let (answers, child) = UnixStream::pair()?;
        // Another child that is started at this moment inherits this end too. It may keep the answers
        // open when the machine is gone; nobody waits for their end.
        fcntl_setfd(&child, FdFlags::empty())?;
        let calls = Calls::new(answers.try_clone()?);
        let shared = Arc::new(Shared { calls, events: EventSink::default(), open_medium });
        let listener = Arc::clone(&shared);
        let listen = move || listener.listen(answers);
        thread::Builder::new().name("link".to_owned()).spawn(listen)?;
        Ok(Self { shared, child: Some(child) })
    }

    /// The number of the descriptor that the child inherits.
    pub(crate) fn number(&self) -> i32 {
        self.child.as_ref().map_or(-1, AsRawFd::as_raw_fd)
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
        let medium = match command {
            Command::Insert(medium) => Some((self.open_medium)(&medium.path)?),
            _ => None,
        };
        let passed = medium.as_ref().map(AsFd::as_fd);
        let answer = self.calls.call_passing(passed, question).map_err(unanswered)?;
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

/// Starts a thread of this name.
pub type Threads<'a> = &'a dyn Fn(&'static str, Box<dyn FnOnce() + Send>) -> io::Result<()>;

/// The machine's half, over the socket that it has inherited: answers its supervisor with `execute`, one
/// request after the other, on threads of its own. The medium that is to be inserted is open.
pub fn serve(
    stream: UnixStream,
    threads: Threads<'_>,
    execute: impl Fn(Command, Option<OwnedFd>) -> Result<Value, ErrorBody> + Send + 'static,
) -> io::Result<LinkEnd> {
    let mut replies = stream.try_clone()?;
    let (lines, queue) = sync_channel::<Vec<u8>>(LINES_MAX);
    let send = move || for_each_while(&queue, |line| replies.write_all(&line).is_ok());
    threads("link-send", Box::new(send))?;
    let answers = lines.clone();
    let answer = move || {
        let mut reader = BufReader::new(Inbox::new(stream));
        while let Ok(Line::Whole(line)) = read_line(&mut reader, LINE_MAX) {
            let (id, command) = parse_request(&line);
            let outcome = command.and_then(|command| {
                let is_insert = matches!(command, Command::Insert(_));
                let medium = is_insert.then(|| reader.get_mut().take_passed()).flatten();
                execute(command, medium)
            });
            if answers.send(wire::line(&Response { id, outcome: outcome.into() })).is_err() {
                return;
            }
        }
    };
    threads("link", Box::new(answer))?;
    Ok(LinkEnd(lines))
}

fn for_each_while<T>(queue: &Receiver<T>, act: impl FnMut(T) -> bool) {
    queue.iter().map(act).take_while(|goes_on| *goes_on).for_each(drop);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use serde_json::json;

    use super::super::wire::Medium;
    use super::*;

    fn open(path: &Path) -> Result<OwnedFd, ErrorBody> {
        let opened = fs_err::File::open(path);
        opened
            .map(|file| file.into_file().into())
            .map_err(|error| ErrorBody::new(ErrorCode::Failed, error.to_string()))
    }

    /// A link whose machine does what it is told with `execute`.
    fn linked(
        execute: impl Fn(Command, Option<OwnedFd>) -> Result<Value, ErrorBody> + Send + 'static,
    ) -> (Link, LinkEnd) {
        let mut link = Link::new(open).unwrap();
        let child = link.child.as_ref().unwrap().try_clone().unwrap();
        assert!(link.number() > 2);
        link.handed_over();
        let threads = |name: &'static str, body| {
            thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
        };
        let end = serve(child, &threads, execute).unwrap();
        (link, end)
    }

    #[test]
    fn a_machine_answers_and_tells() {
        let (heard, events) = channel();
        let (link, end) = linked(|command, _| match command {
            Command::Pause => Ok("done".into()),
            _ => Err(ErrorBody::new(ErrorCode::Failed, "not today")),
        });
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
    fn a_medium_arrives_open_and_one_that_cannot_be_opened_is_not_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let insert = |name: &str| {
            Command::Insert(Medium { drive: "cdrom0".to_owned(), path: folder.path().join(name) })
        };
        let (link, _end) = linked(|command, medium| match (command, medium) {
            (Command::Insert(asked), Some(medium)) => {
                // Whatever becomes of the name: what was opened is there.
                fs_err::remove_file(asked.path).unwrap();
                let mut text = String::new();
                std::fs::File::from(medium).read_to_string(&mut text).unwrap();
                Ok(json!(text))
            }
            (_, medium) => Ok(json!(medium.is_some())),
        });
        let remote = link.remote();
        for name in ["one", "two"] {
            fs_err::write(folder.path().join(name), name).unwrap();
            assert_eq!(remote.execute(&insert(name)), Ok(json!(name)));
            assert_eq!(remote.execute(&Command::Pause), Ok(json!(false)));
        }
        let error = remote.execute(&insert("three")).unwrap_err();
        assert!(error.message.contains("three"), "{error}");
    }

    #[test]
    fn a_machine_that_is_gone_is_said_to_be() {
        let mut link = Link::new(open).unwrap();
        link.handed_over();
        let error = link.remote().execute(&Command::Pause).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotRunning);
    }
}
