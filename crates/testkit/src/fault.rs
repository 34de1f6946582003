//! A small HTTP/1.1 server that goes wrong on purpose: what a real server cannot be configured to
//! do. Serves one body under every path. Not for what nginx can do ([`Nginx`](crate::Nginx)).

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long one read or write of a connection may take, so that no thread outlives its test.
const SOCKET_LIMIT: Duration = Duration::from_secs(30);

/// The bytes that are written at once where nothing else is asked for.
const BLOCK: usize = 64 << 10;

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct FaultServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    headers: Vec<(String, String)>,
}

/// How one request is answered. Starts honest ([`Reply::honest`]); each method adds one fault.
#[derive(Debug, Clone)]
pub struct Reply {
    status: Option<u16>,
    etag: Option<String>,
    ranges: bool,
    announces_ranges: bool,
    range_shift: u64,
    range_stretch: usize,
    total_lie: u64,
    announce: Announce,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    end: End,
    drip: Option<(usize, Duration)>,
}

#[derive(Debug, Clone, Copy)]
enum Announce {
    True,
    Other(u64),
    Chunked,
}

/// What happens after how many bytes of the body.
#[derive(Debug, Clone, Copy)]
enum End {
    Whole,
    NoAnswer,
    Cut(u64),
    Stall(u64),
}

/// Picks the reply to a request, which is the so-manieth from 0 on.
type Choose = dyn Fn(&Request, usize) -> Reply + Send + Sync;

struct Shared {
    body: Vec<u8>,
    choose: Box<Choose>,
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Request>,
    stop: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, requests) = (self.body.len(), self.lock().requests.len());
        write!(f, "{bytes} bytes, {requests} requests")
    }
}

impl Request {
    /// The value of a header, whose name is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl Reply {
    /// The right answer: 200 or, to `Range` with a matching `If-Range` or none, 206, or 416 behind
    /// the end; `ETag: "v1"`, `Accept-Ranges: bytes`, `Content-Length`.
    pub fn honest() -> Self {
        Self {
            status: None,
            etag: Some("\"v1\"".to_owned()),
            ranges: true,
            announces_ranges: true,
            range_shift: 0,
            range_stretch: 0,
            total_lie: 0,
            announce: Announce::True,
            headers: Vec::new(),
            body: None,
            end: End::Whole,
            drip: None,
        }
    }

    /// An error of this status with a short text.
    pub fn status(status: u16) -> Self {
        let reply = Self { status: Some(status), etag: None, ranges: false, ..Self::honest() };
        reply.body(format!("status {status}\n"))
    }

    /// A redirect (302) to another URL.
    pub fn redirect(url: &str) -> Self {
        Self::status(302).header("Location", url)
    }

    /// A web page with status 200 where a disk was expected.
    pub fn html() -> Self {
        let page = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n";
        Self::honest().body(page).header("Content-Type", "text/html; charset=utf-8")
    }

    /// The connection is closed without an answer.
    pub fn hang_up() -> Self {
        Self { end: End::NoAnswer, ..Self::honest() }
    }

    /// The connection is closed after `bytes` of the body.
    #[must_use]
    pub fn cut_after(self, bytes: u64) -> Self {
        Self { end: End::Cut(bytes), ..self }
    }

    /// Nothing comes after `bytes` of the body, but the connection stays open.
    #[must_use]
    pub fn stall_after(self, bytes: u64) -> Self {
        Self { end: End::Stall(bytes), ..self }
    }

    /// The body comes in blocks of `bytes`, with a pause after each.
    #[must_use]
    pub fn drip(self, bytes: usize, pause: Duration) -> Self {
        Self { drip: Some((bytes, pause)), ..self }
    }

    /// `Content-Length` says `length`, whatever the body's is.
    #[must_use]
    pub fn content_length(self, length: u64) -> Self {
        Self { announce: Announce::Other(length), ..self }
    }

    /// No `Content-Length`: the body comes chunked.
    #[must_use]
    pub fn chunked(self) -> Self {
        Self { announce: Announce::Chunked, ..self }
    }

    /// Another `ETag`, or none.
    #[must_use]
    pub fn etag(self, etag: Option<&str>) -> Self {
        Self { etag: etag.map(str::to_owned), ..self }
    }

    /// `Range` is ignored and `Accept-Ranges` absent.
    #[must_use]
    pub fn no_ranges(self) -> Self {
        Self { ranges: false, ..self }
    }

    /// Ranges are served, but no `Accept-Ranges` says so.
    #[must_use]
    pub fn silent_about_ranges(self) -> Self {
        Self { announces_ranges: false, ..self }
    }

