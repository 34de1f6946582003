//! The signals by which a user stops a command.

use std::thread;

use bootyard_spec::Class;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::Failure;
use crate::terminal;

/// The signals that end a command, with their numbers.
const SIGNALS: [(SignalKind, i32); 3] =
    [(SignalKind::hangup(), 1), (SignalKind::interrupt(), 2), (SignalKind::terminate(), 15)];

/// Calls `stop` when the first of [`SIGNALS`] comes. The second one ends the process at once, as it
/// would have without us.
pub(crate) fn once(stop: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let failed = |error| Failure::new(Class::Other, error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (sent, mut received) = tokio::sync::mpsc::unbounded_channel();
    for (kind, number) in SIGNALS {
        let _inside = runtime.enter();
        let mut signal = signal(kind).map_err(failed)?;
        let sent = sent.clone();
        runtime.spawn(async move {
            while signal.recv().await.is_some() && sent.send(number).is_ok() {}
        });
    }
    let wait = move || {
        runtime.block_on(received.recv());
        stop();
        if let Some(number) = runtime.block_on(received.recv()) {
            exit(number);
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
    Ok(())
}

#[expect(clippy::exit, reason = "the user insists")]
fn exit(signal: i32) {
    terminal::restore();
    std::process::exit(128 + signal)
}
