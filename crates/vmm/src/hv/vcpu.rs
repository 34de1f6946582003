//! The processors: their first state, their threads, and what happens when they leave the guest.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, Msrs, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::vm::{Vm, refused};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::state::{self, CodeSegment, CpuState};
use crate::bus::Bus;
use crate::error::Error;
use crate::exit::{Exit, ExitLatch};
use crate::gate::{ExitReason, Gate, Seat};

/// `IA32_MTRR_DEF_TYPE`: memory types of ranges on, write-back by default (Intel SDM volume 3
/// §12.11.2.1). Firmware sets this; without it Linux takes all memory as uncached.
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// `IA32_MISC_ENABLE`: fast string operations, which firmware turns on.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// The bit of RFLAGS that is always one.
const RFLAGS_FIXED: u64 = 1 << 1;

/// Where the accesses of the processors go.
#[derive(Debug, Default)]
pub(crate) struct Buses {
    pub(crate) ports: Bus,
    pub(crate) memory: Arc<Bus>,
}

impl Buses {
    /// Lets go of all devices: those that know their bus would otherwise keep each other alive.
    pub(crate) fn clear(&self) {
        self.ports.clear();
        self.memory.clear();
    }
}

/// One processor.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(super) id: u32,
    pub(super) fd: VcpuFd,
    /// Also keeps the guest's memory mapped for as long as this processor can run.
    pub(super) vm: Arc<Vm>,
}

/// Why a processor came back.
enum Left {
    /// It can go on.
    Handled,
    /// The guest has ended.
    Ended(Exit),
}

impl Vcpu {
    pub(super) fn new(id: u32, fd: VcpuFd, vm: Arc<Vm>) -> Self {
        Self { id, fd, vm }
    }

    /// What firmware leaves behind on every processor.
    pub(crate) fn set_firmware_registers(&self) -> Result<(), Error> {
        let entry = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        for msr in
            [entry(MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK), entry(MISC_ENABLE, FAST_STRINGS)]
        {
            let msrs = Msrs::from_entries(&[msr]).expect("one entry is within the limit");
            // Zero entries set means that this processor has no such register: nothing to do.
            self.fd.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))?;
        }
        Ok(())
    }

    /// Puts the processor into the state from which a kernel starts.
    pub(crate) fn set_state(&self, cpu: &CpuState) -> Result<(), Error> {
        let mut sregs = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        set_segments(&mut sregs, cpu.code);
        sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
        if cpu.code == CodeSegment::Bits64 {
            sregs.cr0 |= CR0_PAGING;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 |= CR4_PHYSICAL_ADDRESS_EXTENSION;
            sregs.efer |= EFER_LONG_MODE;
        }
        self.fd.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
        let CpuState { rip, rbx, rsi, .. } = *cpu;
        let regs = kvm_regs { rip, rbx, rsi, rflags: RFLAGS_FIXED, ..kvm_regs::default() };
        self.fd.set_regs(&regs).map_err(refused("KVM_SET_REGS"))
    }

    /// Puts the processor into real mode, at an address below 64 KiB.
    pub(crate) fn set_real_mode(&self, rip: u64) -> Result<(), Error> {
        let mut sregs = self.fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        (sregs.cs.selector, sregs.cs.base) = (0, 0);
        self.fd.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
        let regs = kvm_regs { rip, rflags: RFLAGS_FIXED, ..kvm_regs::default() };
        self.fd.set_regs(&regs).map_err(refused("KVM_SET_REGS"))
    }

    /// Runs the guest until it leaves, and answers what it left for.
    fn step(&mut self, buses: &Buses, seat: &Seat) -> Result<Left, Error> {
        let exit = self.fd.run();
        seat.leave();
        match exit {
            Ok(VcpuExit::IoIn(port, data)) => {
                seat.count(ExitReason::PortRead);
                port_units(data.len(), |unit| buses.ports.read(port.into(), &mut data[unit]));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                seat.count(ExitReason::PortWrite);
                port_units(data.len(), |unit| buses.ports.write(port.into(), &data[unit]));
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                seat.count(ExitReason::MemoryRead);
                buses.memory.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                seat.count(ExitReason::MemoryWrite);
                buses.memory.write(address, data);
            }
            // KVM's own interrupt controller handles `hlt`; if it tells us, it goes on.
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Intr | VcpuExit::Hlt) => {
                seat.count(ExitReason::Other);
            }
            Ok(VcpuExit::SystemEvent(event, _)) => return Ok(Left::Ended(system_event(event))),
            Ok(VcpuExit::Shutdown) => {
                return Ok(Left::Ended(Exit::Crash { why: self.triple_fault() }));
            }
            Ok(other) => {
                let reason = format!("{other:?}");
                return Err(self.stuck(reason));
            }
            Err(errno) => match io::Error::from(errno).kind() {
                // A kick, or the end of a processor's wait to be started.
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {
                    seat.count(ExitReason::Interrupted);
                }
                _ => return Err(refused("KVM_RUN")(errno)),
            },
        }
        Ok(Left::Handled)
    }

    /// Runs the guest until something is posted in `exit`, posting there itself what ends it.
    pub(super) fn run(&mut self, buses: &Buses, exit: &ExitLatch, gate: &Gate, seat: &Seat) {
        seat.take();
        while !exit.is_posted() {
            if !seat.enter(gate) {
                gate.wait(exit);
                // A guest without KVM's clock is not told that it stood still.
                let _ = self.fd.kvmclock_ctrl();
                continue;
            }
            if seat.take_nmi() {
                // Fails only where there is no such processor.
                let _ = self.fd.nmi();
            }
            match self.step(buses, seat) {
                Ok(Left::Handled) => {}
                Ok(Left::Ended(end)) => exit.post(Ok(end)),
                Err(error) => exit.post(Err(error)),
            }
        }
    }
}

