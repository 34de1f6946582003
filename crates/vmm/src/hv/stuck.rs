//! What to say when KVM gives up in the middle of the guest.

#![expect(unsafe_code, reason = "KVM reports errors in a union that the exit reason tells apart")]

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_sregs,
};

use super::Vcpu;
use crate::arch::x86_64::instruction::{self, CpuMode};
use crate::error::{Error, Place, Stuck};

/// The longest instruction of the architecture.
const INSTRUCTION_MAX: usize = 15;

const CR0_PROTECTED: u64 = 1 << 0;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// The code segment and instruction pointer of a processor that was reset.
const RESET_BASE: u64 = 0xffff_0000;
const RESET_RIP: u64 = 0xfff0;

impl Vcpu {
    /// The report for an exit that nobody can answer. `reason` names it unless KVM says more.
    pub(super) fn stuck(&mut self, reason: String) -> Error {
        let (reason, bytes) = self.internal_error().unwrap_or((reason, Vec::new()));
        Error::Stuck(Box::new(Stuck { cpu: self.id, reason, place: self.place(bytes) }))
    }

    /// Where a triple fault left the processor.
    pub(super) fn triple_fault(&self) -> String {
        let reset = |sregs: &kvm_sregs, rip| sregs.cs.base == RESET_BASE && rip == RESET_RIP;
        let gone = match (self.fd.get_sregs(), self.fd.get_regs()) {
            (Ok(sregs), Ok(regs)) => reset(&sregs, regs.rip),
            _ => false,
        };
        let triple_fault = format!("processor {}: triple fault", self.id);
        match gone {
            // Where the processor resets itself on a triple fault (AMD), the place is lost.
            true => format!("{triple_fault}; the processor does not tell where"),
            false => format!("{triple_fault}{}", self.place(Vec::new())),
        }
    }

    /// Where the processor stands. `bytes` are those of its instruction, if KVM told them.
    fn place(&self, bytes: Vec<u8>) -> Place {
        let rip = self.fd.get_regs().ok().map(|regs| regs.rip);
        let sregs = self.fd.get_sregs().ok();
        let mode = sregs.as_ref().map(mode);
        let bytes = if bytes.is_empty() { self.instruction(rip, sregs.as_ref()) } else { bytes };
        let instruction = mode.and_then(|mode| instruction::guess(&bytes, mode));
        Place { rip, privilege: sregs.map(|sregs| sregs.ss.dpl), mode, bytes, instruction }
    }

    /// KVM's own explanation and the instruction that it could not emulate.
    fn internal_error(&mut self) -> Option<(String, Vec<u8>)> {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
            return None;
        }
        // SAFETY: the exit reason says which member KVM wrote; both views are plain integers.
        let (error, failure) =
            unsafe { (run.__bindgen_anon_1.internal, run.__bindgen_anon_1.emulation_failure) };
        let name = match error.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "it cannot emulate an instruction",
            KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions came at once",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "it could not deliver an event",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the processor left for no known reason",
            _ => "internal error",
        };
        let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        let mut bytes = Vec::new();
        if error.suberror == KVM_INTERNAL_ERROR_EMULATION
            && error.ndata > 0
            && failure.flags & flag != 0
        {
            // SAFETY: the flag says that these bytes were written; the union has no other view.
            let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
            let len = usize::from(instruction.insn_size).min(INSTRUCTION_MAX);
            bytes.extend_from_slice(&instruction.insn_bytes[..len]);
        }
        if !bytes.is_empty() {
            return Some((format!("{name} (suberror {})", error.suberror), bytes));
        }
        let words = &error.data[..(error.ndata as usize).min(error.data.len())];
        Some((format!("{name} (suberror {}, data {words:x?})", error.suberror), bytes))
    }

    /// The bytes at the instruction pointer, as far as they can be read.
    fn instruction(&self, rip: Option<u64>, sregs: Option<&kvm_sregs>) -> Vec<u8> {
        let place = rip
            .zip(sregs)
            .and_then(|(rip, sregs)| self.fd.translate_gva(sregs.cs.base.wrapping_add(rip)).ok());
        let Some(place) = place.filter(|place| place.valid != 0) else { return Vec::new() };
        let mut bytes = [0; INSTRUCTION_MAX];
        let got = self.vm.peek(place.physical_address, &mut bytes);
        bytes[..got].to_vec()
    }
}

/// Intel SDM volume 3 §2.2 and §3.4.5.
fn mode(sregs: &kvm_sregs) -> CpuMode {
    let long = sregs.efer & EFER_LONG_MODE_ACTIVE != 0 && sregs.cs.l == 1;
    match (sregs.cr0 & CR0_PROTECTED != 0, long, sregs.cs.db) {
        (false, ..) => CpuMode::Real,
        (true, true, _) => CpuMode::Long,
        (true, false, 1) => CpuMode::Protected32,
        (true, false, _) => CpuMode::Protected16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processors_mode_is_in_its_registers() {
        for (cr0, efer, l, db, expected) in [
            (0, 0, 0, 0, CpuMode::Real),
            (1, 0, 0, 0, CpuMode::Protected16),
            (1, 0, 0, 1, CpuMode::Protected32),
            (0x8000_0001, 0x500, 1, 0, CpuMode::Long),
            (0x8000_0001, 0x500, 0, 1, CpuMode::Protected32),
        ] {
            let mut sregs = kvm_sregs { cr0, efer, ..kvm_sregs::default() };
            (sregs.cs.l, sregs.cs.db) = (l, db);
            assert_eq!(mode(&sregs), expected);
        }
    }
}
