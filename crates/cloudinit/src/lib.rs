//! cloud-init seeds: what a guest is told at its first boot, checked, and written as a disk image.
//!
//! ```text
//!  Hostname, InstanceId ┐
//!  SshPublicKey, Users  ├─► Seed ─files()─► Tree ─┬─► ISO 9660 (Rock Ridge, Joliet)
//!  MetaData, Network    │   NoCloud, ConfigDrive  └─► FAT
//!  UserData (1 or MIME) ┘
//! ```
//!
//! [`FoundImage`] goes the other way, with images that anyone made.
//!
//! Bytes come in and bytes go out: no file is opened here, no clock is asked, and the same input
//! makes the same image. [`Tree`] and [`Image`] know nothing of cloud-init; other small disks are
//! made with them.

mod config_disk;
mod conflict;
mod error;
mod fat;
mod found;
mod image;
mod iso;
pub mod lint;
mod meta_data;
mod mime;
mod network;
mod parts;
mod password;
mod read;
mod seed;
mod ssh;
mod tree;
mod user;
mod user_data;
mod yaml;

pub use config_disk::{ConfigDisk, ConfigKind};
pub use error::{Error, ErrorKind};
pub use found::{FoundData, FoundNetwork, FoundSeed, NetworkForm};
pub use image::{DiskImage, Image, ImageFormat};
pub use meta_data::MetaData;
pub use network::{Interface, IpNetwork, MacAddress, Network};
pub use parts::{Part, Parts};
pub use password::PasswordHash;
pub use read::{FileSystem, FoundImage};
pub use seed::{Datasource, Hostname, InstanceId, Seed};
pub use ssh::SshPublicKey;
pub use tree::Tree;
pub use user::{User, UserName, Users};
pub use user_data::{Format, Reading, UserData};
