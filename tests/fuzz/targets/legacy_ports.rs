//! The chips at fixed ports: serial port, clock, keyboard controller, panic device, power.
#![no_main]

use bootyard_fuzz::machine::drive_ports;

libfuzzer_sys::fuzz_target!(|input: &[u8]| drive_ports(input));
