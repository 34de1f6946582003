//! The signals by which a user stops a command.

use std::thread;

use bootyard_spec::Class;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::Failure;

/// Calls `stop` when the first SIGINT or SIGTERM comes. The second one ends the process at once, as
/// it would have without us.
pub(crate) fn once(stop: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let failed = |error| Failure::new(Class::Other, error);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt()).map_err(failed)?,
            signal(SignalKind::terminate()).map_err(failed)?,
        )
    };
    let wait = move || {
        let first = async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        };
        runtime.block_on(first);
        stop();
        let second = async {
            tokio::select! { _ = interrupt.recv() => 2, _ = terminate.recv() => 15 }
        };
        exit(runtime.block_on(second));
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(failed)?;
    Ok(())
}

#[expect(clippy::exit, reason = "the user insists")]
fn exit(signal: i32) -> ! {
    std::process::exit(128 + signal)
}
