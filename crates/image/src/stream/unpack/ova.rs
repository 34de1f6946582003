//! An OVF appliance in a tar: its description has to name the disk that is taken, and its manifest has
//! to have the disk's digest (DMTF DSP0243 2.1.1, whose sections are named here).
//!
//! The description is XML of a bounded size, and nothing in it is expanded: a document type, where
//! entities would be declared, is refused.

use std::io;

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::refuse;
use crate::ErrorKind;
use crate::sniff::printable;

/// How many bytes all descriptions and manifests of an archive may have.
pub(super) const TEXTS_MAX: u64 = 1 << 20;

/// How many disks are named in a message.
const NAMED_MAX: usize = 8;

/// What has passed of an appliance.
#[derive(Debug, Default)]
pub(super) struct Appliance {
    /// The name of the description without `.ovf`, and what it says.
    description: Option<(Vec<u8>, Description)>,
    /// The digests of the description and of the disk.
    description_digests: Option<Digests>,
    disk_digests: Option<Digests>,
    /// The names of the manifests without `.mf`, and the manifests.
    manifests: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many bytes of texts were taken.
    len: u64,
}

impl Appliance {
    /// True if the contents of `name` are to be given to [`Self::take`]. Fails if they are too long.
    pub(super) fn wants(&mut self, name: &[u8], len: u64) -> io::Result<bool> {
        if stem(name, b".ovf").or_else(|| stem(name, b".mf")).is_none() {
            return Ok(false);
        }
        self.len = self.len.saturating_add(len);
        if self.len > TEXTS_MAX {
            let what = format!("the appliance's texts have more than {TEXTS_MAX} bytes");
            return Err(refuse(ErrorKind::TooLarge, what));
        }
        Ok(true)
    }

    /// Takes a description or a manifest.
    pub(super) fn take(&mut self, name: &[u8], text: Vec<u8>) -> io::Result<()> {
        if let Some(stem) = stem(name, b".mf") {
            self.manifests.push((stem.to_vec(), text));
        } else if let Some(stem) = stem(name, b".ovf") {
            if self.description.is_some() {
                return Err(bad("there are two of them"));
            }
            self.description = Some((stem.to_vec(), Description::parse(&text)?));
            let mut digests = Digests::all();
            digests.update(&text);
            self.description_digests = Some(digests);
        }
        Ok(())
    }

    /// The disk begins. Of a tar that is no appliance nothing is expected.
    pub(super) fn begin_disk(&mut self, disk: &[u8]) -> io::Result<()> {
        let Some((stem, description)) = &self.description else { return Ok(()) };
        description.check(beside(stem, disk))?;
        let line = match self.manifest() {
            Some((name, text)) => Some(line_of(name, text, beside(stem, disk))?),
            None => None,
        };
        // A manifest that is yet to come may have any of them.
        self.disk_digests =
            Some(line.map_or_else(Digests::all, |line| Digests::only(line.algorithm)));
        Ok(())
    }

    /// The next bytes of the disk.
    pub(super) fn update(&mut self, data: &[u8]) {
        if let Some(digests) = &mut self.disk_digests {
            digests.update(data);
        }
    }

    /// The archive has ended.
    pub(super) fn end(self, disk: &[u8]) -> io::Result<()> {
        let Some((stem, description)) = &self.description else { return Ok(()) };
        description.check(beside(stem, disk))?;
        let Some((name, text)) = self.manifest() else { return Ok(()) };
        let own = [stem, &b".ovf"[..]].concat();
        for (file, digests) in
            [(&own[..], self.description_digests.clone()), (disk, self.disk_digests.clone())]
        {
            // A disk before its description: that is no appliance (§5.3).
            let digests = digests.ok_or_else(|| bad("it stands behind its disk"))?;
            let line = line_of(name, text, beside(stem, file))?;
            if !digests.hold(&line) {
                let what = format!(
                    "the {} digest of `{}` is not the one in the manifest",
                    line.algorithm.name(),
                    printable(file)
                );
                return Err(refuse(ErrorKind::Corrupt, what));
            }
        }
        Ok(())
    }

    /// The manifest has the description's name (§7.2.2).
    fn manifest(&self) -> Option<(&[u8], &[u8])> {
        let (own, _) = self.description.as_ref()?;
        let (stem, text) = self.manifests.iter().find(|(stem, _)| stem == own)?;
        Some((stem, text))
    }
}

