//! Finds out what this host's KVM can do, by running a few instructions in a tiny guest.
//!
//! `/dev/kvm` being there says little: nested and para-virtual hosts offer it with parts missing,
//! and a kernel then stops seconds later, deep in its start. The probe's guest has no kernel. It
//! says at a port which step comes next, so that the step at which it stops is known.

#![expect(clippy::disallowed_methods, reason = "the probe measures time and limits it")]

mod host;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use self::host::{landlock_version, probe_io_uring};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::state::{self, CodeSegment, CpuState};
use crate::bus::BusDevice;
use crate::cpu::{CpuModel, CpuTopology};
use crate::error::Error;
use crate::exit::{Exit, ExitLatch};
use crate::hv::{Buses, Crew, Kvm, Vcpu, VcpuThreads};

/// What the host's KVM is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmVerdict {
    /// It runs ordinary kernels.
    Full,
    /// Everything works, but kernel code is interpreted: minutes where others take seconds.
    Emulated {
        /// The time that one simple instruction takes, in nanoseconds.
        nanoseconds: u64,
    },
    /// An ordinary kernel cannot run: what it needs does not work.
    Broken {
        /// What was tried, naming the instruction.
        step: &'static str,
        /// What happened instead.
        why: String,
    },
    /// There is no KVM, or not for us.
    Absent {
        /// What opening it said.
        why: String,
    },
}

impl fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "KVM runs ordinary kernels"),
            Self::Emulated { nanoseconds } => write!(
                f,
                "KVM works but interprets kernel code, at {nanoseconds} ns for an instruction"
            ),
            Self::Broken { step, why } => write!(f, "KVM cannot run {step}: {why}"),
            Self::Absent { why } => write!(f, "no KVM: {why}"),
        }
    }
}

/// Either half of the probe gives up after this long. A working KVM needs a few milliseconds; the
/// rest is for a busy host.
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// Slower than this for one instruction is no hardware. Interpreting one takes microseconds; a
/// software-emulated processor, on which nested KVM may run, takes some ten nanoseconds.
const EMULATED_NANOSECONDS: u64 = 500;

/// The probe's memory: just what the addresses below need.
const MEMORY: usize = 2 << 20;
const IDT: u64 = 0x1000;
const PROGRAM: u64 = 0x2000;
const TRAP_HANDLER: u64 = 0x3000;
const INTERRUPT_HANDLER: u64 = 0x3100;
/// Ten bytes for `lidt`; the stack grows down from there.
const IDT_POINTER: u64 = 0x5f00;
const TRAP_VECTOR: u64 = 3;
const INTERRUPT_VECTOR: u64 = 0x40;
/// Where the guest says which step comes next. QEMU's test guests use this port too.
const STEP_PORT: u8 = 0xf4;
/// Leaf 1 ECX: `cmpxchg16b`.
const CX16: u32 = 1 << 13;
/// Turns of the loop that is measured, two instructions each.
const LOOP_TURNS: u32 = 10_000;

/// Something to try: what it is called, and its machine code.
struct Step {
    name: &'static str,
    code: &'static [u8],
}

/// Real mode, in which every processor wakes up.
const REAL_MODE: &[Step] = &[Step { name: "real mode", code: &[] }];

const LONG_MODE: &[Step] = &[
    // lidt [0x5f00]; mov esp, 0x5f00
    Step {
        name: "long mode with page tables",
        code: b"\x0f\x01\x1c\x25\x00\x5f\x00\x00\xbc\x00\x5f\x00\x00",
    },
    // xor eax, eax; cpuid
    Step { name: "`cpuid`", code: b"\x31\xc0\x0f\xa2" },
    // mov ecx, 10000; again: dec ecx; jnz again. Three times: the best of them counts.
    Step { name: LOOP, code: LOOP_CODE },
    Step { name: LOOP, code: LOOP_CODE },
    Step { name: LOOP, code: LOOP_CODE },
    // int3
    Step { name: "`int3` and `iretq` in kernel mode", code: b"\xcc" },
    // cmpxchg16b [0x6000]
    Step { name: CMPXCHG16B, code: b"\x48\x0f\xc7\x0c\x25\x00\x60\x00\x00" },
    // mov ecx, IA32_APIC_BASE; rdmsr; or eax, enabled | x2apic; wrmsr
    // mov ecx, SVR; mov eax, enabled | 0xff; xor edx, edx; wrmsr
    Step {
        name: "the local APIC by `wrmsr`",
        code: b"\xb9\x1b\x00\x00\x00\x0f\x32\x0d\x00\x0c\x00\x00\x0f\x30\
                \xb9\x0f\x08\x00\x00\xb8\xff\x01\x00\x00\x31\xd2\x0f\x30",
    },
    // mov ecx, SELF_IPI; mov eax, 0x40; wrmsr; sti; hlt; cli
    Step {
        name: "`hlt` and an interrupt that ends it",
        code: b"\xb9\x3f\x08\x00\x00\xb8\x40\x00\x00\x00\x0f\x30\xfb\xf4\xfa",
    },
];
const LOOP: &str = "a loop in kernel mode";
const LOOP_CODE: &[u8] = b"\xb9\x10\x27\x00\x00\xff\xc9\x75\xfc";
const CMPXCHG16B: &str = "`cmpxchg16b`";

