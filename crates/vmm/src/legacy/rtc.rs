//! The battery-backed clock (Motorola MC146818), read-only: the guest learns the time from it and
//! cannot set it. No alarm, no interrupt, no memory.

use std::sync::atomic::{AtomicU8, Ordering};

use jiff::tz::TimeZone;
use jiff::{Timestamp, civil};

use crate::bus::BusDevice;

/// Bit 7 of the index port masks NMI; the rest is the register's number.
const INDEX_MASK: u8 = 0x7f;
/// Register A: time base 32768 Hz, rate 1024 Hz, no update in progress.
const STATUS_A: u8 = 0x26;
/// Register B: hours count to 24, values are binary-coded decimals.
const STATUS_B: u8 = 0x02;
/// Register D: the battery is good.
const STATUS_D: u8 = 0x80;

/// Tells the time.
pub(crate) type Clock = fn() -> Timestamp;

pub(crate) struct Rtc {
    index: AtomicU8,
    clock: Clock,
}

impl Rtc {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { index: AtomicU8::new(0), clock }
    }

    fn register(&self, index: u8) -> u8 {
        let now = || (self.clock)().to_zoned(TimeZone::UTC).datetime();
        match index {
            0x0a => STATUS_A,
            0x0b => STATUS_B,
            0x0d => STATUS_D,
            0x00..=0x09 | 0x32 => time_register(now(), index),
            _ => 0,
        }
    }
}

fn time_register(now: civil::DateTime, index: u8) -> u8 {
    let value = match index {
        0x00 => now.second(),
        0x02 => now.minute(),
        0x04 => now.hour(),
        0x06 => now.weekday().to_sunday_one_offset(),
        0x07 => now.day(),
        0x08 => now.month(),
        0x09 => (now.year() % 100) as i8,
        0x32 => (now.year() / 100) as i8,
        // The alarm's registers.
        _ => 0,
    };
    let value = value.unsigned_abs();
    ((value / 10) << 4) | (value % 10)
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let index = self.index.load(Ordering::Relaxed);
        data[0] = if offset == 0 { index } else { self.register(index) };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.index.store(data[0] & INDEX_MASK, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_time_in_decimal_digits() {
        let clock: Clock = || "2026-11-22T09:58:07Z".parse().unwrap();
        let rtc = Rtc::new(clock);
        let read = |index: u8| {
            rtc.write(0, &[index | 0x80]);
            let mut value = [0];
            rtc.read(1, &mut value);
            value[0]
        };
        for (index, expected) in [
            (0x00, 0x07),
            (0x02, 0x58),
            (0x04, 0x09),
            (0x06, 0x01),
            (0x07, 0x22),
            (0x08, 0x11),
            (0x09, 0x26),
            (0x32, 0x20),
            (0x0b, 0x02),
            (0x0d, 0x80),
            (0x40, 0x00),
        ] {
            assert_eq!(read(index), expected, "register {index:#x}");
        }
    }
}
