//! `cargo xtask initrd`: a guest for tests of the machine's devices. Debian's cloud kernel, and an initial RAM
//! disk with busybox, modules of that kernel and programs of this host.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::lab;
use crate::setup::{self, Need};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The first process: a script for busybox. The modules' names stand in `/modules`, in the order in
    /// which they load from `/lib/modules`.
    #[arg(long, value_name = "FILE")]
    init: PathBuf,
    /// A module of the kernel; those that it needs come along.
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// A program of this host to put into `/bin`, with the libraries that it needs.
    #[arg(long = "program", value_name = "FILE")]
    programs: Vec<PathBuf>,
    /// Where `kernel` and `initrd` go.
    folder: PathBuf,
}

pub(crate) fn main(args: &Args) -> Result<()> {
    setup::ensure_installed(&[Need::Boot])?;
    let mut files = Vec::new();
    for path in &args.programs {
        let name = path.file_name().context("a program without a name")?;
        files.extend(lab::with_libraries(path, &format!("bin/{}", name.display()), &args.folder)?);
    }
    let modules: Vec<&str> = args.modules.iter().map(String::as_str).collect();
    let (kernel, initrd) =
        lab::small_guest(&fs_err::read_to_string(&args.init)?, &modules, &files)?;
    fs_err::copy(kernel, args.folder.join("kernel"))?;
    fs_err::write(args.folder.join("initrd"), initrd)?;
    Ok(())
}
