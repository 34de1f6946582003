//! The keyboard controller (Intel 8042), of which only the reset line is there: Linux pulls it
//! where the ACPI reset does not work.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::exit::{Exit, ExitLatch};

/// Offset of the command and status register.
const COMMAND: u64 = 4;
/// Pulses output line 0, which is the processor's reset.
const PULSE_RESET: u8 = 0xfe;

pub(crate) struct KeyboardController {
    exit: Arc<ExitLatch>,
}

impl KeyboardController {
    pub(crate) fn new(exit: Arc<ExitLatch>) -> Self {
        Self { exit }
    }
}

impl BusDevice for KeyboardController {
    /// Reads zero: both buffers empty, so that nobody waits for the controller.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data.first() == Some(&PULSE_RESET) {
            self.exit.post(Ok(Exit::Reset));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pulse_on_the_reset_line_resets() {
        for (offset, value, expected) in
            [(4, 0xfe, Some(Exit::Reset)), (0, 0xfe, None), (4, 0xff, None), (4, 0x20, None)]
        {
            let exit = Arc::new(ExitLatch::default());
            KeyboardController::new(Arc::clone(&exit)).write(offset, &[value]);
            assert_eq!(exit.take().transpose().unwrap(), expected, "{offset} {value:#x}");
        }
    }
}
