//! The disks of a machine that `run` boots: from the flags to files, and what lives no longer than the
//! machine does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bootyard_image::qcow2::BackingFormat;
use bootyard_import::Cancel;
use bootyard_spec::{ByteSize, Class, DiskAttachment, DiskLife, DiskSerial, Source, VmDisk};
use bootyard_supervise::DiskFormat;
use bootyard_volume::{Access, AttachedDisk, RunFolder, Store};
use clap::{ArgGroup, Args};

use crate::args::RunArgs;
use crate::commands::create::empty_capacity;
use crate::commands::run::attach;
use crate::error::Failure;
use crate::progress::Display;
use crate::{host, settings};

/// Which disks a machine has, in this order: `--disk`, `--container-disk`, `--empty-disk`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("boot").required(true).multiple(true))]
pub(crate) struct DiskArgs {
    /// Volume of the store, or a file or device if it has a slash: `.qcow2`, or else raw; the first
    /// one is booted. With `,ephemeral` it is only read, and what the guest writes is thrown away when
    /// the machine stops; `,size=20Gi` gives the guest a larger disk then. `,readonly` keeps the guest
    /// from writing, `,bus=scsi` attaches the disk to a SCSI bus, `,cache=writethrough` makes every write
    /// durable, and `,serial=TEXT` is its serial number
    #[arg(long = "disk", value_name = "VOLUME|FILE[,OPTION…]", group = "boot")]
    disks: Vec<DiskArg>,
    /// Container image with a disk, docker://…, oci:PATH, oci-archive:PATH or docker-archive:PATH:
    /// fetched once, only read, and what the guest writes is thrown away when the machine stops
    #[arg(long = "container-disk", value_name = "IMAGE[,size=QTY]", group = "boot")]
    container_disks: Vec<ContainerDiskArg>,
    /// Empty disk of this size, thrown away when the machine stops
    #[arg(long = "empty-disk", value_name = "QTY")]
    empty_disks: Vec<ByteSize>,
    /// Disc in a CD-ROM drive: volume of the store, or a file if it has a slash
    #[arg(long = "cdrom", value_name = "VOLUME|FILE[,serial=TEXT]")]
    cdroms: Vec<CdromArg>,
}

impl DiskArgs {
    /// The name of the disk that is booted, without its folder and ending.
    pub(crate) fn machine_name(&self) -> String {
        let first = self.disks.first().map(|disk| disk.name.clone());
        let image = || match &self.container_disks.first()?.image {
            // Behind the last slash, before the tag.
            Source::Registry(image) => {
                let name = image.rsplit('/').next()?;
                Some(name.split([':', '@']).next()?.to_owned())
            }
            Source::Stored(image) => Some(image.path.to_string_lossy().into_owned()),
            _ => None,
        };
        let first = first.or_else(image).unwrap_or_default();
        Path::new(&first).file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// `NAME[,ephemeral[,size=QTY]][,readonly][,bus=BUS][,cache=MODE][,serial=TEXT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DiskArg {
    name: String,
    ephemeral: bool,
    read_only: bool,
    size: Option<ByteSize>,
    attachment: DiskAttachment,
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut name, mut size, mut ephemeral, mut read_only) = (text, None, false, false);
        let mut attachment = DiskAttachment::default();
        // From the end, so that a name may have commas.
        while let Some((rest, option)) = name.rsplit_once(',') {
            match option.strip_prefix("size=") {
                Some(quantity) if size.is_none() => size = Some(parse_size(quantity)?),
                None if option == "ephemeral" && !ephemeral => ephemeral = true,
                None if option == "readonly" && !read_only => read_only = true,
                None if attach_option(&mut attachment, option)? => {}
                _ => break,
            }
            name = rest;
        }
        if name.is_empty() {
            return Err("expected a volume or a file".to_owned());
        }
        if size.is_some() && !ephemeral {
            return Err(format!("`size=` is for ephemeral disks: `{name},ephemeral,size=…`"));
        }
        if ephemeral && read_only {
            return Err("a disk is `ephemeral` or `readonly`".to_owned());
        }
        Ok(Self { name: name.to_owned(), ephemeral, read_only, size, attachment })
    }
}

