//! Which system calls which thread may make, and with which arguments.
//!
//! To give a thread something more: find its [`Role`] in [`rules`], and the group of calls there.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{SeccompCondition, SeccompRule};
use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_SCSI, VIRTIO_ID_VSOCK,
};

/// What a thread does. Everything is forbidden that it does not need for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Sets up the machine, waits for its end, and starts the others: may what any of them may.
    Main,
    /// Reads image formats and the boot loader's files: bytes that a guest has written.
    Reader,
    /// Runs a processor, and the devices' registers.
    Processor,
    /// Serves a device that has only memory.
    Device,
    /// Serves a disk.
    Disk,
    /// Serves a network interface.
    Net,
    /// Serves a device that speaks through Unix sockets: vsock, consoles.
    Socket,
    /// Serves people: console, log, control socket.
    Control,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 8] = [
        Self::Main,
        Self::Reader,
        Self::Processor,
        Self::Device,
        Self::Disk,
        Self::Net,
        Self::Socket,
        Self::Control,
    ];

    /// The role of the thread of a virtio device of this type (VIRTIO 1.3 §5).
    pub(crate) const fn of_device(kind: u16) -> Self {
        match kind as u32 {
            VIRTIO_ID_BLOCK | VIRTIO_ID_SCSI => Self::Disk,
            VIRTIO_ID_NET => Self::Net,
            VIRTIO_ID_VSOCK | VIRTIO_ID_CONSOLE => Self::Socket,
            _ => Self::Device,
        }
    }

    /// Whether it opens files. Others are told that they may not.
    pub(super) const fn opens_files(self) -> bool {
        matches!(self, Self::Main | Self::Net | Self::Socket | Self::Control)
    }
}

/// The allowed calls, each with the arguments for which it is; none for all.
pub(super) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Memory, time, waiting, and what is open already: what every thread and its libraries do.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Asking for files. Without [`Role::opens_files`] the answer is "permission denied".
pub(super) const OPEN: &[i64] = &[
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_stat,
];

/// Facts about an open file. (Two of them take a path as well, which Landlock lets pass: they give no
/// content.)
const FACTS: &[i64] = &[libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_newfstatat, libc::SYS_statx];

const READ_AT: &[i64] =
    &[libc::SYS_fadvise64, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2];

/// A disk's data, and the space that it takes.
const WRITE_AT: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sync_file_range,
];

