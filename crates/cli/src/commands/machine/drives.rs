//! The machine's disks and CD-ROM drives: opened first, and read when the machine is confined.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::{Disk, qcow2};
use bootyard_spec::{Class, DiskAttachment, DiskCache, DiskDevice};
use bootyard_supervise::{DiskFormat, DiskUsage, parse_backing_argument, parse_disk_argument};
use bootyard_vmm::sandbox::{self, Role};
use bootyard_vmm::{CacheMode, CdromConfig, DiskBus, DiskConfig, DiskOptions};
use bootyard_volume::AttachedDisk;

use crate::args::MachineArgs;
use crate::error::Failure;
use crate::host;

/// A disk that is open, and that nobody has looked into.
pub(super) struct Opened {
    index: usize,
    path: PathBuf,
    usage: DiskUsage,
    storage: AttachedDisk,
    backing: Option<(PathBuf, FileAt)>,
    attachment: DiskAttachment,
}

/// Opens everything that the command line names.
pub(super) fn open(args: &MachineArgs) -> Result<Vec<Opened>, Failure> {
    let mut backings = backings(&args.backings)?;
    let mut attachments = attachments(&args.attachments)?;
    let disks = args.disks.iter().enumerate().map(|(index, disk)| {
        let attachment = attachments.remove(&index).unwrap_or_default();
        open_one(index, disk, backings.remove(&index), attachment)
    });
    disks.collect()
}

/// What the machine calls its disks and CD-ROM drives.
pub(super) fn names(args: &MachineArgs) -> Vec<String> {
    args.disks.iter().map(|disk| parse_disk_argument(disk).0.display().to_string()).collect()
}

/// How many of the drives are for CD-ROMs.
pub(super) fn cdroms(args: &MachineArgs) -> Result<usize, Failure> {
    let attachments = attachments(&args.attachments)?;
    Ok(attachments.values().filter(|one| one.device == DiskDevice::Cdrom).count())
}

/// Reads what is put into a CD-ROM drive. The supervisor has opened and locked it.
pub(super) fn read_medium(path: PathBuf, medium: OwnedFd) -> Result<Arc<dyn Disk>, Failure> {
    let read = move || {
        let storage = FileAt::new(medium.into());
        let storage = storage.map_err(|error| Failure::new(Class::Other, error))?;
        host::read(&path, storage).map(Arc::from)
    };
    let reader = sandbox::spawn(Role::Reader, "medium".to_owned(), read);
    let reader = reader.map_err(|error| Failure::new(Class::Other, error))?;
    let panicked = |_| Failure::new(Class::Image, "reading it ended in a panic");
    reader.join().unwrap_or_else(|panic| Err(panicked(panic)))
}

fn open_one(
    index: usize,
    argument: &str,
    backing: Option<(PathBuf, FileAt)>,
    attachment: DiskAttachment,
) -> Result<Opened, Failure> {
    let (path, usage) = parse_disk_argument(argument);
    let storage = AttachedDisk::open_for(&path, host::access(usage))?;
    Ok(Opened { index, path, usage, storage, backing, attachment })
}

/// Reads how the disks are stored, and sorts them by what the guest sees.
pub(super) fn read(opened: Vec<Opened>) -> Result<(Vec<DiskConfig>, Vec<CdromConfig>), Failure> {
    let (mut disks, mut cdroms) = (Vec::new(), Vec::new());
    for opened in opened {
        let device = opened.attachment.device;
        let disk = read_one(opened)?;
        match device {
            DiskDevice::Disk => disks.push(disk),
            DiskDevice::Cdrom => cdroms.push(CdromConfig {
                name: disk.name,
                medium: Some(disk.disk),
                serial: disk.serial,
            }),
        }
    }
    Ok((disks, cdroms))
}

/// Reads how a disk is stored, over another one if it is an overlay. The guest's writes go straight to
/// it.
fn read_one(opened: Opened) -> Result<DiskConfig, Failure> {
    let Opened { index, path, usage, storage, backing, attachment } = opened;
    let read_only = usage == DiskUsage::Read;
    let backing = backing.map(|(path, storage)| host::read(&path, storage)).transpose()?;
    let disk: Arc<dyn Disk> = match host::format_by_name(&path) {
        DiskFormat::Raw if read_only => Arc::new(RawDisk::read_only(storage)),
        DiskFormat::Raw => Arc::new(RawDisk::new(storage)),
        DiskFormat::Qcow2 if read_only => {
            let opened = bootyard_image::open(storage);
            Arc::from(opened.map_err(|error| host::unusable(&path, &error))?)
        }
        DiskFormat::Qcow2 => {
            let opened = qcow2::edit(storage, backing);
            Arc::new(opened.map_err(|error| host::unusable(&path, &error))?)
        }
    };
    Ok(DiskConfig {
        name: path.display().to_string(),
        disk,
        read_only,
        serial: match &attachment.serial {
            Some(serial) => serial.as_str().to_owned(),
            None => format!("disk-{index}"),
        },
        options: options(&attachment),
    })
}

