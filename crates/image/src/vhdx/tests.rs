//! Tests of reading: `qemu-img` as the judge, the corpus, logs built by hand, hostile files.

use bootyard_testkit::{corpus_entries, qemu_img, require_tool};

use crate::oracle::{Oracle, unwrapped};
use crate::support::decode;
use crate::{Error, ErrorKind, Format, conformance, hostile, inspect, open};

const MIB: u64 = 1 << 20;
const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const GUID: [u8; 16] = [0x11; 16];

#[test]
fn reads_what_qemu_img_makes() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Vhdx, "vhdx", true);
    for len in [512, MIB, 12 * MIB + 512 * 77] {
        for options in ["subformat=dynamic,block_size=1M", "subformat=fixed,log_size=2M"] {
            let info = oracle.check(&oracle.convert(len, &["-o", options]));
            let variant = if options.contains("fixed") { "fixed" } else { "dynamic" };
            assert_eq!((info.variant.as_deref(), info.sector_size), (Some(variant), Some(512)));
            assert_eq!(info.notes, Vec::<String>::new());
        }
    }
    let writes = ["write -P 7 9M 1k", "write -P 8 5M 2500k", "write -P 9 0 1", "write -P 3 19M 1M"];
    let info = oracle.check(&oracle.create("20M", &["-o", "block_size=2M"], &writes));
    assert_eq!((info.allocated, info.cluster_size), (Some(10 * MIB), Some(2 * MIB)));
}

#[test]
fn reads_the_corpus() {
    let oracle = Oracle::new(Format::Vhdx, "vhdx", true);
    let count = oracle.check_corpus("vhdx");
    assert!(count == 0 || count >= 6, "{count} images");
    let entries = corpus_entries();
    let logged = entries.iter().find(|entry| entry.path.ends_with("vhdx-log-replay.vhdx.gz"));
    if let Some(file) = logged.and_then(|entry| unwrapped(&entry.path)) {
        let info = inspect(&file).unwrap();
        assert_eq!(info.notes, ["the disk was not closed; its log is replayed in memory"]);
    }
}

#[test]
fn hostile_files_are_refused_or_read() {
    hostile::check("vhdx/*", &[]);
}

/// An image of a disk of 4 MiB, all zeros, whose log is to be replayed.
struct Logged {
    file: Vec<u8>,
    /// Where the log is, and its sectors.
    log: usize,
    sectors: usize,
}

/// What an entry of the log writes.
enum Write {
    Data(u64, u8),
    Zero(u64, u64),
}

/// Puts the CRC-32C of `bytes` in its place.
fn sum(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let crc = crc32c::crc32c(bytes);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

impl Logged {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let path = path.to_str().unwrap();
        let options = "subformat=fixed,block_size=1M,block_state_zero=off";
        qemu_img(["create", "-q", "-f", "vhdx", "-o", options, path, "4M"]);
        let mut file = fs_err::read(path).unwrap();
        for at in HEADERS {
            file[at + 48..at + 64].copy_from_slice(&GUID);
            sum(&mut file[at..at + 4096]);
        }
        let number = |at: usize, len: usize| {
            file[at..at + len].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte))
        };
        let (log, len) = (number(HEADERS[0] + 72, 8), number(HEADERS[0] + 68, 4));
        assert_eq!((log, len), (1 << 20, 1 << 20));
        Self { file, log, sectors: len / 4096 }
    }

    /// Where the first bytes of the disk are.
    fn data(&self) -> u64 {
        self.file.len() as u64 - 4 * MIB
    }

    /// Puts an entry at a sector of the log, round its end if it must. Returns the next sector.
    fn entry(&mut self, at: usize, tail: usize, sequence: u64, writes: &[Write]) -> usize {
        let file_len = (self.file.len() as u64).to_le_bytes();
        let head = (64 + 32 * writes.len()).next_multiple_of(4096);
        let mut entry = vec![0; head];
        for (index, write) in writes.iter().enumerate() {
            let (signature, leading, offset) = match write {
                Write::Data(offset, fill) => (b"desc", [*fill; 8], offset),
                Write::Zero(offset, len) => (b"zero", len.to_le_bytes(), offset),
            };
            let bytes = &mut entry[64 + 32 * index..][..32];
            bytes[..4].copy_from_slice(signature);
            bytes[8..16].copy_from_slice(&leading);
            bytes[16..24].copy_from_slice(&offset.to_le_bytes());
            bytes[24..].copy_from_slice(&sequence.to_le_bytes());
            if let Write::Data(_, fill) = write {
                bytes[4..8].fill(*fill);
                let mut sector = [*fill; 4096];
                sector[..4].copy_from_slice(b"data");
                sector[4..8].copy_from_slice(&((sequence >> 32) as u32).to_le_bytes());
                sector[4092..].copy_from_slice(&(sequence as u32).to_le_bytes());
                entry.extend(sector);
            }
        }
        let len = entry.len();
        entry[..4].copy_from_slice(b"loge");
        entry[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&((tail * 4096) as u32).to_le_bytes());
        entry[16..24].copy_from_slice(&sequence.to_le_bytes());
        entry[24..28].copy_from_slice(&(writes.len() as u32).to_le_bytes());
        entry[32..48].copy_from_slice(&GUID);
        entry[48..56].copy_from_slice(&file_len);
        entry[56..64].copy_from_slice(&file_len);
        sum(&mut entry);
        for (index, sector) in entry.chunks(4096).enumerate() {
            let at = self.log + (at + index) % self.sectors * 4096;
            self.file[at..at + 4096].copy_from_slice(sector);
        }
        at + len / 4096
    }

    /// Reads the disk both ways.
    fn read(&self) -> Vec<u8> {
        let disk = open(self.file.clone()).unwrap();
        conformance::check(&*disk, 4 * MIB);
        let whole = conformance::read_all(&*disk);
        let (streamed, summary) = decode(&self.file, &[100_000]).unwrap();
        assert_eq!(summary.format, Format::Vhdx);
        assert!(streamed == whole);
        whole
    }

    fn refused(&self) -> Error {
        let error = open(self.file.clone()).map(drop).unwrap_err();
        assert_eq!(decode(&self.file, &[100_000]).unwrap_err().to_string(), error.to_string());
        assert_eq!(inspect(&self.file).unwrap().refused, Some(error.to_string()));
        error
    }
}