/// `name` without `end`, whose case does not matter.
fn stem<'a>(name: &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let (stem, tail) = name.split_at_checked(name.len().checked_sub(end.len())?)?;
    tail.eq_ignore_ascii_case(end).then_some(stem)
}

/// The name of a file as the description has it: from the folder on where that is.
fn beside<'a>(stem: &[u8], name: &'a [u8]) -> &'a [u8] {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let folder = stem.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    name.strip_prefix(&stem[..folder]).unwrap_or(name)
}

fn bad(why: &str) -> io::Error {
    refuse(ErrorKind::Corrupt, format!("the appliance's description is wrong: {why}"))
}

/// What an OVF says of disks.
#[derive(Debug, Default)]
struct Description {
    files: Vec<File>,
    disks: Vec<Disk>,
}

/// A reference to a file (§7.1).
#[derive(Debug)]
struct File {
    id: String,
    href: String,
    chunked: bool,
}

/// A disk (§9.1).
#[derive(Debug)]
struct Disk {
    id: String,
    /// The identifier of its file.
    file: Option<String>,
    /// It holds only the differences to another.
    parent: bool,
}

impl Description {
    fn parse(text: &[u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(text).map_err(|_| bad("it is not UTF-8"))?;
        let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
        let mut description = Self::default();
        let mut within_references = false;
        loop {
            let event = reader.read_event().map_err(|_| bad("it is no XML"))?;
            match &event {
                Event::Eof => return Ok(description),
                Event::DocType(_) => return Err(bad("it declares a document type")),
                Event::End(end) if end.local_name().as_ref() == "References" => {
                    within_references = false;
                }
                Event::Start(start) | Event::Empty(start) => match start.local_name().as_ref() {
                    "References" => within_references = matches!(event, Event::Start(_)),
                    "File" if within_references => description.files.push(File::parse(start)?),
                    "Disk" => description.disks.push(Disk::parse(start)?),
                    _ => {}
                },
                _ => {}
            }
        }
    }

    /// Refuses an appliance whose only disk is not `disk`.
    fn check(&self, disk: &[u8]) -> io::Result<()> {
        let file = match &self.disks[..] {
            [] => self.files.iter().find(|file| file.is(disk)),
            [Disk { id, parent: true, .. }] => {
                let what = format!("the disk `{}` is a snapshot of another", shown(id));
                return Err(refuse(ErrorKind::Unsupported, what));
            }
            [only] => self.file_of(only),
            several => {
                let names = several
                    .iter()
                    .take(NAMED_MAX)
                    .map(|disk| shown(self.file_of(disk).map_or(&disk.id, |file| &file.href)));
                let names = names.collect::<Vec<_>>().join("`, `");
                let what = format!("expected one disk in the appliance, got `{names}`");
                return Err(refuse(ErrorKind::Unsupported, what));
            }
        };
        let disk_name = printable(disk);
        match file {
            None => {
                Err(bad(&format!("it names no file for a disk, the archive holds `{disk_name}`")))
            }
            Some(file) if file.chunked => {
                let what = format!("the disk `{}` is split into chunks", shown(&file.href));
                Err(refuse(ErrorKind::Unsupported, what))
            }
            Some(file) if !file.is(disk) => {
                let href = shown(&file.href);
                Err(bad(&format!("it names the disk `{href}`, the archive holds `{disk_name}`")))
            }
            Some(_) => Ok(()),
        }
    }

    /// The file of a disk. Without one the disk is empty.
    fn file_of(&self, disk: &Disk) -> Option<&File> {
        self.files.iter().find(|file| disk.file.as_ref() == Some(&file.id))
    }
}

fn shown(name: &str) -> String {
    printable(name.as_bytes())
}

impl File {
    fn is(&self, name: &[u8]) -> bool {
        self.href.strip_prefix("./").unwrap_or(&self.href).as_bytes() == name
    }