/// Takes an option of how a disk is attached. What the guest sees has a flag of its own.
fn attach_option(attachment: &mut DiskAttachment, option: &str) -> Result<bool, String> {
    if option.starts_with("device=") {
        return Ok(false);
    }
    attachment.set(option).map_err(|error| error.to_string())
}

/// `NAME[,serial=TEXT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CdromArg {
    name: String,
    attachment: DiskAttachment,
}

impl FromStr for CdromArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut attachment = DiskAttachment::cdrom();
        let name = match text.rsplit_once(',') {
            Some((name, option)) if option.starts_with("serial=") => {
                attach_option(&mut attachment, option)?;
                name
            }
            _ => text,
        };
        if name.is_empty() {
            return Err("expected a volume or a file".to_owned());
        }
        Ok(Self { name: name.to_owned(), attachment })
    }
}

/// `IMAGE[,size=QTY]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ContainerDiskArg {
    image: Source,
    size: Option<ByteSize>,
}

impl FromStr for ContainerDiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (image, size) = match text.rsplit_once(",size=") {
            Some((image, quantity)) => (image, Some(parse_size(quantity)?)),
            None => (text, None),
        };
        let image: Source = image.parse().map_err(|error| format!("{error}"))?;
        if !matches!(image, Source::Registry(_) | Source::Stored(_)) {
            let expected = "docker://…, oci:PATH, oci-archive:PATH or docker-archive:PATH";
            return Err(format!("`{image}` is no container image; expected {expected}"));
        }
        Ok(Self { image, size })
    }
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// The disks of a machine, and what of them is made anew for each of its lives.
pub(crate) struct Disks {
    pub(crate) disks: Vec<VmDisk>,
    pub(crate) scratch: Scratch,
}

/// What lives as long as the machine.
#[derive(Default)]
pub(crate) struct Scratch {
    folder: Option<RunFolder>,
    disks: Vec<ScratchDisk>,
    /// Nobody writes to what is below an overlay while the command runs.
    below: Vec<AttachedDisk>,
}

struct ScratchDisk {
    path: PathBuf,
    size: u64,
    backing: Option<BackingFormat>,
}

impl Scratch {
    /// Makes the disks of a new life.
    pub(crate) fn begin(&self) -> Result<(), bootyard_volume::Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        self.disks.iter().try_for_each(|disk| folder.make(&disk.path, disk.size, disk.backing))
    }

    /// Throws them away.
    pub(crate) fn end(&self) {
        if let Some(folder) = &self.folder {
            folder.clear();
        }
    }

    /// The folder of the machine, made when it is first needed.
    fn folder(&mut self) -> Result<&RunFolder, Failure> {
        let folder = match self.folder.take() {
            Some(folder) => folder,
            None => RunFolder::create(&settings::store_home()?)?,
        };
        Ok(self.folder.insert(folder))
    }

    /// A seed that stays as long as the machine.
    pub(crate) fn seed(&mut self, image: &[u8]) -> Result<PathBuf, Failure> {
        Ok(self.folder()?.keep("seed.iso", image)?)
    }

    /// The place of a new disk.
    fn place(&mut self, size: u64, backing: Option<BackingFormat>) -> Result<PathBuf, Failure> {
        let index = self.disks.len();
        let path = self.folder()?.disk(index);
        self.disks.push(ScratchDisk { path: path.clone(), size, backing });
        Ok(path)
    }

    /// An overlay of `size` bytes, by default as large as what it lies over.
    fn overlay(
        &mut self,
        below: PathBuf,
        access: Access,
        size: Option<ByteSize>,
    ) -> Result<VmDisk, Failure> {
        let lock = AttachedDisk::open_for(&below, access)?;
        let least = ByteSize::from_bytes(host::look_at(&below)?.virtual_size());
        let size = size.unwrap_or(least);
        if size < least {
            let what = format!("the size {size} is too small: `{}` has {least}", below.display());
            return Err(Failure::new(Class::Usage, what));
        }
        let format = match host::format_by_name(&below) {
            DiskFormat::Raw => BackingFormat::Raw,
            DiskFormat::Qcow2 => BackingFormat::Qcow2,
        };
        self.below.push(lock);
        let path = self.place(size.bytes(), Some(format))?;
        let (life, attachment) = (DiskLife::Overlay(below), DiskAttachment::default());
        Ok(VmDisk { path, read_only: false, life, attachment })
    }
}

