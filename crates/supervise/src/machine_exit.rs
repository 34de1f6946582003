//! The exit codes of the `machine` subcommand, by which the child tells its supervisor how the
//! guest ended. Every other code is that of a class of error ([`bootyard_spec::exit_code`]), whose
//! message the child wrote to its standard error.

use bootyard_spec::{Class, GuestEnd, exit_code};

/// The guest powered itself off.
pub const POWER_OFF: u8 = 0;
/// The guest asked for a reset that the machine was told not to do in place.
pub const RESET: u8 = 64;
/// The guest's kernel panicked, or its processor shut down.
pub const CRASH: u8 = 65;
/// The parent is gone: its end of the lifeline was closed.
pub const ORPHANED: u8 = 66;
/// The machine was ended by its sandbox, and said for which system call.
pub const CONFINED: u8 = 67;

/// The code for an end that the machine itself sees; ends that its supervisor decides have none.
pub const fn code_of(end: GuestEnd) -> Option<u8> {
    match end {
        GuestEnd::PowerOff => Some(POWER_OFF),
        GuestEnd::Reset => Some(RESET),
        GuestEnd::Crash => Some(CRASH),
        GuestEnd::EngineFailed | GuestEnd::TimedOut | GuestEnd::Stopped => None,
    }
}

/// What a code means: an end, or the class of the error for which the machine failed.
pub fn end_of(code: u8) -> Result<GuestEnd, Class> {
    match code {
        POWER_OFF => Ok(GuestEnd::PowerOff),
        RESET => Ok(GuestEnd::Reset),
        CRASH => Ok(GuestEnd::Crash),
        _ => {
            let class = Class::ALL.into_iter().find(|class| exit_code(*class) == code);
            Err(class.unwrap_or(Class::Engine))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_classes_come_back() {
        for end in [GuestEnd::PowerOff, GuestEnd::Reset, GuestEnd::Crash] {
            assert_eq!(code_of(end).map(end_of), Some(Ok(end)));
        }
        for class in Class::ALL {
            assert_eq!(end_of(exit_code(class)), Err(class));
        }
        assert_eq!(end_of(ORPHANED), Err(Class::Engine));
        assert_eq!(end_of(CONFINED), Err(Class::Engine));
        assert_eq!(end_of(101), Err(Class::Engine));
    }
}
