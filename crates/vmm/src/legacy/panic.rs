//! QEMU's paravirtual panic device (docs/specs/pvpanic.rst): one port, through which the guest's
//! kernel tells that it has crashed.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::exit::{Exit, ExitLatch};

/// The guest panicked and will do nothing more.
const PANICKED: u8 = 1 << 0;
/// The guest panicked and runs a crash kernel now, which will restart it.
const CRASH_LOADED: u8 = 1 << 1;

pub(crate) struct PanicDevice {
    exit: Arc<ExitLatch>,
}

impl PanicDevice {
    pub(crate) fn new(exit: Arc<ExitLatch>) -> Self {
        Self { exit }
    }
}

impl BusDevice for PanicDevice {
    /// Reads the events that this device understands.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = PANICKED | CRASH_LOADED;
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data[0] & PANICKED != 0 {
            self.exit.post(Ok(Exit::Crash { why: "the guest's kernel panicked".to_owned() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_guest_unless_a_crash_kernel_takes_over() {
        for (events, ends) in [(PANICKED, true), (CRASH_LOADED, false), (0x80, false), (0, false)] {
            let exit = Arc::new(ExitLatch::default());
            let device = PanicDevice::new(Arc::clone(&exit));
            let mut known = [0];
            device.read(0, &mut known);
            assert_eq!(known, [3]);
            device.write(0, &[events]);
            assert_eq!(exit.is_posted(), ends, "{events:#x}");
        }
    }
}
