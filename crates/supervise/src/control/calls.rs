//! Questions over a stream whose answers are read by another thread.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::passing::send_line;

/// How long an answer may take. A machine answers in milliseconds; on a host that swaps it may not.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The questions that wait for an answer `T`.
pub(crate) struct Calls<T> {
    /// Where questions go, and the last one's id.
    questions: Mutex<(UnixStream, u64)>,
    /// `None` once there are no more answers.
    waiting: Mutex<Option<HashMap<u64, SyncSender<T>>>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CallFailed {
    /// The other side is gone.
    Gone,
    /// It took too long.
    TimedOut,
}

impl<T> Calls<T> {
    pub(crate) fn new(questions: UnixStream) -> Self {
        let waiting = Mutex::new(Some(HashMap::new()));
        Self { questions: Mutex::new((questions, 0)), waiting }
    }

    /// Sends the line that `question` makes of a new id, and waits for its answer.
    pub(crate) fn call(&self, question: impl FnOnce(u64) -> Vec<u8>) -> Result<T, CallFailed> {
        self.call_passing(None, question)
    }

    /// [`Calls::call`], and the other side gets the open file `passed` with the line.
    pub(crate) fn call_passing(
        &self,
        passed: Option<BorrowedFd<'_>>,
        question: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<T, CallFailed> {
        let (answer, answered) = mpsc::sync_channel(1);
        let id = {
            let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
            let (stream, id) = &mut *questions;
            *id += 1;
            self.waiting().as_mut().ok_or(CallFailed::Gone)?.insert(*id, answer);
            if send_line(stream, &question(*id), passed).is_err() {
                self.close();
            }
            *id
        };
        answered.recv_timeout(ANSWER_MAX).map_err(|error| match error {
            mpsc::RecvTimeoutError::Disconnected => CallFailed::Gone,
            mpsc::RecvTimeoutError::Timeout => {
                self.waiting().as_mut().map(|waiting| waiting.remove(&id));
                CallFailed::TimedOut
            }
        })
    }

    /// An answer has come. One that nobody waits for any more is dropped.
    pub(crate) fn answer(&self, id: u64, answer: T) {
        let asked = self.waiting().as_mut().and_then(|waiting| waiting.remove(&id));
        if let Some(asked) = asked {
            let _ = asked.try_send(answer);
        }
    }

    /// There are no more answers.
    pub(crate) fn close(&self) {
        *self.waiting() = None;
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, SyncSender<T>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Calls<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}
