//! The files in a tar archive, read where they lie: an index of names and places, and nothing is
//! unpacked.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::FileExt;
use tar::{EntryType, Header, PaxExtensions};

use crate::file::{File, blocking};
use crate::{Error, Start};

/// Everything stands in blocks of so many bytes (POSIX.1-2017, pax, "ustar Interchange Format").
const BLOCK: u64 = 512;
/// How many members are indexed: an image has a few, and an archive of many images some hundreds.
const MEMBERS_MAX: usize = 1 << 16;
/// How long a header's own member may be: names and pax records.
const EXTENDED_MAX: u64 = 64 << 10;
/// How many links lead to a file: older dockers link a layer that two images share.
const LINKS_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    members: HashMap<String, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File(Range<u64>),
    /// To another member.
    Link(String),
}

impl Archive {
    pub(super) async fn open(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        blocking(move || {
            let members = index(&path)?;
            Ok(Self { path, members })
        })
        .await
    }

    /// A file of the archive.
    pub(super) async fn file(&self, name: &str, start: &Start) -> Result<File, Error> {
        let mut name = normal(name);
        for _ in 0..LINKS_MAX {
            match self.members.get(&name) {
                Some(Member::File(part)) => {
                    return File::open_part(&self.path, part.clone(), start).await;
                }
                Some(Member::Link(target)) => name.clone_from(target),
                None => break,
            }
        }
        let what = format!("it has no file `{name}`");
        Err(Error::image(&self.path.display().to_string(), &what))
    }
}

/// A path without `.` and with `..` applied.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn index(path: &Path) -> Result<HashMap<String, Member>, Error> {
    let (file, len) = crate::file::open(path)?;
    let bad = |what: &str| Error::image(&path.display().to_string(), what);
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at).map_err(|error| Error::file(path, error))?;
        Ok::<_, Error>(bytes)
    };
    let mut members = HashMap::new();
    let (mut at, mut name, mut size) = (0, None, None);
    while at + BLOCK <= len {
        let block = read(at, BLOCK)?;
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let header = Header::from_byte_slice(&block);
        if at == 0 && is_packed(&block) {
            return Err(Error::packed_archive(path));
        }
        check_sum(header).ok_or_else(|| bad("it is no tar archive, or damaged"))?;
        let own = header.entry_size().map_err(|_| bad("the size of a member is no number"))?;
        let stored = size.take().unwrap_or(own);
        let start = at + BLOCK;
        let end = start.checked_add(stored).filter(|end| *end <= len);
        let end = end.ok_or_else(|| bad("it is cut off"))?;
        at = end.next_multiple_of(BLOCK);
        let kind = header.entry_type();
        if matches!(kind, EntryType::XHeader | EntryType::GNULongName) {
            if stored > EXTENDED_MAX {
                return Err(bad("a header is too long"));
            }
            let text = read(start, stored)?;
            if kind == EntryType::GNULongName {
                let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
                name = Some(String::from_utf8_lossy(text).into_owned());
            } else {
                let records = pax(&text).ok_or_else(|| bad("a pax header is malformed"))?;
                (name, size) = (records.0.or(name), records.1);
            }
            continue;
        }
        let own_name = || String::from_utf8_lossy(&header.path_bytes()).into_owned();
        if matches!(kind, EntryType::GNULongLink | EntryType::XGlobalHeader) {
            continue;
        }
        let own = normal(&name.take().unwrap_or_else(own_name));
        let target =
            || String::from_utf8_lossy(&header.link_name_bytes().unwrap_or_default()).into_owned();
        let member = match kind {
            EntryType::Regular | EntryType::Continuous => Member::File(start..end),
            EntryType::Link => Member::Link(normal(&target())),
            EntryType::Symlink => {
                let folder = own.rsplit_once('/').map_or("", |(folder, _)| folder);
                Member::Link(normal(&format!("{folder}/{}", target())))
            }
            _ => continue,
        };
        if members.len() == MEMBERS_MAX {
            return Err(bad(&format!("it has more than {MEMBERS_MAX} members")));
        }
        members.insert(own, member);
    }
    Ok(members)
}

/// The name and the size in pax records.
fn pax(records: &[u8]) -> Option<(Option<String>, Option<u64>)> {
    let (mut name, mut size) = (None, None);
    for record in PaxExtensions::new(records) {
        let record = record.ok()?;
        match record.key_bytes() {
            b"path" => name = Some(String::from_utf8_lossy(record.value_bytes()).into_owned()),
            b"size" => size = Some(record.value().ok()?.parse().ok()?),
            _ => {}
        }
    }
    Some((name, size))
}

/// The sum of a header's bytes, its own field taken as blanks.
fn check_sum(header: &Header) -> Option<()> {
    const FIELD: Range<usize> = 148..156;
    let bytes = header.as_bytes();
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let all = sum(bytes) - sum(&bytes[FIELD]) + FIELD.len() as u32 * u32::from(b' ');
    (header.cksum().ok()? == all).then_some(())
}

fn is_packed(block: &[u8]) -> bool {
    [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0"]
        .iter()
        .any(|magic| block.starts_with(magic))
}