/// Finds the disks, and fetches those of container images.
pub(crate) fn resolve(args: &RunArgs, cancel: &Cancel) -> Result<Disks, Failure> {
    let home = settings::store_home()?;
    let store = Store::open(&home);
    let (mut disks, mut scratch) = (Vec::new(), Scratch::default());
    check(args)?;
    for disk in &args.disks.disks {
        let (path, access) = attach(&store, &disk.name, disk.ephemeral || disk.read_only)?;
        let life = match access {
            Access::WriteShared => DiskLife::Shared,
            _ => DiskLife::Kept,
        };
        disks.push(match disk.ephemeral {
            true => {
                let overlay = scratch.overlay(path, reading(&store, &disk.name)?, disk.size)?;
                VmDisk { attachment: disk.attachment.clone(), ..overlay }
            }
            false => {
                let (read_only, attachment) = (disk.read_only, disk.attachment.clone());
                VmDisk { path, read_only, life, attachment }
            }
        });
    }
    for ContainerDiskArg { image, size } in &args.disks.container_disks {
        let mut options = args.transfer.options()?;
        options.image = settings::image_options(&args.image);
        let display = Display::new(false);
        let folder = home.join("containerdisks");
        let disk = bootyard_import::container_disk(image, &folder, &options, &display, cancel)?;
        disks.push(scratch.overlay(disk.path, Access::Read, *size)?);
    }
    for (index, capacity) in args.disks.empty_disks.iter().enumerate() {
        let size = empty_capacity(&format!("empty-disk-{index}"), *capacity)?;
        let path = scratch.place(size.bytes(), None)?;
        let (life, attachment) = (DiskLife::Empty, DiskAttachment::default());
        disks.push(VmDisk { path, read_only: false, life, attachment });
    }
    for CdromArg { name, attachment } in &args.disks.cdroms {
        let (path, _) = attach(&store, name, true)?;
        let (life, attachment) = (DiskLife::Kept, attachment.clone());
        disks.push(VmDisk { path, read_only: true, life, attachment });
    }
    Ok(Disks { disks, scratch })
}

/// How a disk is opened that nobody may write to meanwhile.
fn reading(store: &Store, disk: &str) -> Result<Access, Failure> {
    match disk.parse() {
        Ok(name) if !disk.contains('/') => Ok(store.get(&name)?.reading()),
        _ => Ok(Access::Read),
    }
}

/// Refuses flags that are for container images where there is none, and disks that a guest could not tell
/// from each other.
fn check(args: &RunArgs) -> Result<(), Failure> {
    let disks = args.disks.disks.iter().map(|disk| (&disk.name, &disk.attachment));
    let cdroms = args.disks.cdroms.iter().map(|cdrom| (&cdrom.name, &cdrom.attachment));
    check_serials(disks.chain(cdroms))?;
    let images: Vec<Source> =
        args.disks.container_disks.iter().map(|disk| disk.image.clone()).collect();
    let named = args.disks.disks.iter().map(|disk| Source::File(disk.name.clone().into()));
    let sources = if images.is_empty() { named.take(1).collect() } else { images };
    for source in &sources {
        args.image.check(source)?;
        args.transfer.check(source, None)?;
    }
    Ok(())
}

