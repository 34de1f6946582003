//! What to say when KVM gives up in the middle of the guest.

#![expect(unsafe_code, reason = "KVM reports errors in a union that the exit reason tells apart")]

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};

use super::Vcpu;
use crate::error::{Error, Stuck};

/// The longest instruction of the architecture.
const INSTRUCTION_MAX: usize = 15;

impl Vcpu {
    /// The report for an exit that nobody can answer. `reason` names it unless KVM says more.
    pub(super) fn stuck(&mut self, reason: String) -> Error {
        let (reason, bytes) = self.internal_error().unwrap_or((reason, Vec::new()));
        let rip = self.fd.get_regs().ok().map(|regs| regs.rip);
        let privilege = self.fd.get_sregs().ok().map(|sregs| sregs.cs.dpl);
        let bytes = if bytes.is_empty() { self.instruction(rip) } else { bytes };
        Error::Stuck(Box::new(Stuck { cpu: self.id, reason, rip, privilege, bytes }))
    }

    /// Where a triple fault left the processor.
    pub(super) fn triple_fault(&self) -> String {
        // Where the processor resets itself on a triple fault (AMD), the place is lost.
        match self.fd.get_regs() {
            Ok(regs) => format!("processor {}: triple fault at rip {:#x}", self.id, regs.rip),
            Err(_) => format!("processor {}: triple fault", self.id),
        }
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
            return Some((name.to_owned(), bytes));
        }
        let words = &error.data[..(error.ndata as usize).min(error.data.len())];
        Some((format!("{name} (suberror {}, data {words:x?})", error.suberror), bytes))
    }

    /// The bytes at the instruction pointer, as far as they can be read.
    fn instruction(&self, rip: Option<u64>) -> Vec<u8> {
        let place = rip
            .zip(self.fd.get_sregs().ok())
            .and_then(|(rip, sregs)| self.fd.translate_gva(sregs.cs.base.wrapping_add(rip)).ok());
        let Some(place) = place.filter(|place| place.valid != 0) else { return Vec::new() };
        let mut bytes = [0; INSTRUCTION_MAX];
        let got = self.vm.peek(place.physical_address, &mut bytes);
        bytes[..got].to_vec()
    }
}
