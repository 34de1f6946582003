//! Servers over the store. As yet one: the upload server, to which CDI's clients, ours, and `curl`
//! send a disk image.
//!
//! [`serve()`] takes one upload for one target, by the endpoints of CDI's upload server and by a
//! resumable protocol (tus 1.0), and runs the import engine on what arrives: any format, in one pass,
//! nothing visible before the verdict. The network has a thread of its own; the imports run on the
//! caller's, one at a time.
//!
//! Not for flags, files or terminals: keys and certificates come as bytes, events go to [`Watch`].

mod body;
mod error;
mod form;
mod job;
mod options;
mod resumable;
mod route;
mod server;
mod tls;
mod token;
mod upload;

pub use error::Error;
pub use job::{Outcome, Watch};
pub use options::{Access, Options, Tls};
pub use server::serve;
pub use token::{BadKey, Subject, TokenKey};
