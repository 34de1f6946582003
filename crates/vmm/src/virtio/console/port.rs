//! One port: bytes from its virtqueues to its client and back, each way only as fast as the other side
//! takes them, and what the driver is yet to be told of it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use vmm_sys_util::epoll::EventSet;

use super::super::{Error, Request, Session};
use super::end::HostEnd;

/// Bytes that are moved at once.
const CHUNK: usize = 16 << 10;
/// The longest piece of output. Linux sends 32 KiB at most.
const OUTPUT_MAX: usize = 1 << 20;

/// Events of control messages (§5.3.6.2).
mod event {
    pub(super) const DEVICE_ADD: u16 = 1;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const RESIZE: u16 = 5;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// What the driver is yet to be told, in this order. A set, not a list: a driver that never listens
/// costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Add,
    Console,
    Name,
    Size,
    Closed,
    Opened,
}

const NEWS: [News; 6] =
    [News::Add, News::Console, News::Name, News::Size, News::Closed, News::Opened];

/// A port between DRIVER_OK and reset.
#[derive(Debug)]
pub(super) struct Port {
    id: u16,
    /// None for the console.
    name: Option<String>,
    end: HostEnd,
    client: Option<UnixStream>,
    news: Vec<News>,
    /// The driver knows that there is a port.
    added: bool,
    /// The driver has made the port ready.
    ready: bool,
    /// Somebody in the guest has opened the port.
    guest_open: bool,
    /// The driver was told last that there is a client.
    told_open: bool,
    /// The client sends no more, or is gone altogether.
    input_ended: bool,
    hung_up: bool,
    /// The client takes nothing any more, though what it has sent may not be read to its end.
    deaf: bool,
    /// There was no room for input.
    starved: bool,
    /// Bytes of the first piece of output that are written, and whether the client takes no more.
    written: usize,
    blocked: bool,
    watched: Option<EventSet>,
    listening: bool,
}

impl Port {
    pub(super) fn new(id: u16, name: Option<String>, end: HostEnd) -> Self {
        Self {
            id,
            name,
            client: end.take_client(),
            end,
            news: Vec::new(),
            added: false,
            ready: false,
            guest_open: false,
            told_open: false,
            input_ended: false,
            hung_up: false,
            deaf: false,
            starved: false,
            written: 0,
            blocked: false,
            watched: None,
            listening: false,
        }
    }

    pub(super) fn end(&self) -> &HostEnd {
        &self.end
    }

    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// The driver speaks no control messages: the port simply is there.
    pub(super) fn open_at_once(&mut self) {
        self.guest_open = true;
    }

    /// The driver wants to know of all ports.
    pub(super) fn announce(&mut self) {
        if !self.added {
            self.tell(News::Add);
        }
    }

    /// The driver has made the port ready, and learns the rest.
    pub(super) fn make_ready(&mut self) {
        if !self.added {
            return;
        }
        self.ready = true;
        self.tell(if self.name.is_some() { News::Name } else { News::Console });
        self.tell_size();
        if self.client.is_some() {
            self.tell(News::Opened);
        }
    }

    /// The guest has opened or closed the port.
    pub(super) fn set_guest_open(&mut self, open: bool) {
        self.guest_open = open;
    }

    /// The terminal has another size.
    pub(super) fn tell_size(&mut self) {
        if self.ready && self.name.is_none() && self.end.size().is_some() {
            self.tell(News::Size);
        }
    }

    fn tell(&mut self, news: News) {
        if !self.news.contains(&news) {
            self.news.push(news);
        }
    }

    /// The next control message for the driver.
    pub(super) fn message(&self) -> Option<Vec<u8>> {
        let news = NEWS.into_iter().find(|news| self.news.contains(news))?;
        let (event, value, rest): (u16, u16, Vec<u8>) = match news {
            News::Add => (event::DEVICE_ADD, 0, Vec::new()),
            News::Console => (event::CONSOLE_PORT, 1, Vec::new()),
            News::Name => (event::PORT_NAME, 1, self.name.clone().unwrap_or_default().into_bytes()),
            News::Size => {
                let size = self.end.size()?;
                (event::RESIZE, 0, [size.columns.to_le_bytes(), size.rows.to_le_bytes()].concat())
            }
            News::Closed => (event::PORT_OPEN, 0, Vec::new()),
            News::Opened => (event::PORT_OPEN, 1, Vec::new()),
        };
        let mut message = u32::from(self.id).to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(rest);
        Some(message)
    }