/// A disk that holds these pages.
fn pages(pages: &[(usize, u8)]) -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    pages.iter().for_each(|(page, fill)| disk[page * 4096..][..4096].fill(*fill));
    disk
}

#[test]
fn the_log_is_replayed_from_its_tail_to_its_head() {
    if !require_tool("qemu-img") {
        return;
    }
    let mut image = Logged::new();
    let data = image.data();
    let at = |page: u64| data + page * 4096;
    // Of an older sequence, which is whole but has lower numbers.
    image.entry(100, 100, 3, &[Write::Data(at(9), 9)]);
    // The active one goes round the end; its first entry is done with already.
    let start = image.sectors - 4;
    let second = image.entry(start, start, 7, &[Write::Data(at(1), 0xee)]);
    let all: Vec<Write> = (0..130).map(|page| Write::Data(at(300 + page), 5)).collect();
    let third = image.entry(second, start, 8, &[Write::Data(at(2), 2), Write::Data(at(3), 3)]);
    let tail = second % image.sectors;
    let fourth = image.entry(third, tail, 9, &[Write::Zero(at(2), 4096), Write::Data(at(4), 4)]);
    image.entry(fourth, tail, 10, &all[..1]);
    assert!(image.read() == pages(&[(3, 3), (4, 4), (300, 5)]));
    // One with a second sector of descriptors.
    image.entry(fourth, tail, 10, &all);
    let many: Vec<(usize, u8)> = (300..430).map(|page| (page, 5)).collect();
    assert!(image.read() == pages(&[&[(3, 3), (4, 4)], &many[..]].concat()));
    // A damaged last entry was never finished.
    image.file[image.log + (fourth % image.sectors) * 4096 + 5000] ^= 1;
    assert!(image.read() == pages(&[(3, 3), (4, 4)]));
}

#[test]
fn a_log_that_cannot_be_is_refused() {
    if !require_tool("qemu-img") {
        return;
    }
    let image = Logged::new();
    let log = image.log as u64;
    let error = image.refused();
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(log)));
    for (write, kind) in [
        (Write::Data(1 << 40, 1), ErrorKind::Corrupt),
        (Write::Zero(0, 1 << 40), ErrorKind::Corrupt),
        (Write::Zero(0, 100), ErrorKind::Corrupt),
        (Write::Zero(u64::MAX - 4095, 4096), ErrorKind::Corrupt),
    ] {
        let mut image = Logged::new();
        image.entry(0, 0, 1, &[write]);
        let error = image.refused();
        assert_eq!((error.kind(), error.offset()), (kind, Some(log)), "{error}");
    }
    // The file was cut off after the entry was written.
    let mut image = Logged::new();
    image.entry(0, 0, 1, &[Write::Zero(4096, 4096)]);
    image.file.truncate(image.file.len() - 512);
    assert_eq!(image.refused().kind(), ErrorKind::Truncated);
}

#[test]
fn a_log_cannot_keep_anyone_busy() {
    if !require_tool("qemu-img") {
        return;
    }
    let mut image = Logged::new();
    // What is zeroed again and again takes no memory, but time.
    let zeros: Vec<Write> = (0..8000).map(|_| Write::Zero(0, 4 * MIB)).collect();
    image.entry(0, 0, 1, &zeros);
    assert_eq!(image.refused().kind(), ErrorKind::TooLarge);
}
