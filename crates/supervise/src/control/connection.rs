//! One client of a control socket.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::json;

use super::backlog::Backlog;
use super::lines::{Line, read_line};
use super::station::Station;
use super::wire::{
    self, Command, ConsoleOptions, ErrorBody, ErrorCode, LINE_MAX, Outcome, Response, parse_request,
};

/// Bytes that are typed at once.
const TYPED_MAX: usize = 4 << 10;

/// Serves a client until it goes.
pub(super) fn serve(stream: UnixStream, station: &Station) -> io::Result<()> {
    let backlog = Backlog::default();
    backlog.start_sending(stream.try_clone()?)?;
    backlog.push_always(&wire::line(&station.greeting()));
    let served = converse(&mut BufReader::new(stream), &backlog, station);
    backlog.close();
    served
}

fn converse(
    reader: &mut BufReader<UnixStream>,
    backlog: &Backlog,
    station: &Station,
) -> io::Result<()> {
    loop {
        // Who asks and does not read the answers is not read either.
        backlog.wait_for_room();
        let (id, command) = match read_line(reader, LINE_MAX)? {
            Line::Whole(line) => parse_request(&line),
            Line::TooLong => {
                let message = format!("the line is longer than {LINE_MAX} bytes");
                (None, Err(ErrorBody::new(ErrorCode::LineTooLong, message)))
            }
            Line::End => return Ok(()),
        };
        let answer = |outcome| backlog.push_always(&wire::line(&Response { id, outcome }));
        match command {
            Ok(Command::Console(options)) => {
                let with = options.unwrap_or(ConsoleOptions { scrollback: true });
                station.unsubscribe(backlog);
                // In one step, as events.
                let answered = || answer(Outcome::Result(json!({})));
                station.console().attach(backlog, with.scrollback, answered);
                return console(reader, backlog, station);
            }
            Ok(Command::Events) => {
                // In one step, so that everything that happens after the answer is heard.
                station.subscribe(backlog, || answer(Outcome::Result(json!({}))));
            }
            Ok(command) => answer(station.execute(&command).into()),
            Err(error) => answer(Outcome::Error(error)),
        }
    }
}

/// From here on the connection is the serial port.
fn console(
    reader: &mut BufReader<UnixStream>,
    backlog: &Backlog,
    station: &Station,
) -> io::Result<()> {
    let mut typed = vec![0; TYPED_MAX];
    loop {
        match reader.read(&mut typed)? {
            0 => return Ok(()),
            len => station.console().type_in(&typed[..len], &|| backlog.is_closed()),
        }
    }
}

/// Tells a client that there is no room for it.
pub(super) fn turn_away(mut stream: UnixStream, clients: usize) {
    let message = format!("{clients} clients are connected, which is the most");
    let error = ErrorBody::new(ErrorCode::TooManyConnections, message);
    let response = Response { id: None, outcome: Outcome::Error(error) };
    // A line fits into any socket that is empty.
    let _ = stream.write_all(&wire::line(&response));
}