    /// The driver has got [`Port::message`].
    pub(super) fn told(&mut self) {
        let Some(news) = NEWS.into_iter().find(|news| self.news.contains(news)) else { return };
        self.news.retain(|other| *other != news);
        match news {
            News::Add => self.added = true,
            News::Opened => self.told_open = true,
            News::Closed => self.told_open = false,
            News::Console | News::Name | News::Size => {}
        }
    }

    /// Somebody has connected, perhaps. False where the host has no descriptor for him.
    pub(super) fn accept(&mut self) -> bool {
        if self.client.is_some() {
            return true;
        }
        let Some(listener) = self.end.listener() else { return true };
        match listener.accept().and_then(|(client, _)| {
            client.set_nonblocking(true)?;
            Ok(client)
        }) {
            Ok(client) => {
                self.client = Some(client);
                if self.ready {
                    self.tell(News::Opened);
                }
                true
            }
            // Who has gone again is nobody.
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted
            ),
        }
    }

    /// The client is gone.
    fn close(&mut self) {
        self.client = None;
        self.watched = None;
        (self.input_ended, self.hung_up) = (false, false);
        (self.deaf, self.blocked) = (false, false);
        self.news.retain(|news| *news != News::Opened);
        if self.told_open {
            self.tell(News::Closed);
        }
    }

    /// The client's socket is ready for `events`.
    pub(super) fn client_ready(
        &mut self,
        events: EventSet,
        session: &mut Session,
    ) -> Result<(), Error> {
        // Of a client that has left what it was sent unread, an error is told first.
        self.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let was_blocked = self.blocked;
        let read_to_its_end = self.input_ended || !self.guest_open || !self.has_more();
        if self.hung_up && read_to_its_end {
            self.close();
        }
        if events.contains(EventSet::OUT) {
            self.blocked = false;
        }
        self.pump(was_blocked, session)
    }

    /// Whether there may be something to read of the client, now or later.
    fn has_more(&self) -> bool {
        let peeked = self.client.as_ref().map(|client| recv(client, &mut [0; 1], RecvFlags::PEEK));
        matches!(peeked, Some(Ok((1.., _)) | Err(Errno::INTR | Errno::AGAIN)))
    }

    /// The driver has made room for input.
    pub(super) fn room_for_input(&mut self, session: &mut Session) -> Result<(), Error> {
        self.starved = false;
        self.pump(self.blocked, session)
    }

    /// Moves bytes both ways. Output that waited for the client is looked after as soon as it waits no
    /// more, and be it because the client is gone: the driver need not ring again for it.
    fn pump(&mut self, was_blocked: bool, session: &mut Session) -> Result<(), Error> {
        self.pump_in(session)?;
        if was_blocked && !self.blocked { self.pump_out(session) } else { Ok(()) }
    }

    /// Moves bytes from the client to the guest, as far as both are ready.
    fn pump_in(&mut self, session: &mut Session) -> Result<(), Error> {
        let memory = session.memory();
        let mut buffer = [0; CHUNK];
        while self.guest_open && !self.input_ended && !self.starved && !session.is_stopped() {
            let (Some(client), Some(queue)) =
                (&mut self.client, session.queue(receive_queue(self.id)))
            else {
                return Ok(());
            };
            let Some(mut request) = queue.next(&memory)? else {
                self.starved = !queue.enable_notification(&memory)?;
                continue;
            };
            let room = request.writable().min(CHUNK);
            if room == 0 {
                queue.complete(&memory, request.head(), 0)?;
                continue;
            }
            match client.read(&mut buffer[..room]) {
                Ok(0) => self.input_ended = true,
                Ok(len) => {
                    request.write_all(&buffer[..len])?;
                    queue.complete(&memory, request.head(), request.written())?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    queue.undo_next();
                    return Ok(());
                }
                Err(_) => (self.input_ended, self.hung_up) = (true, true),
            }
            queue.undo_next();
        }
        if self.input_ended && self.hung_up {
            self.close();
        }
        Ok(())
    }

    /// Moves bytes from the guest to the client, as far as the client takes them. Without a client they
    /// are lost, as on a line that is not connected.
    pub(super) fn pump_out(&mut self, session: &mut Session) -> Result<(), Error> {
        let memory = session.memory();
        while !self.blocked && !session.is_stopped() {
            let Some(queue) = session.queue(transmit_queue(self.id)) else { return Ok(()) };
            let Some(mut request) = queue.next(&memory)? else {
                if queue.enable_notification(&memory)? {
                    continue;
                }
                return Ok(());
            };
            if request.readable() > OUTPUT_MAX {
                return Err(Error::Malformed("a piece of console output is too long"));
            }
            self.write_out(&mut request)?;
            if self.blocked {
                queue.undo_next();
            } else {
                self.written = 0;
                queue.complete(&memory, request.head(), 0)?;
            }
        }
        Ok(())
    }

    /// Writes what is not yet written of a piece of output. What a client does not take any more is lost.
    fn write_out(&mut self, request: &mut Request<'_>) -> io::Result<()> {
        let mut buffer = [0; CHUNK];
        let mut skip = self.written;
        while request.readable() > 0 {
            let len = request.read(&mut buffer)?;
            let skipped = skip.min(len);
            skip -= skipped;
            let mut rest = &buffer[skipped..len];
            while let Some(client) = self.client.as_mut().filter(|_| !rest.is_empty() && !self.deaf)
            {
                match client.write(rest) {
                    Ok(len) if len > 0 => {
                        self.written += len;
                        rest = &rest[len..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.blocked = true;
                        return Ok(());
                    }
                    _ => self.deaf = true,
                }
            }
            if self.client.is_none() || self.deaf {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Listens to what can happen next. `tokens` are the listener's and the client's.
    pub(super) fn watch(&mut self, session: &Session, tokens: [u32; 2]) -> io::Result<()> {
        if let Some(listener) = self.end.listener()
            && self.listening != self.client.is_none()
        {
            self.listening = self.client.is_none();
            match self.listening {
                true => session.watch(listener, tokens[0], EventSet::IN)?,
                false => session.unwatch(listener)?,
            }
        }
        let Some(client) = &self.client else { return Ok(()) };
        let mut events = EventSet::empty();
        if self.guest_open && !self.input_ended && !self.starved {
            events |= EventSet::IN;
        }
        if self.blocked {
            events |= EventSet::OUT;
        }
        // A client that has hung up is heard of over and over, also by who expects nothing.
        let wanted = (!self.hung_up || !events.is_empty()).then_some(events);
        if wanted != self.watched {
            match wanted {
                Some(events) => session.watch(client, tokens[1], events)?,
                None => session.unwatch(client)?,
            }
            self.watched = wanted;
        }
        Ok(())
    }

    /// Stops listening for clients for a while.
    pub(super) fn stop_listening(&mut self, session: &Session) -> io::Result<()> {
        match self.end.listener() {
            Some(listener) if std::mem::take(&mut self.listening) => session.unwatch(listener),
            _ => Ok(()),
        }
    }

    /// Hands the client over to the next device.
    pub(super) fn end_session(mut self) {
        if let Some(client) = self.client.take() {
            self.end.keep_client(client);
        }
    }
}

/// The virtqueues of a port (§5.3.2): those of control messages lie between the first port's and the
/// others'.
pub(super) const fn receive_queue(id: u16) -> u16 {
    if id == 0 { 0 } else { 2 * id + 2 }
}

pub(super) const fn transmit_queue(id: u16) -> u16 {
    receive_queue(id) + 1
}
