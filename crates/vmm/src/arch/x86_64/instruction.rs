//! What kind of instruction stands at an address, guessed from its first bytes: enough to tell what a
//! host's KVM could not do for a guest, and no disassembler.
//!
//! Opcodes: Intel SDM volume 2, appendix A; AMD APM volume 3 for `vmmcall` and `monitorx`.

/// How the processor reads instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CpuMode {
    /// Real mode.
    Real,
    /// Protected mode with 16-bit code.
    Protected16,
    /// Protected mode with 32-bit code.
    Protected32,
    /// Long mode.
    Long,
}

impl CpuMode {
    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Real => "real mode",
            Self::Protected16 => "16-bit protected mode",
            Self::Protected32 => "32-bit protected mode",
            Self::Long => "64-bit mode",
        }
    }
}

/// The name of the instruction that `bytes` begin with, if it is one that an incomplete KVM is known to
/// stumble over.
pub(crate) fn guess(bytes: &[u8], mode: CpuMode) -> Option<&'static str> {
    if bytes.len() >= 8 && bytes.iter().all(|byte| *byte == 0) {
        return Some("zeros, which are no code");
    }
    let prefixes = Prefixes::of(bytes, mode);
    let (first, rest) = bytes[prefixes.len..].split_first()?;
    Some(match first {
        0xcc => "int3",
        0xcd => "int",
        0xce if mode != CpuMode::Long => "into",
        0xcf => "iret",
        0xf1 => "int1",
        0xf4 => "hlt",
        0xc4 | 0xc5 if mode == CpuMode::Long => "an AVX instruction",
        0x62 if mode == CpuMode::Long => "an AVX-512 instruction",
        0xd8..=0xdf => "an x87 instruction",
        0x6c..=0x6f => "a string instruction on ports",
        0xa4..=0xa7 | 0xaa..=0xaf => "a string instruction",
        0x0f => return two_bytes(rest, &prefixes),
        _ => return None,
    })
}

/// What stands before an opcode.
struct Prefixes {
    len: usize,
    /// 0xf3.
    repeats: bool,
    /// REX.W: 64-bit operands.
    wide: bool,
}

impl Prefixes {
    fn of(bytes: &[u8], mode: CpuMode) -> Self {
        let mut found = Self { len: 0, repeats: false, wide: false };
        for byte in bytes {
            match byte {
                0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 => {}
                0xf3 => found.repeats = true,
                0x40..=0x4f if mode == CpuMode::Long => found.wide = byte & 8 != 0,
                _ => break,
            }
            found.len += 1;
        }
        found
    }
}

/// After 0x0f.
fn two_bytes(bytes: &[u8], prefixes: &Prefixes) -> Option<&'static str> {
    let opcode = *bytes.first()?;
    // The byte that names operands, and in groups of instructions the one that is meant.
    let operands = bytes.get(1).copied().unwrap_or(0);
    let (in_memory, member) = (operands < 0xc0, operands >> 3 & 7);
    Some(match opcode {
        0x01 => return system(operands),
        0x05 => "syscall",
        0x07 => "sysret",
        0x09 => "wbinvd",
        0x0b | 0xb9 | 0xff => "ud, which is invalid on purpose",
        0x20..=0x23 => "a move to or from a control or debug register",
        0x30 => "wrmsr",
        0x31 => "rdtsc",
        0x32 => "rdmsr",
        0x33 => "rdpmc",
        0x34 => "sysenter",
        0x35 => "sysexit",
        0xa2 => "cpuid",
        0xae => match (in_memory, member) {
            (true, 0) => "fxsave",
            (true, 1) => "fxrstor",
            (true, 4) => "xsave",
            (true, 5) => "xrstor",
            (true, 6) => "xsaveopt",
            (false, 0..=3) if prefixes.repeats => "rdfsbase, or one of its kind",
            _ => return None,
        },
        0xc7 => match (in_memory, member) {
            (true, 1) if prefixes.wide => "cmpxchg16b",
            (true, 1) => "cmpxchg8b",
            (true, 3) => "xrstors",
            (true, 4) => "xsavec",
            (true, 5) => "xsaves",
            (false, 6) => "rdrand",
            (false, 7) if prefixes.repeats => "rdpid",
            (false, 7) => "rdseed",
            _ => return None,
        },
        0x10..=0x17
        | 0x28..=0x2f
        | 0x38
        | 0x3a
        | 0x50..=0x7f
        | 0xc2
        | 0xc4..=0xc6
        | 0xd0..=0xfe => "an SSE instruction",
        _ => return None,
    })
}

