//! The few devices of a PC that have fixed I/O ports. None is found by probing a bus: ACPI names
//! them, or Linux knows them.

mod keyboard;
mod panic;
mod power;
mod rtc;
mod serial;

pub(crate) use keyboard::KeyboardController;
pub(crate) use panic::PanicDevice;
pub(crate) use power::PowerPorts;
pub(crate) use rtc::Rtc;
pub(crate) use serial::{Output, SerialPort};
