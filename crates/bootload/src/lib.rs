//! A boot loader that runs on the host: it finds kernel, initrd and command line inside a disk and
//! returns them as plain data, as the firmware and loader of a real machine would have loaded them.
//!
//! ```text
//!  Disk ─► partition ─► fs ──────────────────────► menu ──────────────────────────► BootPlan
//!          GPT, MBR,    ext2-4, XFS, btrfs, FAT    GRUB, BLS, UKI, extlinux
//!          none
//! ```
//!
//! Everything on the disk was written by somebody else's guest. No parser here trusts a size, a
//! count or a depth: each has a limit with a name, a script runs for a limited number of steps, and
//! what is not understood inside the entry that boots is an error that names file and line.
//! Nothing is written, and nothing outside the disk is read. This crate knows no machine: who loads
//! the kernel, and how, is the caller's affair.
#![forbid(unsafe_code)]

mod bls;
mod error;
mod extlinux;
mod fs;
mod grub;
mod menu;
mod partition;
mod plan;
mod scan;
mod uki;

pub use error::{Error, ErrorKind};
pub use menu::Method;
pub use plan::{BootPlan, Entry, Listing, Options, find, list};