/// Refuses two disks with one serial number: Linux names them by it.
fn check_serials<'a>(
    disks: impl Iterator<Item = (&'a String, &'a DiskAttachment)>,
) -> Result<(), Failure> {
    let mut names = BTreeMap::new();
    for (name, attachment) in disks {
        let Some(serial) = attachment.serial.as_ref().map(DiskSerial::as_str) else { continue };
        if let Some(other) = names.insert(serial, name) {
            let what = format!("`{other}` and `{name}` have the same serial number `{serial}`");
            return Err(Failure::new(Class::Usage, what)
                .with_hint("give each disk its own `serial=`: guests find disks by it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_disks_with_one_serial_number_are_refused() {
        let disks = |serials: [&str; 3]| {
            let named = ["web", "data", "./cd.iso"].map(str::to_owned).into_iter();
            let attachments = serials.map(|options| options.parse::<DiskAttachment>().unwrap());
            named.zip(attachments).collect::<Vec<_>>()
        };
        let check = |serials| {
            check_serials(disks(serials).iter().map(|(name, attachment)| (name, attachment)))
        };
        assert!(check(["serial=a", "serial=b", "bus=scsi"]).is_ok());
        let refused = check(["serial=a", "bus=scsi", "bus=scsi,serial=a"]).unwrap_err();
        let said = "`web` and `./cd.iso` have the same serial number `a`";
        assert!(refused.render().contains(said), "{}", refused.render());
    }

    #[test]
    fn options_stand_behind_the_name() {
        let disk = |name: &str, ephemeral, size: Option<u64>| {
            let (name, size) = (name.to_owned(), size.map(ByteSize::from_bytes));
            let attachment = DiskAttachment::default();
            Ok(DiskArg { name, ephemeral, read_only: false, size, attachment })
        };
        for (text, expected) in [
            ("web", disk("web", false, None)),
            ("./a,b.raw", disk("./a,b.raw", false, None)),
            ("web,ephemeral", disk("web", true, None)),
            ("./a,b,ephemeral,size=1Ki", disk("./a,b", true, Some(1024))),
            ("web,size=1Ki,ephemeral", disk("web", true, Some(1024))),
            ("web,ephemeral,", disk("web,ephemeral,", false, None)),
            (",ephemeral", Err("expected a volume or a file".to_owned())),
            (
                "web,size=1Gi",
                Err("`size=` is for ephemeral disks: `web,ephemeral,size=…`".to_owned()),
            ),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
        assert!("web,ephemeral,size=x".parse::<DiskArg>().is_err());
        let attached = "a,b,bus=scsi,readonly,serial=s1".parse::<DiskArg>().unwrap();
        assert_eq!((attached.name.as_str(), attached.read_only), ("a,b", true));
        assert_eq!(attached.attachment.to_string(), "bus=scsi,serial=s1");
        for text in ["web,bus=ide", "web,ephemeral,readonly", "web,serial=a b"] {
            assert!(text.parse::<DiskArg>().is_err(), "{text}");
        }
        let cdrom = "./a,b.iso,serial=cd".parse::<CdromArg>().unwrap();
        assert_eq!(cdrom.name, "./a,b.iso");
        assert_eq!(cdrom.attachment.to_string(), "device=cdrom,bus=scsi,serial=cd");
        let image = "docker://host:5/a/web:1,size=1Ki".parse::<ContainerDiskArg>().unwrap();
        assert_eq!(image.image, Source::Registry("host:5/a/web:1".to_owned()));
        assert_eq!(image.size, Some(ByteSize::from_bytes(1024)));
        for text in ["./disk.raw", "docker://", "oci:a,size=", "https://host/a"] {
            assert!(text.parse::<ContainerDiskArg>().is_err(), "{text}");
        }
    }
}
