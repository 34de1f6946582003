//! Reads small disks with files on them, whoever made them: ISO 9660 and FAT, alone or in a
//! partition. What comes out is what a guest sees that mounts them.
//!
//! ```text
//!  Read + Seek ─► Media ─┬─► Iso (Rock Ridge, Joliet, plain) ─┬─► Finds ─► FoundImage
//!              no byte   ├─► Fat (12, 16, 32, long names)    ─┘  limits    Tree, label
//!              outside   └─► partition ─► Media of a part
//! ```
//!
//! No byte is trusted: every place is checked against the image's end, every list and chain has a
//! limit, and nothing is read that has not been counted. What the files mean is not known here.

mod fat;
mod finds;
mod iso;
mod media;
mod partition;
mod rock_ridge;

use std::io::{Read, Seek};

use self::fat::Fat;
use self::finds::Finds;
use self::iso::Iso;
use self::media::Media;
use crate::{Datasource, Error, ErrorKind, Tree};

/// What is on a small disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// What the disk is.
    pub file_system: FileSystem,
    /// The number of the partition that was read, counted from 1; `None` if there are none.
    pub partition: Option<usize>,
    /// The volume's label, by which guests look for it.
    pub label: Option<String>,
    /// The files, by the names that Linux shows. Links stand for what they lead to.
    pub files: Tree,
    /// Symbolic links that lead nowhere on this disk: path and target.
    pub loose_links: Vec<(String, String)>,
}

/// The file system of a small disk, and which names it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileSystem {
    /// ISO 9660 with Rock Ridge, whose names are as on Linux.
    IsoRockRidge,
    /// ISO 9660 with Joliet, and without Rock Ridge.
    IsoJoliet,
    /// ISO 9660 with names of capitals, which Linux shows in lower case.
    Iso,
    /// FAT with 12 bits for a cluster.
    Fat12,
    /// FAT with 16 bits for a cluster.
    Fat16,
    /// FAT with 32 bits for a cluster.
    Fat32,
}

impl FileSystem {
    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IsoRockRidge => "ISO 9660 with Rock Ridge",
            Self::IsoJoliet => "ISO 9660 with Joliet",
            Self::Iso => "ISO 9660 with short names only",
            Self::Fat12 => "FAT12",
            Self::Fat16 => "FAT16",
            Self::Fat32 => "FAT32",
        }
    }

    /// What `blkid` calls it.
    pub const fn type_name(self) -> &'static str {
        match self {
            Self::IsoRockRidge | Self::IsoJoliet | Self::Iso => "iso9660",
            Self::Fat12 | Self::Fat16 | Self::Fat32 => "vfat",
        }
    }
}

impl FoundImage {
    /// Reads the whole disk: at most 64 MiB in 65 536 files.
    ///
    /// Of several partitions with such a file system the first is read that has the label of a seed,
    /// or else the first. A damaged image is an error with the offset at which it is.
    pub fn read(image: &mut (impl Read + Seek)) -> Result<Self, Error> {
        let mut media = Media::new(image)?;
        if let Some(volume) = Volume::open(&mut media)? {
            return volume.read(&mut media, None);
        }
        let mut found: Option<(usize, u64, u64, Volume)> = None;
        for ((begin, len), number) in partition::table(&mut media)?.into_iter().zip(1..) {
            let Some(volume) = Volume::open(&mut media.part(begin, len))? else { continue };
            let is_seed = volume.label().is_some_and(|label| Datasource::of_label(label).is_some());
            if is_seed || found.is_none() {
                found = Some((number, begin, len, volume));
            }
            if is_seed {
                break;
            }
        }
        match found {
            Some((number, begin, len, volume)) => {
                volume.read(&mut media.part(begin, len), Some(number))
            }
            None => Err(unknown(&mut media)?),
        }
    }

    /// The content of the file at `path`, which has `/` between its parts. FAT does not mind the case
    /// of names.
    pub fn file(&self, path: &str) -> Option<&[u8]> {
        let exact = self.files.get(path);
        if exact.is_some() || self.file_system.type_name() == "iso9660" {
            return exact;
        }
        let (wanted, mut files) = (path.to_lowercase(), self.files.files());
        files.find(|(found, _)| found.to_lowercase() == wanted).map(|(_, content)| content)
    }
}

/// A file system that was recognised.
enum Volume {
    Iso(Iso),
    Fat(Fat, Option<String>),
}

impl Volume {
    fn open(media: &mut Media<'_>) -> Result<Option<Self>, Error> {
        if let Some(iso) = Iso::open(media)? {
            return Ok(Some(Self::Iso(iso)));
        }
        let Some(mut fat) = Fat::open(media)? else { return Ok(None) };
        let label = fat.label(media)?;
        Ok(Some(Self::Fat(fat, label)))
    }

    fn label(&self) -> Option<&str> {
        match self {
            Self::Iso(iso) => iso.label.as_deref(),
            Self::Fat(_, label) => label.as_deref(),
        }
    }

    fn read(self, media: &mut Media<'_>, partition: Option<usize>) -> Result<FoundImage, Error> {
        let mut finds = Finds::default();
        let (file_system, label) = match self {
            Self::Iso(iso) => {
                iso.read(media, &mut finds)?;
                (iso.file_system, iso.label)
            }
            Self::Fat(mut fat, label) => {
                fat.read(media, &mut finds)?;
                (fat.file_system(), label)
            }
        };
        let (files, loose_links) = finds.finish()?;
        Ok(FoundImage { file_system, partition, label, files, loose_links })
    }
}

/// The error for an image in which nothing was found, by what it is instead.
fn unknown(media: &mut Media<'_>) -> Result<Error, Error> {
    /// Where the superblock of ext2, 3 and 4 has its magic number, and UDF the beginning of its
    /// descriptors (ECMA-167 §2/9).
    const EXT_MAGIC_AT: usize = 1024 + 56;
    const UDF_AT: usize = 32768 + 1;
    let head = media.head(UDF_AT + 5)?;
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    let is = |what: &str, hint: &str| Error::new(ErrorKind::Image, what).with_hint(hint);
    let seed = "a seed is ISO 9660 or FAT; make one with `bootyard seed build`";
    Ok(match () {
        () if head.is_empty() => is("the image is empty", seed),
        () if head.iter().all(|byte| *byte == 0) => {
            is("expected ISO 9660 or FAT, got nothing but zeros", seed)
        }
        () if has(UDF_AT, b"BEA01") || has(UDF_AT, b"NSR0") => is(
            "expected ISO 9660 or FAT, got UDF, which cloud-init does not look at",
            "make the image anew with ISO 9660 (`genisoimage -joliet -rock` without `-udf`)",
        ),
        () if has(EXT_MAGIC_AT, &[0x53, 0xEF]) => {
            is("expected ISO 9660 or FAT, got an ext file system", seed)
        }
        () if has(0, b"QFI\xFB") => is(
            "expected ISO 9660 or FAT, got a qcow2 image",
            "convert it with `bootyard export`, or show it by `bootyard inspect`",
        ),
        () => is(
            "expected ISO 9660 or FAT: there is neither a volume descriptor at offset 32768 nor a \
             boot sector at 0",
            seed,
        ),
    })
}
