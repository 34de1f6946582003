//! What every error tells besides its message: which class of failure it is, and what helps.

/// The class of a failure. It decides the process's exit code, which scripts rely on: a class
/// never changes its code, and a code is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Something failed that no other class names.
    Other,
    /// The command line or another input of the user is wrong.
    Usage,
    /// The source cannot be reached or read, or broke off.
    Source,
    /// The source's bytes are not a disk image that this version reads.
    Image,
    /// The bytes are not the ones that the checksum is of.
    Checksum,
    /// The target exists, is too small, has no space or cannot be written.
    Target,
    /// The disk holds nothing that can be booted.
    Boot,
    /// The engine that was asked for cannot run on this host, or failed.
    Engine,
    /// The guest crashed (kernel panic, triple fault) instead of powering off.
    GuestCrash,
    /// The guest, or the command, did not end within the time limit.
    GuestTimeout,
    /// The user stopped the command (Ctrl-C or SIGTERM).
    Interrupted,
}

impl Class {
    /// Every class, in the order of the exit codes: what the documentation lists.
    pub const ALL: [Self; 11] = [
        Self::Other,
        Self::Usage,
        Self::Source,
        Self::Image,
        Self::Checksum,
        Self::Target,
        Self::Boot,
        Self::Engine,
        Self::GuestCrash,
        Self::GuestTimeout,
        Self::Interrupted,
    ];
}

/// The exit code of a class of failure. Success is 0.
pub const fn exit_code(class: Class) -> u8 {
    match class {
        Class::Other => 1,
        Class::Usage => 2,
        Class::Source => 3,
        Class::Image => 4,
        Class::Checksum => 5,
        Class::Target => 6,
        Class::Boot => 7,
        Class::Engine => 8,
        Class::GuestCrash => 9,
        Class::GuestTimeout => 10,
        // 128 + SIGINT, as shells report it.
        Class::Interrupted => 130,
    }
}

/// An error that knows its class and, where there is one, the remedy.
pub trait Explain: std::error::Error {
    /// The class of the failure.
    fn class(&self) -> Class;

    /// A sentence on which the user can act, naming the command where one helps.
    fn hint(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_own_code() {
        let mut codes: Vec<u8> = Class::ALL.into_iter().map(exit_code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130]);
    }
}