    fn parse(element: &BytesStart<'_>) -> io::Result<Self> {
        let [id, href, chunk, compression] =
            attributes(element, ["id", "href", "chunkSize", "compression"])?;
        if let Some(compression) = compression
            && !matches!(compression.as_str(), "" | "identity" | "gzip")
        {
            let what = format!(
                "the appliance's files are compressed with `{}`",
                printable(compression.as_bytes())
            );
            return Err(refuse(ErrorKind::Unsupported, what));
        }
        let href = href.ok_or_else(|| bad("a file has no name"))?;
        Ok(Self { id: id.unwrap_or_default(), href, chunked: chunk.is_some() })
    }
}

impl Disk {
    fn parse(element: &BytesStart<'_>) -> io::Result<Self> {
        let [id, file, parent] = attributes(element, ["diskId", "fileRef", "parentRef"])?;
        Ok(Self { id: id.unwrap_or_default(), file, parent: parent.is_some() })
    }
}

/// The values of the attributes with these names, whatever their name space.
fn attributes<const N: usize>(
    element: &BytesStart<'_>,
    names: [&str; N],
) -> io::Result<[Option<String>; N]> {
    let mut values = [const { None }; N];
    // The reader's own search for names that come twice takes the square of their number.
    for attribute in element.attributes().with_checks(false) {
        let attribute = attribute.map_err(|_| bad("an attribute is malformed"))?;
        let Some(index) =
            names.iter().position(|name| *name == attribute.key.local_name().as_ref())
        else {
            continue;
        };
        let value = attribute.normalized_value(XmlVersion::Implicit1_0);
        let value = value.map_err(|_| bad("an attribute is malformed"))?;
        if values[index].replace(value.into_owned()).is_some() {
            return Err(bad("an attribute comes twice"));
        }
    }
    Ok(values)
}

/// A line of a manifest (§7.2.2).
#[derive(Debug)]
struct Line<'a> {
    algorithm: Algorithm,
    hex: &'a str,
}

/// Finds the digest of `file` in the manifest `name`.
fn line_of<'a>(name: &[u8], text: &'a [u8], file: &[u8]) -> io::Result<Line<'a>> {
    let refuse = |kind, why: String| {
        Err(refuse(kind, format!("the manifest `{}.mf` {why}", printable(name))))
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return refuse(ErrorKind::Corrupt, "is not UTF-8".to_owned());
    };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let parts = line.split_once('(').and_then(|(algorithm, rest)| {
            let (name, rest) = rest.rsplit_once(')')?;
            Some((algorithm.trim(), name, rest.trim_start().strip_prefix('=')?.trim_start()))
        });
        let Some((algorithm, name, hex)) = parts else {
            return refuse(ErrorKind::Corrupt, "has a malformed line".to_owned());
        };
        if name.strip_prefix("./").unwrap_or(name).as_bytes() != file {
            continue;
        }
        let Some(algorithm) = Algorithm::named(algorithm) else {
            let why =
                format!("has a digest of an unknown kind, `{}`", printable(algorithm.as_bytes()));
            return refuse(ErrorKind::Unsupported, why);
        };
        return Ok(Line { algorithm, hex });
    }
    refuse(ErrorKind::Corrupt, format!("has no digest of `{}`", printable(file)))
}

/// What digests may be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

impl Algorithm {
    const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }

    /// The algorithm of a line. OpenSSL 3 has two names of its own.
    fn named(name: &str) -> Option<Self> {
        match name.to_ascii_uppercase().as_str() {
            "SHA1" => Some(Self::Sha1),
            "SHA256" | "SHA2-256" => Some(Self::Sha256),
            "SHA512" | "SHA2-512" => Some(Self::Sha512),
            _ => None,
        }
    }
}

/// The digests of a file that may be asked for.
#[derive(Debug, Clone, Default)]
struct Digests {
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

impl Digests {
    fn all() -> Self {
        Self { sha1: Some(Sha1::new()), sha256: Some(Sha256::new()), sha512: Some(Sha512::new()) }
    }

    fn only(algorithm: Algorithm) -> Self {
        let Self { sha1, sha256, sha512 } = Self::all();
        match algorithm {
            Algorithm::Sha1 => Self { sha1, ..Self::default() },
            Algorithm::Sha256 => Self { sha256, ..Self::default() },
            Algorithm::Sha512 => Self { sha512, ..Self::default() },
        }
    }

