//! What a machine starts, as the user asks for it.

use std::path::PathBuf;

/// What a machine starts: by default what its first disk boots by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootSpec {
    /// The entry of the disk's boot menu, instead of its default: a title, an id, an index, or a path
    /// of them joined by `>`. Only engines that read the menu themselves can honour it.
    pub entry: Option<String>,
    /// Text for the end of the kernel command line. Without a kernel that is given, only engines that
    /// read the boot menu themselves can honour it.
    pub append: Option<String>,
    /// A kernel that is started instead of the disk's (KubeVirt's `kernelBoot`).
    pub kernel: Option<KernelBoot>,
}

/// A kernel in a file of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelBoot {
    /// A bzImage, or an ELF file with a PVH entry.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel command line (KubeVirt's `kernelArgs`).
    pub cmdline: String,
}

impl BootSpec {
    /// The command line of the kernel that is given, with what is appended to it.
    pub fn cmdline(&self) -> String {
        let given = self.kernel.as_ref().map_or("", |kernel| &kernel.cmdline);
        format!("{given} {}", self.append.as_deref().unwrap_or_default()).trim().to_owned()
    }
}
