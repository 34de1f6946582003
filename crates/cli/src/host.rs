//! What the commands ask of this host: which disks are in which format, which engines work.

use std::path::{Path, PathBuf};

use bootyard_image::raw::FileAt;
use bootyard_image::{Format, HEAD_LEN, ReadAt, sniff};
use bootyard_spec::Class;
use bootyard_supervise::{HostFacts, KvmFact};
use bootyard_vmm::doctor::{KvmVerdict, probe_kvm};

use crate::error::Failure;
use crate::settings;

/// QEMU's program for this processor.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// The format of a local disk: qcow2, or else raw. What is inside a raw disk is the guest's affair.
pub(crate) fn disk_format(path: &Path) -> Result<Format, Failure> {
    let failed = |error| Failure::new(Class::Usage, error);
    let file = fs_err::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        let what = format!("`{}` is a folder, not a disk", path.display());
        return Err(Failure::new(Class::Usage, what));
    }
    let storage = FileAt::new(file.into_file()).map_err(failed)?;
    let mut head = vec![0; HEAD_LEN.min(storage.len() as usize)];
    storage.read_exact_at(&mut head, 0).map_err(failed)?;
    Ok(match sniff(&head) {
        Format::Qcow2 => Format::Qcow2,
        _ => Format::Raw,
    })
}

/// What this host can do, found out by trying.
pub(crate) fn facts() -> HostFacts {
    facts_of(&probe_kvm())
}

/// What this host can do, given what the probe of KVM found.
pub(crate) fn facts_of(verdict: &KvmVerdict) -> HostFacts {
    let kvm = match verdict {
        KvmVerdict::Full => KvmFact::Full,
        KvmVerdict::Emulated { .. } => KvmFact::Emulated,
        KvmVerdict::Broken { .. } | KvmVerdict::Absent { .. } => {
            KvmFact::Broken(verdict.to_string())
        }
    };
    HostFacts { kvm, qemu: find_program(QEMU) }
}

/// A program on the search path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    settings::search_path().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}
