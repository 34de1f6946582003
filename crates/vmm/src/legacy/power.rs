//! ACPI's registers of a hardware-reduced platform: sleep control, sleep status, reset
//! (ACPI 6.5 §4.8.3.6 and §4.8.3.7).

use std::sync::Arc;

use crate::arch::x86_64::acpi::{RESET_VALUE, SLEEP_TYPE_S5};
use crate::bus::BusDevice;
use crate::exit::{Exit, ExitLatch};

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

pub(crate) struct PowerPorts {
    exit: Arc<ExitLatch>,
}

impl PowerPorts {
    pub(crate) fn new(exit: Arc<ExitLatch>) -> Self {
        Self { exit }
    }
}

impl BusDevice for PowerPorts {
    /// Reads zero: never woken, because only S5 is there to sleep in.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let sleeps = |value: u8| {
            value & SLEEP_ENABLE != 0
                && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_S5
        };
        match (offset, data[0]) {
            (SLEEP_CONTROL, value) if sleeps(value) => self.exit.post(Ok(Exit::PowerOff)),
            (RESET, RESET_VALUE) => self.exit.post(Ok(Exit::Reset)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_values_end_the_guest() {
        for (offset, value, expected) in [
            (0, 0x34, Some(Exit::PowerOff)),
            (0, 0x14, None),
            (0, 0x20, None),
            (1, 0x34, None),
            (2, 1, Some(Exit::Reset)),
            (2, 0, None),
        ] {
            let exit = Arc::new(ExitLatch::default());
            PowerPorts::new(Arc::clone(&exit)).write(offset, &[value]);
            assert_eq!(exit.take().transpose().unwrap(), expected, "{offset} {value:#x}");
        }
    }
}