/// iretq
const TRAP_CODE: &[u8] = b"\x48\xcf";
/// mov ecx, EOI; xor eax, eax; xor edx, edx; wrmsr; iretq
const INTERRUPT_CODE: &[u8] = b"\xb9\x0b\x08\x00\x00\x31\xc0\x31\xd2\x0f\x30\x48\xcf";

/// Runs the probe. Takes milliseconds, or a few seconds where something hangs.
pub fn probe_kvm() -> KvmVerdict {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(error) => return KvmVerdict::Absent { why: chain(&error) },
    };
    match probe(&kvm) {
        Ok(nanoseconds) if nanoseconds <= EMULATED_NANOSECONDS => KvmVerdict::Full,
        Ok(nanoseconds) => KvmVerdict::Emulated { nanoseconds },
        Err((step, why)) => KvmVerdict::Broken { step, why },
    }
}

/// Tries everything and tells the time of one instruction, or what failed.
fn probe(kvm: &Kvm) -> Result<u64, (&'static str, String)> {
    let setup = |error: Error| ("a virtual machine at all", chain(&error));
    let supported = kvm.supported_cpuid().map_err(setup)?;
    let has_cx16 = supported.iter().any(|leaf| leaf.function == 1 && leaf.ecx & CX16 != 0);
    let long_mode: Vec<&Step> =
        LONG_MODE.iter().filter(|step| has_cx16 || step.name != CMPXCHG16B).collect();
    let real_mode: Vec<&Step> = REAL_MODE.iter().collect();

    let enter = |vcpu: &Vcpu| vcpu.set_real_mode(PROGRAM);
    try_steps(kvm, &real_mode, enter).map_err(setup)??;
    let code = CodeSegment::Bits64;
    let enter = |vcpu: &Vcpu| vcpu.set_state(&CpuState { code, rip: PROGRAM, rbx: 0, rsi: 0 });
    let times = try_steps(kvm, &long_mode, enter).map_err(setup)??;

    let took = |(at, _): (usize, &&Step)| times[at + 1].saturating_duration_since(times[at]);
    let loops = long_mode.iter().enumerate().filter(|(_, step)| step.name == LOOP);
    let best = loops.map(took).min().unwrap_or_default();
    Ok(u64::try_from(best.as_nanos()).unwrap_or(u64::MAX) / u64::from(2 * LOOP_TURNS))
}

