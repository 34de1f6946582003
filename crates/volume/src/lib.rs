//! Bytes at rest: the store of named volumes, and disks that are being written.
//!
//! A disk is written into a [`Staged`] target that nobody else sees, and becomes visible under its
//! name in one step, [`Staged::publish`], which takes the proof that its source was verified. What
//! ends before that leaves nothing behind, or a left-over that the next attempt takes over.
//!
//! This crate knows files, block devices, locks, and the store's database. It knows no sources, and of
//! disk formats only how large a stored disk is and how it grows.

mod attached;
mod clone;
mod device;
mod empty;
mod error;
mod fsops;
mod journal;
mod part;
mod prospect;
mod run_folder;
mod spill;
mod staged;
pub mod stop;
mod store;
mod unpack;

pub use attached::{Access, AttachedDisk};
pub use clone::{CloneMethod, CloneOptions, Cloned};
pub use error::{Error, ErrorKind};
pub use fsops::is_same;
pub use journal::{Journal, Record};
pub use prospect::Prospect;
pub use run_folder::RunFolder;
pub use spill::SpillFile;
pub use staged::{Published, Staged};
pub use store::{Facts, Finding, FindingKind, StageOptions, State, Store, VerifyOptions, Volume};
pub use unpack::{Unpack, UnpackOptions, Unpacked};
