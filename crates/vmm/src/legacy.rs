//! The few devices of a PC that have fixed I/O ports. None is found by probing a bus: ACPI names
//! them, or Linux knows them.

mod keyboard;
mod panic;
mod power;
mod rtc;
mod serial;

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::layout;
use crate::bus::{Bus, BusDevice};
use crate::exit::ExitLatch;

pub(crate) use keyboard::KeyboardController;
pub(crate) use panic::PanicDevice;
pub(crate) use power::PowerPorts;
pub(crate) use rtc::Rtc;
pub(crate) use serial::{Output, SerialPort};

/// The chips at their ports in a machine that is about to end, so that none waits for anybody. For
/// fuzzers.
#[doc(hidden)]
pub fn legacy_ports() -> io::Result<Bus> {
    let exit = Arc::new(ExitLatch::default());
    exit.post(Ok(crate::Exit::Stopped));
    let output: Output = Arc::new(Mutex::new(Box::new(io::sink())));
    let serial = SerialPort::new(EventFd::new(0)?, output, Arc::clone(&exit));
    let bus = Bus::new();
    let chips: [(_, Arc<dyn BusDevice>); 5] = [
        (layout::SERIAL_PORTS, Arc::new(serial)),
        (layout::KEYBOARD_PORTS, Arc::new(KeyboardController::new(Arc::clone(&exit)))),
        (layout::CMOS_PORTS, Arc::new(Rtc::new(jiff::Timestamp::now))),
        (layout::PANIC_PORT, Arc::new(PanicDevice::new(Arc::clone(&exit)))),
        (layout::POWER_PORTS, Arc::new(PowerPorts::new(exit))),
    ];
    for (ports, chip) in chips {
        bus.insert(ports, chip).map_err(io::Error::other)?;
    }
    Ok(bus)
}
