//! Support for the tests of every other crate: real servers and servers with faults on loopback,
//! the binary in an environment of its own, disk images with a known pattern, the corpus, hostile
//! files.
//!
//! All of it is blocking and needs no async runtime. What fails here panics with what a reader of
//! the test log needs, because nothing but tests calls it. Never a dependency of shipped code.

mod answers;
mod cli;
mod cloud_init;
mod corpus;
mod fault;
mod fs;
mod hostile;
mod image;
mod nginx;
mod proxy;
mod registry;
mod s3;
mod skip;
mod tool;

pub use answers::{Answer, AnswerServer, Question};
pub use cli::{Cli, Output};
pub use cloud_init::{answer, cloud_init};
pub use corpus::{CorpusEntry, corpus, corpus_entries, workspace_root};
pub use fault::{FaultServer, Reply, Request};
pub use fs::{LoopDevice, Mount};
pub use hostile::{Expect, HostileFile, HostileFiles, hostile_files};
pub use image::{pseudo_random, sparse_image};
pub use nginx::{Nginx, NginxOptions};
pub use proxy::ProxyServer;
pub use registry::{ImageLayout, Registry, RegistryOptions};
pub use s3::S3Server;
#[doc(hidden)]
pub use skip::announce;
pub use skip::require_tool;
pub use tool::{qemu_img, run, sha256_file};

/// The test directories' common prefix, so that what a killed test leaves behind has a name.
fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bootyard-test-").tempdir().expect("a temporary directory")
}