/// After 0x0f 0x01.
fn system(operands: u8) -> Option<&'static str> {
    Some(match operands {
        0xc1 => "vmcall",
        0xc8 => "monitor",
        0xc9 => "mwait",
        0xca => "clac",
        0xcb => "stac",
        0xd0 => "xgetbv",
        0xd1 => "xsetbv",
        0xd8 => "vmrun",
        0xd9 => "vmmcall",
        0xf8 => "swapgs",
        0xf9 => "rdtscp",
        0xfa => "monitorx",
        0xfb => "mwaitx",
        0x00..=0xbf if operands >> 3 & 7 == 7 => "invlpg",
        0x00..=0xbf => "an instruction on descriptor tables",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_that_hosts_stumble_over_have_names() {
        use CpuMode::{Long, Protected32, Real};
        for (bytes, mode, expected) in [
            (&[0xcc, 0x90][..], Long, Some("int3")),
            (&[0xcd, 0x80], Protected32, Some("int")),
            (&[0xce], Long, None),
            (&[0xce], Real, Some("into")),
            (&[0x48, 0xcf], Long, Some("iret")),
            (&[0x48, 0xcf], Protected32, None),
            (&[0xf0, 0x49, 0x0f, 0xc7, 0x08], Long, Some("cmpxchg16b")),
            (&[0xf0, 0x0f, 0xc7, 0x0f], Protected32, Some("cmpxchg8b")),
            (&[0x48, 0x0f, 0xae, 0x27], Long, Some("xsave")),
            (&[0x48, 0x0f, 0xc7, 0x2f], Long, Some("xsaves")),
            (&[0xf3, 0x48, 0x0f, 0xae, 0xc0], Long, Some("rdfsbase, or one of its kind")),
            (&[0x0f, 0xc7, 0xf0], Long, Some("rdrand")),
            (&[0x0f, 0x01, 0xc1], Long, Some("vmcall")),
            (&[0x0f, 0x01, 0xcb], Long, Some("stac")),
            (&[0x0f, 0x01, 0x38], Long, Some("invlpg")),
            (&[0x0f, 0x0b], Long, Some("ud, which is invalid on purpose")),
            (&[0x66, 0x0f, 0x6f, 0x00], Long, Some("an SSE instruction")),
            (&[0xc5, 0xf8, 0x77], Long, Some("an AVX instruction")),
            (&[0xf3, 0xa4], Real, Some("a string instruction")),
            (&[0; 15], Long, Some("zeros, which are no code")),
            (&[0x48, 0x89, 0xc8], Long, None),
            (&[0x0f], Long, None),
            (&[0xf3, 0xf2, 0x66], Long, None),
            (&[], Long, None),
        ] {
            assert_eq!(guess(bytes, mode), expected, "{bytes:02x?} in {mode:?}");
        }
    }

    #[test]
    fn any_two_bytes_are_looked_at_without_fear() {
        for mode in [CpuMode::Real, CpuMode::Protected16, CpuMode::Protected32, CpuMode::Long] {
            for first in 0..=255 {
                for second in 0..=255 {
                    guess(&[first, second], mode);
                    guess(&[0x0f, first, second], mode);
                }
            }
        }
    }
}
