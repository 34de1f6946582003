//! What a machine starts: the flags that `run` and the `machine` subcommand share, and what they are
//! in the KVM machine's words.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bootyard_spec::{BootSpec, Class, KernelBoot};
use bootyard_vmm::Boot;
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
    let initrd = given.initrd.as_deref().map(|path| read(path, INITRD_MAX)).transpose()?;
    Ok(Boot::Kernel {
        kernel: read(&given.kernel, KERNEL_MAX)?,
        initrd: initrd.unwrap_or_default(),
        cmdline: spec.cmdline(),
    })
}

/// Reads a whole file of at most `limit` bytes.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::new(Class::Usage, error);
    check(path)?;
    let file = fs_err::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        let what = format!("expected at most {limit} bytes in `{}`, got more", path.display());
        return Err(Failure::new(Class::Usage, what));
    }
    Ok(bytes)
}

/// Refuses what is no file before a machine is made for it.
pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    let found = fs_err::metadata(path).map_err(|error| Failure::new(Class::Usage, error))?;
    if found.is_file() {
        return Ok(());
    }
    Err(Failure::new(Class::Usage, format!("`{}` is not a file", path.display())))
}