    /// A 206 starts `shift` bytes behind the asked range, and `Content-Range` admits it.
    #[must_use]
    pub fn shift_range(self, shift: u64) -> Self {
        Self { range_shift: shift, ..self }
    }

    /// A 206 brings up to `more` bytes than its `Content-Range` says.
    #[must_use]
    pub fn stretch_range(self, more: usize) -> Self {
        Self { range_stretch: more, ..self }
    }

    /// A 206 names a total that is `more` bytes too large.
    #[must_use]
    pub fn lie_about_total(self, more: u64) -> Self {
        Self { total_lie: more, ..self }
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another body than the server's.
    #[must_use]
    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: Some(body.into()), ..self }
    }
}

impl FaultServer {
    /// Serves `body`: the first request gets the first of `replies` and so on; the last is repeated
    /// for all that follow. Without `replies` every answer is honest.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub fn serve(body: impl Into<Vec<u8>>, replies: impl IntoIterator<Item = Reply>) -> Self {
        let replies: Vec<Reply> = replies.into_iter().collect();
        Self::serve_with(body, move |_, index| {
            let index = index.min(replies.len().saturating_sub(1));
            replies.get(index).cloned().unwrap_or_else(Reply::honest)
        })
    }

    /// Serves `body` with the reply that `choose` gives to each request and its number from 0 on.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub fn serve_with(
        body: impl Into<Vec<u8>>,
        choose: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            body: body.into(),
            choose: Box::new(choose),
            state: Mutex::default(),
            stopped: Condvar::new(),
        });
        let for_thread = Arc::clone(&shared);
        let accepting = thread::spawn(move || accept(&listener, &for_thread));
        Self { address, shared, accepting: Some(accepting) }
    }

    /// The URL of `path`, which starts with a slash or not.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{}", self.address, path.trim_start_matches('/'))
    }

    /// The port on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Every request so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.stopped.notify_all();
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread that panicked has left nothing half-changed: both fields are set in one step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Records the request and picks its reply.
    fn take_reply(&self, request: &Request) -> Reply {
        let index = {
            let mut state = self.lock();
            state.requests.push(request.clone());
            state.requests.len() - 1
        };
        (self.choose)(request, index)
    }

    fn wait_for_stop(&self) {
        let stalled = self.stopped.wait_timeout_while(self.lock(), SOCKET_LIMIT, |s| !s.stop);
        drop(stalled);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming() {
        if shared.lock().stop {
            return;
        }
        let Ok(connection) = connection else { continue };
        let shared = Arc::clone(shared);
        // An error is the client's doing: it went away, which is what some tests are about.
        thread::spawn(move || {
            let _ = answer(&connection, &shared);
        });
    }
}

fn answer(mut connection: &TcpStream, shared: &Shared) -> io::Result<()> {
    connection.set_read_timeout(Some(SOCKET_LIMIT))?;
    connection.set_write_timeout(Some(SOCKET_LIMIT))?;
    let Some(request) = read_request(&mut BufReader::new(connection))? else { return Ok(()) };
    let reply = shared.take_reply(&request);
    if matches!(reply.end, End::NoAnswer) {
        return Ok(());
    }
    let full = reply.body.as_deref().unwrap_or(&shared.body);
    let (head, body) = compose(&reply, &request, full);
    connection.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let (end, stall) = match reply.end {
        End::Cut(bytes) => (bytes, false),
        End::Stall(bytes) => (bytes, true),
        End::Whole | End::NoAnswer => (u64::MAX, false),
    };
    let sent = &body[..body.len().min(usize::try_from(end).unwrap_or(usize::MAX))];
    let (block, pause) = reply.drip.unwrap_or((BLOCK, Duration::ZERO));
    for part in sent.chunks(block) {
        write_part(connection, part, reply.announce)?;
        thread::sleep(pause);
    }
    if stall {
        shared.wait_for_stop();
    } else if matches!((reply.announce, reply.end), (Announce::Chunked, End::Whole)) {
        connection.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}

fn write_part(mut connection: &TcpStream, part: &[u8], announce: Announce) -> io::Result<()> {
    if matches!(announce, Announce::Chunked) {
        write!(connection, "{:x}\r\n", part.len())?;
        connection.write_all(part)?;
        return connection.write_all(b"\r\n");
    }
    connection.write_all(part)
}

/// Reads up to the empty line; `None` if the client closed the connection first.
fn read_request(from: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let method = words.next().unwrap_or_default();
    let path = words.next().unwrap_or_default();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Request { method, path, headers }))
}

