//! The server: connections, who may send, and the one upload that it takes.
//!
//! ```text
//! accept ─► connection ─► answer ─► upload | resumable ─Job─► the caller's thread: import
//!  (one thread for the network)          ◄──────── verdict ────────┘
//! ```

use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bootyard_import::Cancel;
use bootyard_source::{Feed, Inlet, Openings, Validator};
use bootyard_spec::Digest;
use bootyard_volume::Store;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::body::Chunks;
use crate::error::Refusal;
use crate::job::{Content, Ended, Job, Outcome, Watch, verdict};
use crate::resumable;
use crate::route::{Route, route};
use crate::token::BadToken;
use crate::{Access, Error, Options, tls, upload};

/// How many clients may be connected at once; others wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a client may take for the handshake of TLS, and for the head of a request: not long, since
/// as many as may be connected keep everyone else out meanwhile.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// How long clients have for the last answers when the server ends.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Takes one upload, and tells what became of it.
///
/// Ends when the upload is complete, or, with [`Options::keep`], when it is stopped after that. Imports
/// run on this thread. Needs [`bootyard_source::install_crypto_provider`] to have been called, and must
/// not be called from async code.
///
/// # Errors
///
/// If TLS cannot be set up, or if `cancel` stops the server before an upload is complete. A failed
/// upload is told to its client and to `watch`, and another one may come.
pub fn serve(
    listener: TcpListener,
    options: &Options,
    store: &Store,
    watch: &dyn Watch,
    cancel: &Cancel,
) -> Result<Outcome, Error> {
    let acceptor = options.tls.as_ref().map(tls::acceptor).transpose()?;
    listener.set_nonblocking(true).map_err(Error::Setup)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::Setup)?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(Error::Setup)?
    };
    let (jobs, inbox) = mpsc::channel();
    let mut shared = Shared::new(options.clone(), jobs, cancel.clone());
    shared.is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let shared = Arc::new(shared);
    let network = thread::Builder::new().name("upload".into());
    let network = network
        .spawn(move || runtime.block_on(accept(listener, acceptor, shared)))
        .map_err(Error::Setup)?;
    let mut outcome = None;
    // Over when the network is, which has the other end.
    for job in inbox {
        outcome = Job::run(job, options, store, watch, cancel).or(outcome);
    }
    network.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    outcome.ok_or(Error::Stopped)
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) sessions: resumable::Sessions,
    jobs: mpsc::Sender<Job>,
    state: Mutex<State>,
    /// The server has done its work.
    ended: watch::Sender<bool>,
    cancel: Cancel,
    /// Only this machine reaches the server.
    is_local: bool,
}

#[derive(Debug)]
enum State {
    Ready,
    Busy,
    Done(Finished),
}

/// A complete upload.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    /// Its name in the resumable protocol.
    pub(crate) id: Option<String>,
    pub(crate) len: u64,
    pub(crate) sha256: Digest,
}

/// What an import begins with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) name: String,
    pub(crate) content: Content,
    pub(crate) checksum: Option<Digest>,
    pub(crate) len: Option<u64>,
    pub(crate) validator: Option<Validator>,
}

/// An import that waits for its bytes.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) feed: Feed,
    /// Should it want to begin anew.
    pub(crate) openings: Openings,
    pub(crate) ended: oneshot::Receiver<Ended>,
}

/// The right to the target. Others may have it when this is dropped, unless it is done.
#[derive(Debug)]
pub(crate) struct Claim(Arc<Shared>);

impl Shared {
    fn new(options: Options, jobs: mpsc::Sender<Job>, cancel: Cancel) -> Self {
        let (state, (ended, _)) = (Mutex::new(State::Ready), watch::channel(false));
        Self {
            options,
            sessions: resumable::Sessions::new(),
            jobs,
            state,
            ended,
            cancel,
            is_local: false,
        }
    }

