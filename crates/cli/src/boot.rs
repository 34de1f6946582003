//! What a machine starts: the flags that `run` and the `machine` subcommand share, and what they are
//! in the KVM machine's words.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bootyard_image::ReadAt as _;
use bootyard_image::raw::FileAt;
use bootyard_spec::{BootSpec, Class, KernelBoot};
use bootyard_vmm::{Boot, BootFile};
use clap::Args;

use crate::error::Failure;

/// Bytes of a kernel, and of an initial RAM disk: as many as the boot loader takes from a disk.
const KERNEL_MAX: u64 = 256 << 20;
const INITRD_MAX: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(crate) struct BootArgs {
    /// Entry of the disk's boot menu: its title, id or number, as `boot-entries` shows them; those of
    /// submenus before it, joined by > (engine kvm)
    #[arg(long, value_name = "ENTRY", conflicts_with = "kernel")]
    entry: Option<String>,
    /// Text for the end of the kernel command line (engine kvm, or with --kernel)
    #[arg(long, value_name = "TEXT")]
    append: Option<String>,
    /// Kernel to start instead of the disk's: a bzImage, or an ELF file with a PVH entry
    #[arg(long, value_name = "FILE", group = "boot")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of that kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line of that kernel
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
}

impl BootArgs {
    pub(crate) fn spec(&self) -> BootSpec {
        BootSpec {
            entry: self.entry.clone(),
            append: self.append.clone(),
            kernel: self.kernel.clone().map(|kernel| KernelBoot {
                kernel,
                initrd: self.initrd.clone(),
                cmdline: self.cmdline.clone().unwrap_or_default(),
            }),
        }
    }

    /// A name for a machine that has nothing but a kernel.
    pub(crate) fn machine_name(&self) -> String {
        let name = self.kernel.as_deref().and_then(Path::file_stem);
        name.unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// What the KVM machine starts.
pub(crate) fn boot(spec: &BootSpec) -> Result<Boot, Failure> {
    let Some(given) = &spec.kernel else {
        return Ok(Boot::FromDisk(bootyard_bootload::Options {
            entry: spec.entry.clone(),
            append: spec.append.clone(),
            ..bootyard_bootload::Options::default()
        }));
    };
    check(given)?;
    let initrd = given.initrd.as_deref().map(|path| open(path, INITRD_MAX)).transpose()?;
    Ok(Boot::Kernel { kernel: open(&given.kernel, KERNEL_MAX)?, initrd, cmdline: spec.cmdline() })
}

/// Opens a file of at most `limit` bytes, for every start of the machine.
fn open(path: &Path, limit: u64) -> Result<BootFile, Failure> {
    let failed = |error| Failure::new(Class::Usage, error);
    let file = fs_err::File::open(path).map_err(failed)?;
    let file = FileAt::new(file.into()).map_err(failed)?;
    let (name, size) = (path.display().to_string(), file.len());
    if size > limit {
        let what = format!("expected at most {limit} bytes in `{name}`, got {size}");
        return Err(Failure::new(Class::Usage, what));
    }
    Ok(BootFile { name, bytes: Arc::new(file) })
}

/// Refuses what is no file before a machine is made for it.
pub(crate) fn check(given: &KernelBoot) -> Result<(), Failure> {
    check_file("kernel", &given.kernel)?;
    given.initrd.as_deref().map_or(Ok(()), |initrd| check_file("initial RAM disk", initrd))
}

fn check_file(what: &str, path: &Path) -> Result<(), Failure> {
    let wrong = match fs_err::metadata(path) {
        Ok(found) if found.is_file() => return Ok(()),
        Ok(_) => "is not a file",
        Err(error) if error.kind() == io::ErrorKind::NotFound => "does not exist",
        Err(error) => return Err(Failure::new(Class::Usage, error)),
    };
    Err(Failure::new(Class::Usage, format!("{what} `{}` {wrong}", path.display())))
}
