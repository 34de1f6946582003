//! What the commands ask of this host: which disks are in which format, which engines work.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::{Disk, Format, HEAD_LEN, ReadAt, sniff};
use bootyard_spec::Class;
use bootyard_supervise::control::wire::ErrorBody;
use bootyard_supervise::{DiskFormat, DiskUsage, HostFacts, KvmFact};
use bootyard_vmm::doctor::{KvmVerdict, probe_kvm};
use bootyard_volume::{Access, AttachedDisk};

use crate::error::Failure;
use crate::settings;

/// QEMU's program for this processor.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// The format of a disk by its name: `.qcow2`, or else raw. The content does not decide, since a
/// guest writes it: one that turned its raw disk into a qcow2 with a backing file could otherwise
/// read any file of this host.
pub(crate) fn format_by_name(path: &Path) -> DiskFormat {
    let is_qcow2 = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("qcow2"));
    if is_qcow2 { DiskFormat::Qcow2 } else { DiskFormat::Raw }
}

/// Whether there is a block device of this name.
pub(crate) fn is_block_device(path: &Path) -> bool {
    fs_err::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// How a disk is locked for what a guest does with it.
pub(crate) const fn access(usage: DiskUsage) -> Access {
    match usage {
        DiskUsage::Read => Access::Read,
        DiskUsage::Write => Access::Write,
        DiskUsage::Share => Access::WriteShared,
    }
}

/// Opens a disk that the user named for a look, and checks what would only surprise later: that it
/// is a file or block device, is stored as its name says, and names no other file.
pub(crate) fn look_at(path: &Path) -> Result<Box<dyn Disk>, Failure> {
    read(path, open(path)?)
}

/// Opens a file or block device that the user named, without reading it.
pub(crate) fn open(path: &Path) -> Result<FileAt, Failure> {
    let failed = |error| Failure::new(Class::Usage, error);
    // A pipe would block at its opening.
    let kind = fs_err::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(Class::Usage, format!("disk `{}` does not exist", path.display()))
        }
        _ => failed(error),
    })?;
    let kind = kind.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("`{}` is neither a file nor a block device", path.display());
        return Err(Failure::new(Class::Usage, what));
    }
    let file = fs_err::File::open(path).map_err(failed)?.into_file();
    FileAt::new(file).map_err(failed)
}

/// Reads how the disk in `storage` is stored, as its name says.
pub(crate) fn read(path: &Path, storage: FileAt) -> Result<Box<dyn Disk>, Failure> {
    match format_by_name(path) {
        DiskFormat::Raw => Ok(Box::new(RawDisk::read_only(storage))),
        DiskFormat::Qcow2 => bootyard_image::open(storage).map_err(|error| unusable(path, &error)),
    }
}

/// The image in `path` cannot be a machine's disk.
pub(crate) fn unusable(path: &Path, error: &bootyard_image::Error) -> Failure {
    let what = format!("cannot use `{}` as a disk: {error}", path.display());
    Failure::new(Class::Image, what)
        .with_hint("a volume has no such dependence: `bootyard import` the image that it is of")
}

/// Refuses a raw file of the user's that begins like a qcow2: most likely it is one under a
/// misleading name. What a volume holds is the guest's affair.
pub(crate) fn check_name(path: &Path) -> Result<(), Failure> {
    check_content(path, look_at(path)?.as_ref())
}

fn check_content(path: &Path, disk: &dyn Disk) -> Result<(), Failure> {
    let mut head = vec![0; HEAD_LEN.min(disk.virtual_size() as usize)];
    disk.read_at(&mut head, 0).map_err(|error| Failure::new(Class::Usage, error))?;
    if format_by_name(path) == DiskFormat::Qcow2 || sniff(&head) != Format::Qcow2 {
        return Ok(());
    }
    let what = format!("`{}` begins like a qcow2, but is not named so", path.display());
    Err(Failure::new(Class::Usage, what).with_hint(
        "if you made it, import it, or give it a name that ends in `.qcow2`; if a guest wrote it, \
         do not",
    ))
}

/// Opens and checks what is put into a CD-ROM drive as `--cdrom` does. It stays locked for readers as long
/// as somebody has it open.
pub(crate) fn open_medium(path: &Path) -> Result<OwnedFd, ErrorBody> {
    let failed = |error| Failure::new(Class::Other, error);
    let open = || {
        let medium = AttachedDisk::open_for(path, access(DiskUsage::Read))?;
        let file = medium.file().ok_or_else(|| failed(io::ErrorKind::Unsupported.into()))?;
        let file = file.try_clone_to_owned().map_err(failed)?;
        let looked_at = File::from(file.try_clone().map_err(failed)?);
        check_content(path, read(path, FileAt::new(looked_at).map_err(failed)?)?.as_ref())?;
        Ok(file)
    };
    open().map_err(Failure::into_body)
}

/// Refuses a disk that a PC's firmware would not start: without the mark of a boot sector it waits
/// for another disk for ever.
pub(crate) fn check_boot_sector(path: &Path, disk: &dyn Disk) -> Result<(), Failure> {
    let mut sector = [0; 512];
    let has_mark = disk.virtual_size() >= 512
        && disk.read_at(&mut sector, 0).is_ok()
        && sector.ends_with(&[0x55, 0xaa]);
    if has_mark {
        return Ok(());
    }
    let what = format!("nothing to boot was found: `{}` has no boot sector", path.display());
    Err(Failure::new(Class::Boot, what))
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