    fn update(&mut self, data: &[u8]) {
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(data);
        }
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(data);
        }
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(data);
        }
    }

    /// True if the line's digest is among them.
    fn hold(self, line: &Line<'_>) -> bool {
        let digest = match line.algorithm {
            Algorithm::Sha1 => self.sha1.map(|sha1| sha1.finalize().to_vec()),
            Algorithm::Sha256 => self.sha256.map(|sha256| sha256.finalize().to_vec()),
            Algorithm::Sha512 => self.sha512.map(|sha512| sha512.finalize().to_vec()),
        };
        let hex =
            |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        digest.map(hex).is_some_and(|hex| hex.eq_ignore_ascii_case(line.hex))
    }
}

#[cfg(test)]
mod tests {
    use bootyard_testkit::corpus_entries;

    use super::*;

    const OVF: &str = "<?xml version='1.0'?><Envelope xmlns:o='x'><References>\
                       <File o:id='f' o:href='a&amp;b.vmdk'/><File o:id='g' o:href='c.vmdk'/>\
                       </References><DiskSection><Disk o:diskId='d' o:fileRef='f'/></DiskSection></Envelope>";

    #[test]
    fn the_corpus_names_its_disks() {
        let mut checked = 0;
        for entry in corpus_entries().iter().filter(|entry| entry.format == "ovf") {
            let description = Description::parse(&fs_err::read(&entry.path).unwrap()).unwrap();
            let href = description.files[0].href.clone();
            description.check(href.as_bytes()).unwrap();
            assert!(href.starts_with("disk") || href == "test-ova.vmdk", "{href}");
            checked += 1;
        }
        assert!(checked >= 8 || corpus_entries().is_empty());
    }

    #[test]
    fn a_description_names_the_disk() {
        Description::parse(OVF.as_bytes()).unwrap().check(b"a&b.vmdk").unwrap();
        for (from, to, message) in [
            (
                "",
                "",
                "the appliance's description is wrong: it names the disk `a&b.vmdk`, the archive holds `c.vmdk`",
            ),
            (
                " o:fileRef='f'",
                "",
                "the appliance's description is wrong: it names no file for a disk, the archive holds `c.vmdk`",
            ),
            (
                "</DiskS",
                "<Disk o:diskId='e' o:fileRef='g'/></DiskS",
                "expected one disk in the appliance, got `a&b.vmdk`, `c.vmdk`",
            ),
            (
                "</DiskS",
                "<Disk o:diskId='e'/></DiskS",
                "expected one disk in the appliance, got `a&b.vmdk`, `e`",
            ),
            ("='f'/></D", "='f' o:parentRef='e'/></D", "the disk `d` is a snapshot of another"),
            ("a&amp;b.vmdk'", "c.vmdk' o:chunkSize='9'", "the disk `c.vmdk` is split into chunks"),
            ("c.vmdk'", "c.vmdk' compression='x'", "the appliance's files are compressed with `x`"),
            (
                "<Envelope",
                "<!DOCTYPE Envelope [<!ENTITY a 'b'>]><Envelope",
                "the appliance's description is wrong: it declares a document type",
            ),
            ("&amp;", "&a;", "the appliance's description is wrong: an attribute is malformed"),
            (
                "o:id='f'",
                "o:id='f' id='f'",
                "the appliance's description is wrong: an attribute comes twice",
            ),
            ("</References>", "", "the appliance's description is wrong: it is no XML"),
        ] {
            let text = OVF.replacen(from, to, 1);
            let result = Description::parse(text.as_bytes()).and_then(|ovf| ovf.check(b"c.vmdk"));
            assert_eq!(result.unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn a_manifest_has_lines_of_several_forms() {
        let text = b"SHA1(a.ovf)= 00\r\n\nSHA2-256 (x (1).vmdk) = AB\nMD5(b)= 00\n";
        let line = line_of(b"a", text, b"x (1).vmdk").unwrap();
        assert_eq!((line.algorithm, line.hex), (Algorithm::Sha256, "AB"));
        for (text, message) in [
            (&text[..], "the manifest `a.mf` has a digest of an unknown kind, `MD5`"),
            (b"SHA1(a)= 0\n", "the manifest `a.mf` has no digest of `b`"),
            (b"SHA1 b\n", "the manifest `a.mf` has a malformed line"),
        ] {
            assert_eq!(line_of(b"a", text, b"b").unwrap_err().to_string(), message);
        }
    }
}