/// Logs that are rotated, sockets that are removed.
const FOLDERS: &[i64] = &[
    libc::SYS_fchmod,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// What is done with sockets, whatever their family.
const SOCKETS: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// What the threads that start others need besides: the others' filters, and what becomes of a process
/// that was started before.
const STARTING: &[i64] =
    &[libc::SYS_rt_sigaction, libc::SYS_seccomp, libc::SYS_wait4, libc::SYS_waitid];

/// The ioctl by which a device raises an interrupt (`KVM_SIGNAL_MSI`).
const SIGNAL_MSI: u64 = 0x4020_aea5;
/// What a tap device does for the guest, which its driver chooses (`TUNSETOFFLOAD`,
/// `TUNSETVNETHDRSZ`).
const TAP: [u64; 2] = [0x4004_54d0, 0x4004_54d8];
/// The types of ioctls, in the second byte of their numbers: KVM's, block devices'.
const TYPE_KVM: u64 = 0xae00;
const TYPE_BLOCK: u64 = 0x1200;
const TYPE_MASK: u64 = 0xff00;

/// The list of a role.
pub(super) fn rules(role: Role) -> Rules {
    let mut rules = Rules::new();
    let mut allow = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    allow(COMMON);
    allow(OPEN);
    let groups: &[&[i64]] = match role {
        Role::Main => &[FACTS, READ_AT, WRITE_AT, FOLDERS, SOCKETS, STARTING],
        Role::Reader => &[FACTS, READ_AT],
        Role::Processor => &[FACTS],
        Role::Device => &[&[libc::SYS_fallocate]],
        Role::Disk => &[FACTS, READ_AT, WRITE_AT],
        Role::Net => &[FACTS, SOCKETS, &[libc::SYS_pwrite64]],
        Role::Socket => &[FACTS, SOCKETS],
        Role::Control => &[FACTS, FOLDERS, SOCKETS],
    };
    groups.iter().for_each(|group| allow(group));
    allow_memory(&mut rules);
    allow_threads(&mut rules, role);
    allow_ioctls(&mut rules, role);
    allow_families(&mut rules, role);
    rules
}

/// An argument that must be this.
fn is(argument: u8, value: u64) -> SeccompRule {
    rule(argument, Qword, Eq, value)
}

/// An argument of which these bits must be so.
fn has(argument: u8, mask: u64, value: u64) -> SeccompRule {
    rule(argument, Qword, MaskedEq(mask), value)
}

fn rule(
    argument: u8,
    len: seccompiler::SeccompCmpArgLen,
    operator: seccompiler::SeccompCmpOp,
    value: u64,
) -> SeccompRule {
    let condition = SeccompCondition::new(argument, len, operator, value);
    let condition = condition.expect("system calls have arguments 0 to 5");
    SeccompRule::new(vec![condition]).expect("there is a condition")
}

/// Memory is never executable that was not when the program began.
fn allow_memory(rules: &mut Rules) {
    const PROTECTION: u8 = 2;
    let data = || vec![has(PROTECTION, libc::PROT_EXEC as u64, 0)];
    rules.insert(libc::SYS_mmap, data());
    rules.insert(libc::SYS_mprotect, data());
}

/// Threads, but no processes; names of threads, but nothing else that `prctl` can. A filter cannot look
/// into the structure of `clone3`: it is said not to be there (see [`super::filter`]).
fn allow_threads(rules: &mut Rules, role: Role) {
    let words = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    let mut words: Vec<SeccompRule> = words.map(option).to_vec();
    if role == Role::Main {
        words.push(option(libc::PR_SET_NO_NEW_PRIVS));
    }
    rules.insert(libc::SYS_prctl, words);
    // To a thread of this process, which is what the second argument's call is for.
    let own = rule(0, Dword, Eq, std::process::id().into());
    rules.insert(libc::SYS_tgkill, vec![own]);
    if !matches!(role, Role::Reader | Role::Processor) {
        let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
        rules.insert(libc::SYS_clone, vec![has(0, thread, thread)]);
        rules.insert(libc::SYS_clone3, Vec::new());
    }
}

fn option(word: i32) -> SeccompRule {
    rule(0, Dword, Eq, word as u64)
}

fn allow_ioctls(rules: &mut Rules, role: Role) {
    let kind = |kind| rule(1, Dword, MaskedEq(TYPE_MASK), kind);
    let one = |number| rule(1, Dword, Eq, number);
    let (msi, nonblocking) = (|| one(SIGNAL_MSI), || one(libc::FIONBIO));
    let tap = TAP.map(one);
    let mut allowed = match role {
        Role::Main => vec![kind(TYPE_KVM), kind(TYPE_BLOCK), nonblocking()],
        Role::Reader => vec![],
        Role::Processor => vec![kind(TYPE_KVM)],
        Role::Device => vec![msi()],
        Role::Disk => vec![msi(), kind(TYPE_BLOCK)],
        Role::Net | Role::Socket | Role::Control => vec![msi(), nonblocking()],
    };
    if matches!(role, Role::Main | Role::Net) {
        allowed.extend(tap);
    }
    // Whoever prints asks whether it is to a terminal.
    allowed.push(one(libc::TCGETS));
    rules.insert(libc::SYS_ioctl, allowed);
    let commands = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL];
    let mut commands = commands.to_vec();
    commands.extend([libc::F_DUPFD_CLOEXEC, libc::F_GETPIPE_SZ]);
    let commands = commands.into_iter().map(|command| is(1, command as u64));
    rules.insert(libc::SYS_fcntl, commands.collect());
}

/// Families of sockets.
fn allow_families(rules: &mut Rules, role: Role) {
    let families: &[i32] = match role {
        Role::Main | Role::Net => &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX],
        Role::Socket | Role::Control => &[libc::AF_UNIX],
        _ => return,
    };
    let family = |family: &i32| rule(0, Dword, Eq, *family as u64);
    rules.insert(libc::SYS_socket, families.iter().map(family).collect());
    let unix = vec![rule(0, Dword, Eq, libc::AF_UNIX as u64)];
    rules.insert(libc::SYS_socketpair, unix);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filters add up: what the main thread may not, no thread may that it has started.
    #[test]
    fn the_main_thread_may_what_any_other_may() {
        let main = rules(Role::Main);
        for role in Role::ALL {
            for (call, arguments) in rules(role) {
                let allowed = main.get(&call).unwrap_or_else(|| panic!("{role:?}: {call}"));
                let narrower = arguments.iter().all(|rule| allowed.contains(rule));
                let wider = allowed.is_empty() || call == libc::SYS_ioctl;
                assert!(wider || !arguments.is_empty() && narrower, "{role:?}: {call}");
            }
        }
    }

    #[test]
    fn nobody_may_start_programs_or_look_into_processes() {
        for role in Role::ALL {
            let rules = rules(role);
            for call in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_kill,
                libc::SYS_mount,
                libc::SYS_setuid,
                libc::SYS_bpf,
                libc::SYS_unshare,
                libc::SYS_userfaultfd,
                libc::SYS_perf_event_open,
            ] {
                assert!(!rules.contains_key(&call), "{role:?}: {call}");
            }
        }
    }
}