/// Opens what overlays lie over, by the number of the overlay. The process that started this one, and
/// whose end is its end, has it locked.
fn backings(arguments: &[String]) -> Result<BTreeMap<usize, (PathBuf, FileAt)>, Failure> {
    let opened = arguments.iter().map(|argument| {
        let parsed = parse_backing_argument(argument);
        let what = || format!("expected INDEX:PATH, got `{argument}`");
        let (index, path) = parsed.ok_or_else(|| Failure::new(Class::Usage, what()))?;
        let storage = host::open(&path)?;
        Ok((index, (path, storage)))
    });
    opened.collect()
}

/// How disks are attached, by their numbers.
fn attachments(arguments: &[String]) -> Result<BTreeMap<usize, DiskAttachment>, Failure> {
    let parse = |argument: &String| {
        let (index, options) = argument.split_once(':')?;
        Some((index.parse().ok()?, options.parse().ok()?))
    };
    let parse = |argument| {
        let what = || format!("expected INDEX:OPTIONS, got `{argument}`");
        parse(argument).ok_or_else(|| Failure::new(Class::Usage, what()))
    };
    arguments.iter().map(parse).collect()
}

fn options(attachment: &DiskAttachment) -> DiskOptions {
    DiskOptions {
        bus: match attachment.bus {
            bootyard_spec::DiskBus::Virtio => DiskBus::Virtio,
            bootyard_spec::DiskBus::Scsi => DiskBus::Scsi,
        },
        cache: match attachment.cache {
            DiskCache::WriteBack => CacheMode::WriteBack,
            DiskCache::WriteThrough => CacheMode::WriteThrough,
        },
        ..DiskOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use bootyard_image::qcow2::{Create, create};

    use super::*;

    fn disk(
        index: usize,
        argument: &str,
        backing: Option<(PathBuf, FileAt)>,
    ) -> Result<DiskConfig, Failure> {
        read_one(open_one(index, argument, backing, DiskAttachment::default())?)
    }

    #[test]
    fn a_qcow2_is_written_to_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let file = fs_err::File::create_new(&path).unwrap();
        create(&FileAt::new(file.into()).unwrap(), &Create::new(1 << 20)).unwrap();
        for value in 1..3 {
            let config = disk(0, path.to_str().unwrap(), None).unwrap();
            let writer = config.disk.writer().unwrap();
            let mut sector = [0; 512];
            config.disk.read_at(&mut sector, 512).unwrap();
            assert_eq!(sector, [value - 1; 512]);
            writer.write_at(&[value; 512], 512).unwrap();
            writer.flush().unwrap();
        }
    }

    #[test]
    fn an_overlay_is_written_and_what_is_below_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let home = bootyard_volume::RunFolder::create(folder.path()).unwrap();
        let base = folder.path().join("base:1.raw");
        fs_err::write(&base, vec![5; 1 << 20]).unwrap();
        let overlay = home.disk(1);
        home.make(&overlay, 2 << 20, Some(qcow2::BackingFormat::Raw)).unwrap();
        let mut below = backings(&[format!("1:{}", base.display())]).unwrap();
        let config = disk(1, overlay.to_str().unwrap(), below.remove(&1)).unwrap();
        let writer = config.disk.writer().unwrap();
        writer.write_at(&[6; 512], 512).unwrap();
        writer.flush().unwrap();
        let mut found = [0; 1536];
        config.disk.read_at(&mut found, 0).unwrap();
        assert_eq!((found[511], found[512], found[1023], found[1024]), (5, 6, 6, 5));
        assert_eq!(config.disk.virtual_size(), 2 << 20);
        assert!(fs_err::read(&base).unwrap() == vec![5; 1 << 20]);
        assert!(disk(1, overlay.to_str().unwrap(), None).is_err());
    }
}