/// When each step began, and at last when the end was reached; or what failed and how.
type Outcome = Result<Vec<Instant>, (&'static str, String)>;

fn try_steps(
    kvm: &Kvm,
    steps: &[&Step],
    enter: impl Fn(&Vcpu) -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let memory = probe_memory(steps)?;
    let vm = Arc::new(kvm.create_vm(memory)?);
    let vcpus = kvm.create_vcpus(&vm, CpuTopology::of_cores(NonZeroU32::MIN), CpuModel::Host)?;
    vcpus.iter().try_for_each(enter)?;
    let exit = Arc::new(ExitLatch::default());
    let reporter = Arc::new(Reporter {
        exit: Arc::clone(&exit),
        last: steps.len(),
        times: Mutex::default(),
        begun: AtomicUsize::new(0),
    });
    let buses = Arc::new(Buses::default());
    let port = u64::from(STEP_PORT);
    let reports = buses.ports.insert(port..port + 1, reporter.clone());
    reports.expect("the bus was empty");

    let crew = Arc::new(Crew::new(vcpus.len() as u32, Arc::default()));
    let threads = VcpuThreads::start("probe", vcpus, &buses, &exit, crew)?;
    let in_time = exit.wait_for(TIME_LIMIT);
    drop(threads);
    // With its last handle KVM waits for all processors of the host, for which nobody has to wait here.
    // Where there is no thread for it, the handle goes now.
    let _ = std::thread::Builder::new().name("probe-end".to_owned()).spawn(move || drop(vm));
    let why = match exit.take() {
        Some(Ok(Exit::PowerOff)) => {
            let times = reporter.times.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok(Ok(times.clone()));
        }
        _ if !in_time => format!("it did not end within {} s", TIME_LIMIT.as_secs()),
        Some(Err(Error::Stuck(stuck))) => stuck.reason,
        Some(Err(error)) => chain(&error),
        Some(Ok(Exit::Crash { why })) => why,
        other => format!("{other:?}"),
    };
    let begun = reporter.begun.load(Ordering::SeqCst);
    let step = begun.checked_sub(1).and_then(|at| steps.get(at));
    Ok(Err((step.map_or("the first instruction", |step| step.name), why)))
}

/// Memory with the program and everything that it refers to.
fn probe_memory(steps: &[&Step]) -> Result<GuestMemoryMmap, Error> {
    let failed = |source| Error::Memory { bytes: MEMORY as u64, source };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| failed(std::io::Error::other(error)))?;
    let gdt: Vec<u8> =
        state::gdt(CodeSegment::Bits64).into_iter().flat_map(u64::to_le_bytes).collect();
    let idt_pointer = [&0xfff_u16.to_le_bytes()[..], &IDT.to_le_bytes()].concat();
    for (address, bytes) in [
        (layout::GDT, &gdt[..]),
        (layout::PAGE_TABLES, &state::page_tables()),
        (IDT + TRAP_VECTOR * 16, &gate(TRAP_HANDLER)),
        (IDT + INTERRUPT_VECTOR * 16, &gate(INTERRUPT_HANDLER)),
        (IDT_POINTER, &idt_pointer),
        (TRAP_HANDLER, TRAP_CODE),
        (INTERRUPT_HANDLER, INTERRUPT_CODE),
        (PROGRAM, &program(steps)),
    ] {
        let written = memory.write_slice(bytes, GuestAddress(address));
        written.map_err(|error| failed(std::io::Error::other(error)))?;
    }
    Ok(memory)
}

/// An interrupt gate for a handler below 64 KiB (Intel SDM volume 3 §6.14.1).
fn gate(handler: u64) -> [u8; 16] {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8e00;
    let low = handler | u64::from(state::CODE_SELECTOR) << 16 | PRESENT_INTERRUPT_GATE << 32;
    u128::from(low).to_le_bytes()
}

/// Each step after a report of its number, counted from 1; then one report more, and a loop.
fn program(steps: &[&Step]) -> Vec<u8> {
    // mov al, number; out port, al
    let report = |number: usize| [0xb0, number as u8, 0xe6, STEP_PORT];
    let mut code = Vec::new();
    for (number, step) in (1..).zip(steps) {
        code.extend(report(number));
        code.extend_from_slice(step.code);
    }
    code.extend(report(steps.len() + 1));
    // jmp $
    code.extend(b"\xeb\xfe");
    code
}

/// Hears which step comes next.
struct Reporter {
    exit: Arc<ExitLatch>,
    last: usize,
    times: Mutex<Vec<Instant>>,
    begun: AtomicUsize,
}

impl BusDevice for Reporter {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let number = usize::from(data[0]);
        self.begun.store(number, Ordering::SeqCst);
        self.times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        if number > self.last {
            self.exit.post(Ok(Exit::PowerOff));
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_ends_whatever_the_host_is() {
        let begin = Instant::now();
        let verdict = probe_kvm();
        assert!(begin.elapsed() < Duration::from_secs(10), "{verdict}");
        if let KvmVerdict::Broken { step, why } = &verdict {
            assert!(!step.is_empty() && !why.is_empty());
        }
    }

    #[test]
    fn code_and_tables_do_not_overlap() {
        let steps: Vec<&Step> = LONG_MODE.iter().collect();
        assert!(PROGRAM + program(&steps).len() as u64 <= TRAP_HANDLER);
        assert_eq!(gate(0x3100)[..8], [0x00, 0x31, 0x10, 0x00, 0x00, 0x8e, 0x00, 0x00]);
    }
}
