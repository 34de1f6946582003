//! `cargo xtask bench`: Bootyard beside the tools that one would use instead.
//!
//! Both sides run alternately on the same machine in one go, because only the ratio between them
//! means something: absolute times depend on the machine and on what else it does.

mod clone;
mod create;
mod decode;
mod images;
mod import;
mod machine;
mod measure;
mod seed;
mod upload;

use anyhow::Result;

pub(crate) use machine::{Inside, inside};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Import the Debian guest over HTTP, against curl and qemu-img.
    Import(import::Args),
    /// Clone a disk, against cp and qemu-img.
    Clone(clone::Args),
    /// Decode one disk from every format and compression, against the tool of each.
    Decode(decode::Args),
    /// Make an empty disk, against qemu-img.
    Create(create::Args),
    /// Make a seed, against cloud-localds, genisoimage and xorrisofs.
    Seed(seed::Args),
    /// Run a machine in the lab, against QEMU's microvm and q35.
    Machine(machine::Args),
    /// Send a disk over loopback, against curl and nginx's DAV.
    Upload(upload::Args),
}

pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.what {
        What::Import(args) => import::main(args),
        What::Clone(args) => clone::main(args),
        What::Decode(args) => decode::main(args),
        What::Create(args) => create::main(args),
        What::Seed(args) => seed::main(args),
        What::Machine(args) => machine::main(args),
        What::Upload(args) => upload::main(args),
    }
}
