//! Manifests as a cluster takes and prints them, turned into the words of `spec`.
//!
//! Wire types live here and nowhere else. [`manifests`] reads the objects of a file and tells
//! everything that is wrong with them at once, each with its field and its place. Nothing here reads a
//! file.

mod check;
mod data;
mod explain;
mod object;
mod problem;
mod read;
mod storage;
pub mod types;

pub use data::{DataKind, DataObject, check_key, data_object};
pub use explain::{Unexplained, explain};
pub use object::{Manifest, Object, Unreadable, manifests};
pub use problem::{Problem, Severity};
pub use read::{Accepted, Empty, Quantity, Silent};
pub use storage::{Error, StorageDocument, storage};
