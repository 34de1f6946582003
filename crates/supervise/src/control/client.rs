//! The client's side of a control socket.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::lines::{Line, read_line};
use super::wire::{
    self, ANSWER_MAX, About, Command, ConsoleOptions, ErrorBody, EventLine, Greeting, PROTOCOL,
    Request, Response,
};

/// How long a server may take: more than the machine behind it may.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// A connection to a control socket.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    about: About,
    last: u64,
}

/// Why a machine was not reached, or did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection broke off.
    #[error("the connection broke off")]
    Broken(#[source] io::Error),
    /// Whoever listens there says nothing: it hangs, or somebody has stopped it.
    #[error("it does not answer")]
    Silent,
    /// What listens there is something else.
    #[error("this is no control socket of bootyard: {0}")]
    Stranger(String),
    /// The server speaks another version of the protocol.
    #[error("the machine speaks version {0} of the protocol, and this program version {PROTOCOL}")]
    Version(u32),
    /// The machine refused.
    #[error("{0}")]
    Refused(ErrorBody),
}

impl Client {
    /// Connects to the socket at `path`, and reads who is there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(ClientError::Connect)?;
        stream.set_read_timeout(Some(ANSWER_WAIT)).map_err(ClientError::Broken)?;
        let mut reader = BufReader::new(stream);
        let line = whole_line(&mut reader)?;
        if let Ok(Response { outcome: wire::Outcome::Error(error), .. }) =
            serde_json::from_slice(&line)
        {
            return Err(ClientError::Refused(error));
        }
        let Greeting { bootyard: about } = parse(&line)?;
        if about.protocol != PROTOCOL {
            return Err(ClientError::Version(about.protocol));
        }
        Ok(Self { reader, about, last: 0 })
    }

    /// Who serves the socket.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Asks for something, and waits for the answer. Not for what changes the connection.
    pub fn ask(&mut self, command: Command) -> Result<Value, ClientError> {
        self.last += 1;
        let request = wire::line(&Request { id: Some(self.last), command });
        self.reader.get_mut().write_all(&request).map_err(ClientError::Broken)?;
        let response: Response = parse(&whole_line(&mut self.reader)?)?;
        response.outcome.into_result().map_err(ClientError::Refused)
    }

    /// Asks for events. [`Client::event`] reads them.
    pub fn subscribe(&mut self) -> Result<(), ClientError> {
        self.ask(Command::Events)?;
        self.wait_for_ever()
    }

    /// Waits for the next event; `None` once the server is gone.
    pub fn event(&mut self) -> Result<Option<EventLine>, ClientError> {
        match read_line(&mut self.reader, ANSWER_MAX).map_err(ClientError::Broken)? {
            Line::Whole(line) => parse(&line).map(Some),
            _ => Ok(None),
        }
    }

    /// What follows comes when it comes.
    fn wait_for_ever(&self) -> Result<(), ClientError> {
        self.reader.get_ref().set_read_timeout(None).map_err(ClientError::Broken)
    }

    /// Turns the connection into the serial port.
    pub fn console(mut self, scrollback: bool) -> Result<RawConsole, ClientError> {
        self.ask(Command::Console(Some(ConsoleOptions { scrollback })))?;
        self.wait_for_ever()?;
        Ok(RawConsole { reader: self.reader })
    }
}

/// A serial port over a control socket.
#[derive(Debug)]
pub struct RawConsole {
    reader: BufReader<UnixStream>,
}

impl RawConsole {
    /// The way in, for what is typed. Shutting it down ends both ways.
    pub fn keys(&self) -> io::Result<Keys> {
        self.reader.get_ref().try_clone().map(Keys)
    }
}

impl Read for RawConsole {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.reader.read(bytes)
    }
}

/// The way into a serial port.
#[derive(Debug)]
pub struct Keys(UnixStream);

impl Keys {
    /// Types.
    pub fn type_in(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Ends the connection, in both directions.
    pub fn hang_up(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

fn whole_line(reader: &mut BufReader<UnixStream>) -> Result<Vec<u8>, ClientError> {
    let line = read_line(reader, ANSWER_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent,
        _ => ClientError::Broken(error),
    })?;
    match line {
        Line::Whole(line) => Ok(line),
        Line::TooLong => Err(ClientError::Stranger("it sends lines without end".to_owned())),
        Line::End => Err(ClientError::Broken(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(line).map_err(|error| ClientError::Stranger(error.to_string()))
}
