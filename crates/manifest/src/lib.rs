//! Manifests as a cluster takes and prints them, turned into the words of `spec`.
//!
//! Wire types live here and nowhere else. What a field may be is checked where it is read, so that an
//! error knows the line. Nothing here reads a file.

mod data;
mod storage;

pub use data::{DataKind, DataObject, check_key, data_object};
pub use storage::{Error, StorageDocument, storage};
