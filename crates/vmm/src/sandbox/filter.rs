//! Lists of system calls as programs of the kernel, and what happens on a call that is on none.

#![expect(unsafe_code, reason = "a signal handler reads what the kernel tells it")]

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use vmm_sys_util::signal::register_signal_handler;

use super::calls::{self, OPEN, Role};
use super::failed;
use crate::error::Error;

/// Restricts this thread, and those that it starts, to the calls of `role`.
pub(super) fn install(role: Role) -> Result<(), Error> {
    for program in compiled_once(role) {
        apply_filter(program).map_err(|error| failed("filtering system calls")(error.into()))?;
    }
    Ok(())
}

fn compiled_once(role: Role) -> &'static [BpfProgram] {
    static PROGRAMS: [OnceLock<Vec<BpfProgram>>; Role::ALL.len()] =
        [const { OnceLock::new() }; Role::ALL.len()];
    PROGRAMS[role as usize].get_or_init(|| programs(role))
}

/// Compiles the programs of a role ahead.
#[cfg(test)]
pub(super) fn prepare(role: Role) {
    compiled_once(role);
}

/// The programs of a role. Of several the kernel takes the strictest answer. The list itself comes
/// last: after it the thread may install no more.
fn programs(role: Role) -> Vec<BpfProgram> {
    let mut programs = Vec::new();
    if role == Role::Main {
        // glibc then takes `clone`, whose flags are an argument.
        programs.push(refuse(&[libc::SYS_clone3], libc::ENOSYS));
    }
    if !role.opens_files() {
        programs.push(refuse(OPEN, libc::EACCES));
    }
    // A trap makes no call and raises SIGSYS, whose handler says which it was.
    let list = SeccompFilter::new(
        calls::rules(role),
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    );
    programs.push(compiled(list));
    programs
}

/// Answers these calls with an error number, and leaves the others to other programs.
fn refuse(calls: &[i64], errno: i32) -> BpfProgram {
    let rules: BTreeMap<i64, Vec<_>> = calls.iter().map(|call| (*call, Vec::new())).collect();
    let refusal = SeccompAction::Errno(errno as u32);
    compiled(SeccompFilter::new(rules, SeccompAction::Allow, refusal, TargetArch::x86_64))
}

fn compiled(filter: Result<SeccompFilter, seccompiler::BackendError>) -> BpfProgram {
    filter.and_then(BpfProgram::try_from).expect("the lists are fixed, and tested")
}

/// The exit code of a process that is ended for a call.
static EXIT_CODE: AtomicI32 = AtomicI32::new(1);

/// Ends the process with `exit_code` and a line on standard error when a thread makes a call that is on
/// none of its lists.
pub(super) fn report_violations(exit_code: u8) -> Result<(), Error> {
    EXIT_CODE.store(exit_code.into(), Ordering::Relaxed);
    register_signal_handler(libc::SIGSYS, on_violation)
        .map_err(|error| failed("handling SIGSYS")(error.into()))
}

/// Makes only calls that every list has, and takes no lock: the thread may hold any.
extern "C" fn on_violation(
    _: std::ffi::c_int,
    info: *mut libc::siginfo_t,
    _: *mut std::ffi::c_void,
) {
    /// Where the number is in `siginfo_t` (`_sigsys._syscall`), behind three numbers and a pointer.
    const CALL_AT: usize = 24;
    // SAFETY: the kernel gives the handler a whole `siginfo_t`, in which there is an `int`.
    let call = unsafe { info.cast::<u8>().add(CALL_AT).cast::<i32>().read() };
    let mut name = [0_u8; 16];
    // SAFETY: the kernel writes at most 16 bytes, the last of them a zero.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name_len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let mut digits = [0_u8; 10];
    let call = decimal(call.unsigned_abs(), &mut digits);
    for part in [
        b"the machine was ended by its sandbox: system call ",
        call,
        b" in thread `",
        &name[..name_len],
        b"`\n",
    ] {
        // SAFETY: the bytes are readable for their length. Nobody may be listening.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(EXIT_CODE.load(Ordering::Relaxed)) };
}

/// The number in decimal digits, without a formatter.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_becomes_a_program() {
        for role in Role::ALL {
            for program in programs(role) {
                assert!(!program.is_empty() && program.len() < 4096, "{role:?}");
            }
        }
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, 257, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