/// The status line with the headers, and the part of `full` that follows them.
fn compose<'a>(reply: &Reply, request: &Request, full: &'a [u8]) -> (String, &'a [u8]) {
    let range = reply.ranges.then(|| asked_range(reply, request, full.len())).flatten();
    let (status, body) = match (reply.status, range) {
        (Some(status), _) => (status, full),
        (None, None) => (200, full),
        (None, Some((start, end))) if start < end => {
            (206, &full[start..full.len().min(end + reply.range_stretch)])
        }
        (None, Some(_)) => (416, &full[..0]),
    };
    let mut head = format!("HTTP/1.1 {status} Test\r\nConnection: close\r\n");
    let mut header = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
    if let (206, Some((start, end))) = (status, range) {
        let total = full.len() as u64 + reply.total_lie;
        header("Content-Range", &format!("bytes {start}-{}/{total}", end - 1));
    }
    if status == 416 && reply.status.is_none() {
        header("Content-Range", &format!("bytes */{}", full.len()));
    }
    match reply.announce {
        Announce::True => header("Content-Length", &body.len().to_string()),
        Announce::Other(length) => header("Content-Length", &length.to_string()),
        Announce::Chunked => header("Transfer-Encoding", "chunked"),
    }
    if reply.ranges && reply.announces_ranges {
        header("Accept-Ranges", "bytes");
    }
    if let Some(etag) = &reply.etag {
        header("ETag", etag);
    }
    reply.headers.iter().for_each(|(name, value)| header(name, value));
    head.push_str("\r\n");
    (head, body)
}

/// The range of a `bytes=FIRST-[LAST]` request (RFC 9110 §14.1.2) that `If-Range` allows, moved by
/// the reply's lie; empty if it begins behind the end, and `None` for the whole body.
fn asked_range(reply: &Reply, request: &Request, len: usize) -> Option<(usize, usize)> {
    if request.header("if-range").is_some_and(|wanted| Some(wanted) != reply.etag.as_deref()) {
        return None;
    }
    let (first, last) = request.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
    let shift = usize::try_from(reply.range_shift).ok()?;
    let start = first.parse::<usize>().ok()?.checked_add(shift)?;
    let end = last.parse::<usize>().map_or(len, |last| len.min(last + 1 + shift));
    Some((start, end.max(start)))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "curl is the client that judges the server")]
mod tests {
    use super::*;
    use std::process::Command;

    /// Body and exit code of curl, which is 18 for a short body and 28 for a timeout.
    fn curl(arguments: &[&str]) -> (String, i32) {
        let output = Command::new("curl").args(["-sSi", "-m", "1"]).args(arguments).output();
        let output = output.unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    #[test]
    fn each_fault_is_what_curl_sees() {
        if !crate::require_tool("curl") {
            return;
        }
        let body = "0123456789";
        let cases: [(Reply, &[&str], i32, &str); 11] = [
            (Reply::honest(), &[], 0, "0123456789"),
            (Reply::honest(), &["-r", "2-4"], 0, "bytes 2-4/10"),
            (Reply::honest(), &["-r", "10-"], 0, "bytes */10"),
            (Reply::honest(), &["-r", "2-", "-H", "If-Range: \"v0\""], 0, "0123456789"),
            (Reply::honest().chunked(), &[], 0, "0123456789"),
            (Reply::honest().cut_after(4), &[], 18, "0123"),
            (Reply::honest().chunked().cut_after(4), &[], 18, "0123"),
            (Reply::honest().stall_after(4), &[], 28, "0123"),
            (Reply::honest().content_length(12), &[], 18, "0123456789"),
            (Reply::hang_up(), &[], 52, ""),
            (Reply::honest().shift_range(1), &["-r", "2-4"], 0, "bytes 3-5/10"),
        ];
        for (reply, arguments, code, part) in cases {
            let shown = format!("{reply:?}");
            let server = FaultServer::serve(body, [reply]);
            let (answer, got) = curl(&[arguments, &[&server.url("x")]].concat());
            assert_eq!(got, code, "{shown}\n{answer}");
            assert!(answer.contains(part), "{shown}\n{answer}");
        }
    }

    #[test]
    fn replies_come_in_order_and_the_last_stays() {
        if !crate::require_tool("curl") {
            return;
        }
        let replies = [Reply::status(503), Reply::honest().etag(Some("\"v2\"")), Reply::html()];
        let server = FaultServer::serve("disk", replies);
        for expected in ["503", "\"v2\"", "text/html", "text/html"] {
            let (answer, _) = curl(&[&server.url("/a?b"), "-H", "X-Asked: yes"]);
            assert!(answer.contains(expected), "{expected} not in {answer}");
        }
        let requests = server.requests();
        assert_eq!(requests.len(), 4);
        assert_eq!((requests[0].method.as_str(), requests[0].path.as_str()), ("GET", "/a?b"));
        assert_eq!(requests[3].header("x-asked"), Some("yes"));
    }
}