    pub(crate) fn claim(self: &Arc<Self>) -> Result<Claim, Refusal> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Ready => {
                *state = State::Busy;
                Ok(Claim(Arc::clone(self)))
            }
            State::Busy => Err(Refusal::busy()),
            State::Done(_) => Err(Refusal::done()),
        }
    }

    /// The upload that is complete.
    pub(crate) fn finished(&self) -> Option<Finished> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Done(finished) => Some(finished.clone()),
            State::Ready | State::Busy => None,
        }
    }

    /// Starts an import, and waits until it wants its first bytes.
    pub(crate) async fn begin(&self, start: Start) -> Result<Running, Refusal> {
        let Start { name, content, checksum, len, validator } = start;
        let (inlet, mut openings) = Inlet::new(len, validator);
        let (sender, ended) = oneshot::channel();
        // If nobody takes it, the verdict says so.
        let _ = self.jobs.send(Job { name, content, checksum, inlet, ended: sender });
        match openings.next().await {
            Some(feed) => Ok(Running { feed, openings, ended }),
            None => Err(verdict(ended).await.err().unwrap_or_else(|| {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the import took no bytes")
            })),
        }
    }

    /// Whether a request may be made: by the client's certificate, and by what it carries.
    fn authorize(&self, peer: Peer, headers: &HeaderMap) -> Result<(), Refusal> {
        if !peer.is_known {
            return Err(Refusal::unauthorized("expected a certificate of a client of this server"));
        }
        if matches!(self.options.access, Access::Anyone) {
            let by_certificate =
                self.options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
            return if by_certificate { Ok(()) } else { refuse_pages(headers, self.is_local) };
        }
        let header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = header.and_then(|text| text.trim().split_once(char::is_whitespace));
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let Some((_, token)) = bearer else {
            return Err(Refusal::bad_request("expected `Authorization: Bearer TOKEN`"));
        };
        match &self.options.access {
            Access::Anyone => Ok(()),
            // The digests differ in a way that tells nothing of where the texts do.
            Access::Token(own) if sha256(token.trim()) == sha256(own.expose()) => Ok(()),
            Access::Token(_) => Err(Refusal::unauthorized("the token is not this server's")),
            Access::Signed(key, subject) => {
                key.check(token.trim(), subject, now()).map_err(|bad| match bad {
                    BadToken::Operation => Refusal::bad_request(bad.to_string()),
                    _ => Refusal::unauthorized(bad.to_string()),
                })
            }
        }
    }
}

impl Finished {
    /// Refuses what is said to be this upload and has another digest.
    pub(crate) fn compare(&self, told: Option<&Digest>) -> Result<(), Refusal> {
        match told {
            Some(told) if *told != self.sha256 => {
                let own = &self.sha256;
                Err(Refusal::bad_request(format!("checksum mismatch: expected {told}, got {own}")))
            }
            _ => Ok(()),
        }
    }
}

impl Claim {
    /// The upload is complete: there will be no other one.
    pub(crate) fn done(self, finished: Finished) {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Done(finished);
        if !self.0.options.keep {
            self.0.ended.send_replace(true);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Busy) {
            *state = State::Ready;
        }
    }
}

/// Refuses what a page in a browser of somebody who may reach the server sends without their knowledge:
/// browsers say where the page is from, and by which name they were led here.
fn refuse_pages(headers: &HeaderMap, is_local: bool) -> Result<(), Refusal> {
    let refused = |text| Err(Refusal::new(StatusCode::FORBIDDEN, text));
    if headers.contains_key(ORIGIN) {
        return refused("requests with `Origin`, as pages in browsers make them, need a token");
    }
    match headers.get(HOST) {
        Some(host) if is_local && !host.to_str().is_ok_and(is_loopback) => {
            refused("expected `Host` to be a name or an address of this machine's loopback")
        }
        _ => Ok(()),
    }
}

