//! Which processors the guest finds: how many, how they hang together, and what they can do.

use std::num::NonZeroU32;

use crate::config::CPUS_MAX;

/// How the processors hang together: `sockets` packages of `cores` cores of `threads` threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuTopology {
    /// Packages.
    pub sockets: NonZeroU32,
    /// Cores in a package.
    pub cores: NonZeroU32,
    /// Threads in a core.
    pub threads: NonZeroU32,
}

/// Which features of the host's processor the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CpuModel {
    /// All that KVM can give to a guest.
    #[default]
    Host,
    /// What the first x86-64 processors had and a kernel needs, with x2APIC and KVM's own clock: no
    /// CX16, XSAVE, AVX, RDRAND, FSGSBASE, SMAP, pages of 1 GiB or performance counters. For hosts
    /// that offer more than they can do, and for guests that must not see what their host is.
    /// It hides what the guest would use against speculative execution, too.
    Minimal,
}

impl CpuTopology {
    /// One package of `cores` cores of one thread.
    pub const fn of_cores(cores: NonZeroU32) -> Self {
        Self { sockets: NonZeroU32::MIN, cores, threads: NonZeroU32::MIN }
    }

    /// The number of processors, if there can be so many.
    pub(crate) fn count(self) -> Option<u32> {
        let count = self.cores.checked_mul(self.threads)?.checked_mul(self.sockets)?.get();
        (count <= CPUS_MAX).then_some(count)
    }

    /// Processors of a package, which is at most what [`CpuTopology::count`] allows.
    pub(crate) fn per_package(self) -> u32 {
        self.cores.get() * self.threads.get()
    }

    /// Bits of an APIC identifier that number the threads of a core.
    pub(crate) fn thread_bits(self) -> u32 {
        bits_for(self.threads.get())
    }

    /// Bits of an APIC identifier that number the processors of a package.
    pub(crate) fn package_bits(self) -> u32 {
        self.thread_bits() + bits_for(self.cores.get())
    }

    /// The APIC identifier of the processor number `index`. Its fields are whole bits (Intel SDM
    /// volume 3 §10.9.1, AMD APM volume 3 appendix E.4), so that identifiers are skipped where
    /// numbers are no powers of two. With at most 64 processors it stays below 128.
    pub(crate) fn apic_id(self, index: u32) -> u32 {
        let (cores, threads) = (self.cores.get(), self.threads.get());
        let (thread, core) = (index % threads, index / threads % cores);
        let package = index / (threads * cores);
        package << self.package_bits() | core << self.thread_bits() | thread
    }

    /// The APIC identifiers of all processors, the boot processor's first.
    pub(crate) fn apic_ids(self) -> impl Iterator<Item = u32> {
        (0..self.count().unwrap_or(0)).map(move |index| self.apic_id(index))
    }
}

/// Bits that tell `count` things apart.
const fn bits_for(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn topology(sockets: u32, cores: u32, threads: u32) -> CpuTopology {
        let [sockets, cores, threads] = [sockets, cores, threads].map(|n| n.try_into().unwrap());
        CpuTopology { sockets, cores, threads }
    }

    #[test]
    fn identifiers_have_fields_of_whole_bits() {
        for ((sockets, cores, threads), ids) in [
            ((1, 1, 1), vec![0]),
            ((1, 4, 1), vec![0, 1, 2, 3]),
            ((1, 2, 2), vec![0, 1, 2, 3]),
            ((2, 3, 1), vec![0, 1, 2, 4, 5, 6]),
            ((2, 1, 3), vec![0, 1, 2, 4, 5, 6]),
            ((2, 3, 2), vec![0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]),
        ] {
            assert!(topology(sockets, cores, threads).apic_ids().eq(ids));
        }
    }

    #[test]
    fn no_machine_needs_an_identifier_of_more_than_8_bits() {
        let mut most = 0;
        for sockets in 1..=CPUS_MAX {
            for cores in 1..=CPUS_MAX {
                for threads in 1..=CPUS_MAX {
                    let topology = topology(sockets, cores, threads);
                    let ids: Vec<u32> = topology.apic_ids().collect();
                    assert!(ids.is_sorted_by(|a, b| a < b));
                    most = most.max(ids.last().copied().unwrap_or(0));
                }
            }
        }
        assert!(most < 128, "{most}");
    }

    #[test]
    fn too_many_processors_are_not_counted() {
        for (topology, count) in [
            (topology(2, 4, 2), Some(16)),
            (topology(1, 64, 1), Some(64)),
            (topology(5, 13, 1), None),
            (topology(u32::MAX, u32::MAX, 2), None),
        ] {
            assert_eq!(topology.count(), count);
        }
    }
}
