//! A stream out of consecutive segments, several of which are on their way at once.
//!
//! Each segment is read by a task of its own, so that it comes in while nobody asks for bytes, and
//! given out in the order of the object. A segment is asked for when an earlier one has been given
//! out, which bounds what waits in memory by the connections times [`SEGMENT`].
//!
//! More connections are opened only while who reads waits for bytes more than it works. Where one connection
//! brings them faster than they are used, what others bring besides lies in memory until it has left
//! the processor's caches: on loopback four connections at once took 1.2 times as long as one. With
//! 20 MB/s for a connection, four took a seventh of the time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::Error;
use crate::error::Progress;
use crate::part::Part;
use crate::range::Wanted;
use crate::server::{Server, Version};

/// The bytes of one request: long enough that a request's round trip is nothing beside it on a fast
/// link, and short enough that several of them fit in memory.
pub(crate) const SEGMENT: u64 = 2 << 20;

/// The wait within one segment that is worth another connection. A link that makes nobody wait so
/// long brings 200 MB/s, which is more than most images are decoded at.
const PATIENCE: Duration = Duration::from_millis(10);

/// How long the source must have been waited for at all. Before that, a decoder that is slow may only
/// be filling its buffers.
const FILLING: Duration = Duration::from_millis(100);

/// How long it is remembered what part of the time was waiting: a decoder that works in bursts may
/// wait through whole segments and yet be the slow one.
const MEMORY: Duration = Duration::from_secs(5);

/// When so much is left of the last segment on its way, the next one is asked for, so that its round
/// trip passes meanwhile.
const LEAD: u64 = 1 << 20;

/// The chunks that a segment keeps ready while it alone is fast enough.
const QUEUED_ALONE: usize = 1;

/// The chunks that a segment keeps ready otherwise: more than it is made of, unless a server sends it
/// in crumbs.
const QUEUED: usize = 1024;

#[derive(Debug)]
pub(crate) struct Segments {
    server: Arc<Server>,
    version: Version,
    len: u64,
    /// The first segment, whose answer has come, until somebody wants its bytes.
    first: Option<Part>,
    /// In the order of the object.
    under_way: VecDeque<Segment>,
    /// The next byte to ask for.
    asked: u64,
    /// The next byte to give out.
    received: u64,
    /// How many segments may be under way; the server's limit is below or above it.
    width: usize,
    /// How long the present segment has been waited for since the last connection was added.
    waited: Duration,
    share: Share,
}

/// What part of the time is waiting, by and large.
#[derive(Debug)]
struct Share {
    waited: Duration,
    passed: Duration,
    since: Instant,
}

/// A segment that a task reads.
#[derive(Debug)]
struct Segment {
    end: u64,
    /// Bounded in bytes by the segment's length, which a [`Part`] never exceeds.
    chunks: Receiver<Result<Bytes, Error>>,
    task: AbortHandle,
}

impl Segments {
    /// The stream from `start` on, whose first segment is there as `first`.
    pub(crate) fn new(
        server: &Arc<Server>,
        version: &Version,
        (start, len): (u64, u64),
        first: Part,
    ) -> Self {
        Self {
            server: Arc::clone(server),
            version: version.clone(),
            len,
            first: Some(first),
            under_way: VecDeque::new(),
            asked: start,
            received: start,
            width: 1,
            waited: Duration::ZERO,
            share: Share::new(),
        }
    }

    /// The next bytes, not empty; `None` at the end of the object. Nothing is lost if the future is
    /// dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            self.ask();
            let Some(segment) = self.under_way.front_mut() else { return Ok(None) };
            let chunk = match segment.chunks.try_recv() {
                Ok(chunk) => Some(chunk),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    let since = Instant::now();
                    let chunk = segment.chunks.recv().await;
                    self.waited += since.elapsed();
                    self.share.waited += since.elapsed();
                    chunk
                }
            };
            match chunk {
                Some(Ok(bytes)) => {
                    self.received += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Some(Err(error)) => return Err(self.fail(error)),
                None if self.received == segment.end => {
                    self.under_way.pop_front();
                    self.waited = Duration::ZERO;
                }
                // The runtime took the task away.
                None => {
                    let progress = Progress { received: self.received, len: Some(self.len) };
                    let error = Error::ended_early().within(self.server.name(), progress);
                    return Err(self.fail(error));
                }
            }
        }
    }

    /// Starts as many segments as may be under way.
    fn ask(&mut self) {
        let connections = self.server.connections();
        // Who is busy with the bytes for longer than waiting for them gains nothing by more.
        if self.waited > PATIENCE && self.width < connections && self.share.is_most() {
            self.width += 1;
            self.waited = Duration::ZERO;
        }
        let ahead = if self.asked - self.received < LEAD { 1 } else { 0 };
        let queued = if self.width == 1 { QUEUED_ALONE } else { QUEUED };
        while self.asked < self.len && self.under_way.len() < self.width.min(connections) + ahead {
            let end = self.asked.saturating_add(SEGMENT).min(self.len);
            let wanted = Wanted { start: self.asked, end: Some(end) };
            let new = || Part::new(&self.server, &self.version, wanted);
            let part = self.first.take().unwrap_or_else(new);
            self.under_way.push_back(Segment::start(part, end, queued));
            self.asked = end;
        }
    }

    /// Ends the stream.
    fn fail(&mut self, error: Error) -> Error {
        self.under_way.clear();
        self.asked = self.len;
        error
    }
}

impl Share {
    fn new() -> Self {
        let [waited, passed] = [Duration::ZERO; 2];
        Self { waited, passed, since: Instant::now() }
    }

    /// Whether more than half of the time was waiting, once it counts. What lies back counts half as much after
    /// each [`MEMORY`].
    fn is_most(&mut self) -> bool {
        self.passed += self.since.elapsed();
        self.since = Instant::now();
        let is_most = self.waited > FILLING.max(self.passed / 2);
        if self.passed > MEMORY {
            self.waited /= 2;
            self.passed /= 2;
        }
        is_most
    }
}

impl Segment {
    fn start(mut part: Part, end: u64, queued: usize) -> Self {
        let (sender, chunks) = channel(queued);
        let reading = async move {
            loop {
                let (chunk, last) = match part.next().await {
                    Ok(Some(bytes)) => (Ok(bytes), false),
                    Ok(None) => return,
                    Err(error) => (Err(error), true),
                };
                if sender.send(chunk).await.is_err() || last {
                    return;
                }
            }
        };
        Self { end, chunks, task: tokio::spawn(reading).abort_handle() }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.task.abort();
    }
}