/// Whether the value of `Host` is `localhost` or a loopback address, with a port or without.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn sha256(text: &str) -> impl AsRef<[u8]> + PartialEq {
    ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref().to_vec()
}

/// The time since 1970.
fn now() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "tokens have an end")]
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Accepts connections until the server is done or stopped; then those that are left may end.
async fn accept(
    listener: tokio::net::TcpListener,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut ended = shared.ended.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        let (slot, stream, client) = tokio::select! {
            _ = ended.wait_for(|ended| *ended) => break,
            () = shared.cancel.cancelled() => break,
            accepted = next => match accepted {
                Some((slot, Ok((stream, address)))) => (slot, stream, address.ip()),
                // Too many open files, or a client that is gone already.
                _ => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
        connections.spawn(async move {
            // A client that fails is its own affair.
            let _ = connection(shared, acceptor, stream, client).await;
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    shared.ended.send_replace(true);
    shared.sessions.clear().await;
    let rest = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(END_LIMIT, rest).await;
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// Its certificate is what is wanted, if one is.
    is_known: bool,
}

async fn connection(
    shared: Arc<Shared>,
    acceptor: Option<TlsAcceptor>,
    stream: TcpStream,
    address: IpAddr,
) -> io::Result<()> {
    // Answers are small, and each is waited for.
    stream.set_nodelay(true)?;
    let wanted = shared.options.tls.as_ref().filter(|tls| tls.client_ca.is_some());
    let Some(acceptor) = acceptor else {
        return converse(shared, Peer { address, is_known: true }, stream).await;
    };
    let stream = timeout(HEAD_LIMIT, acceptor.accept(stream)).await??;
    let is_known = wanted.is_none_or(|wanted| {
        let certificates = stream.get_ref().1.peer_certificates();
        let first = certificates.and_then(<[_]>::first);
        first.is_some_and(|own| {
            wanted.client_name.as_ref().is_none_or(|name| tls::is_named(own, name))
        })
    });
    converse(shared, Peer { address, is_known }, stream).await
}

async fn converse<S>(shared: Arc<Shared>, peer: Peer, stream: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut ended = shared.ended.subscribe();
    let service = service_fn(move |request| {
        let answer = answer(Arc::clone(&shared), peer, request);
        async { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let over = async {
        // The value is not to be held while the connection ends.
        let _ = ended.wait_for(|ended| *ended).await;
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = over => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    served.map_err(io::Error::other)
}

async fn answer(
    shared: Arc<Shared>,
    peer: Peer,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let answered = match route(request.method(), request.uri().path()) {
        None => Err(Refusal::new(StatusCode::NOT_FOUND, "there is nothing here")),
        Some(Route::Health) => Ok(Response::new(Full::from("OK"))),
        Some(Route::Discovery) => Ok(Response::default()),
        Some(route) => match shared.authorize(peer, request.headers()) {
            Err(refusal) => {
                Chunks::new(request.into_body(), shared.options.stall_timeout).drain();
                Err(refusal)
            }
            Ok(()) => {
                // A task of its own: hyper drops this one when the client is gone.
                let task = tokio::spawn(async move {
                    match route {
                        Route::Upload(form) => {
                            upload::receive(shared, peer.address, form, request).await
                        }
                        Route::Resumable(id) => {
                            resumable::receive(shared, peer.address, id, request).await
                        }
                        Route::Health | Route::Discovery => Ok(Response::default()),
                    }
                });
                task.await.unwrap_or_else(|_| {
                    let status = StatusCode::INTERNAL_SERVER_ERROR;
                    Err(Refusal::new(status, "the server failed"))
                })
            }
        },
    };
    answered.unwrap_or_else(Refusal::into_response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_this_machine_or_is_not() {
        for host in
            ["localhost", "LocalHost:80", "127.0.0.1:8443", "127.1.2.3", "[::1]:80", "[::1]"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["", ":80", "evil.example:8443", "localhost.evil.example", "10.0.0.1", "[::2]:1"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