/// Calls `access` for each unit of a port access. A string instruction (`rep outs`) is one exit
/// with several units; KVM's binding tells only their total, and consoles are written by bytes.
fn port_units(len: usize, mut access: impl FnMut(std::ops::Range<usize>)) {
    let unit = if matches!(len, 1 | 2 | 4) { len } else { 1 };
    (0..len).step_by(unit).for_each(|start| access(start..start + unit));
}

fn system_event(event: u32) -> Exit {
    match event {
        KVM_SYSTEM_EVENT_SHUTDOWN => Exit::PowerOff,
        KVM_SYSTEM_EVENT_RESET => Exit::Reset,
        KVM_SYSTEM_EVENT_CRASH => Exit::Crash { why: "the guest reported a crash".to_owned() },
        other => Exit::Crash { why: format!("KVM reported the unknown system event {other}") },
    }
}

/// Flat segments and the tables that [`state::gdt`] describes.
fn set_segments(sregs: &mut kvm_sregs, code: CodeSegment) {
    let gdt = state::gdt(code);
    let segment = |selector: u16| {
        let entry = gdt[usize::from(selector) / 8];
        let bits = |shift: u32, mask: u64| (entry >> shift & mask) as u8;
        let granular = bits(55, 1);
        let limit = (entry & 0xffff) as u32 | ((entry >> 48 & 0xf) as u32) << 16;
        kvm_segment {
            base: 0,
            limit: if granular == 1 { limit << 12 | 0xfff } else { limit },
            selector,
            type_: bits(40, 0xf),
            s: bits(44, 1),
            dpl: bits(45, 3),
            present: bits(47, 1),
            avl: bits(52, 1),
            l: bits(53, 1),
            db: bits(54, 1),
            g: granular,
            ..kvm_segment::default()
        }
    };
    let data = segment(state::DATA_SELECTOR);
    sregs.cs = segment(state::CODE_SELECTOR);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(state::TSS_SELECTOR);
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (size_of_val(&gdt) - 1) as u16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_accesses_are_cut_into_units() {
        for (len, starts) in [(1, vec![0]), (2, vec![0]), (4, vec![0]), (3, vec![0, 1, 2])] {
            let mut seen = Vec::new();
            port_units(len, |unit| seen.push(unit));
            assert_eq!(seen.iter().map(|unit| unit.start).collect::<Vec<_>>(), starts);
            assert_eq!(seen.last().map(|unit| unit.end), Some(len));
        }
    }

    #[test]
    fn segments_are_flat_and_of_the_right_width() {
        for (code, wide, long) in [(CodeSegment::Bits32, 1, 0), (CodeSegment::Bits64, 0, 1)] {
            let mut sregs = kvm_sregs::default();
            set_segments(&mut sregs, code);
            let kvm_sregs { cs, ss, tr, .. } = sregs;
            assert_eq!((cs.base, cs.limit, cs.type_, cs.s), (0, u32::MAX, 0xb, 1));
            assert_eq!((cs.db, cs.l, cs.present, cs.dpl), (wide, long, 1, 0));
            assert_eq!((ss.base, ss.limit, ss.type_, ss.db), (0, u32::MAX, 3, 1));
            assert_eq!((tr.limit, tr.type_, tr.s, tr.present), (0x67, 0xb, 0, 1));
        }
    }
}
