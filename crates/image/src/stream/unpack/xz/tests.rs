//! Files of `xz` and what can be wrong with them; liblzma and `xz -t` are the judges.
#![expect(clippy::disallowed_methods, reason = "`xz` is the oracle of these tests")]

use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bootyard_testkit::{pseudo_random, require_tool};
use flate2::Crc;

use super::*;
use crate::stream::unpack::codec::Unpack;
use crate::stream::unpack::own;
use crate::stream::unpack::peek::{Gauge, Peek};
use crate::stream::unpack::tests::filter;

fn peek(file: &[u8]) -> (Peek, Arc<Gauge>) {
    let gauge = Arc::new(Gauge::new(u64::MAX));
    (Peek::outermost(Box::new(io::Cursor::new(file.to_vec())), gauge.clone()), gauge)
}

fn read_all(mut reader: impl Read, gauge: &Gauge) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    reader.read_to_end(&mut all).map_err(|error| own(error, gauge.position()))?;
    Ok(all)
}

/// By our reader of the container.
fn blocks(file: &[u8], threads: usize) -> Result<Vec<u8>, Error> {
    let (peek, gauge) = peek(file);
    read_all(Blocks::new(peek, NonZeroUsize::new(threads).unwrap()), &gauge)
}

/// By liblzma alone.
fn whole(file: &[u8]) -> Result<Vec<u8>, Error> {
    let (peek, gauge) = peek(file);
    read_all(Unpack::new(Xz::default(), peek), &gauge)
}

/// True if `xz` finds the file good.
fn xz_finds_good(file: &[u8]) -> bool {
    let mut xz = Command::new("xz")
        .args(["-tqq", "-T1"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It may stop reading at the fault.
    drop(xz.stdin.take().unwrap().write_all(file));
    xz.wait().unwrap().success()
}

/// Both ways come to the same.
fn check_same(file: &[u8], what: &str) -> bool {
    match (blocks(file, 3), whole(file)) {
        (Ok(ours), Ok(theirs)) => {
            assert!(ours == theirs, "{what}");
            true
        }
        (Err(error), Err(_)) => {
            let text = error.to_string();
            assert!(text.contains("xz stream") && error.offset().is_some(), "{what}: {error:?}");
            false
        }
        (ours, theirs) => {
            panic!("{what}: {:?}, liblzma: {:?}", ours.map(drop), theirs.map(drop))
        }
    }
}

/// Some kilobytes of text and of noise.
fn plain() -> Vec<u8> {
    let mut plain = b"the same again and again, ".repeat(100);
    plain.extend(pseudo_random(150, 3));
    plain.extend([0; 1500]);
    plain
}

#[test]
fn reads_what_xz_writes_in_any_number_of_threads() {
    if !require_tool("xz") {
        return;
    }
    let plain = [pseudo_random(500_000, 7), vec![0; 700_000], b"text ".repeat(200_000)].concat();
    for options in [
        "-0",
        "-1 -T1 --block-size=99999",
        "-1 -T3 --block-size=99999",
        "-6 -T2 --block-size=300000",
        "-9 -T1 --block-size=500000",
        "-1 -T2 --block-size=400000 --check=none",
        "-1 -T2 --block-size=400000 --check=crc32",
        "-1 -T2 --block-size=400001 --check=sha256",
        "--block-list=100000,1,300000,0 -T2 -1",
        "-T2 --block-size=300000 --delta=dist=3 --lzma2=preset=1",
        "-T2 --block-size=300000 --x86 --arm --delta --lzma2=dict=4KiB,lc=0,lp=2",
    ] {
        let file = filter(&format!("xz {options}"), &plain);
        for threads in [1, 2, 5] {
            assert!(blocks(&file, threads).unwrap() == plain, "{options}, {threads} threads");
        }
    }
    let empty = filter("xz", b"");
    assert_eq!(blocks(&empty, 2).unwrap(), b"");
    let both = [&empty[..], &[0; 4], &filter("xz -0 -T2", &plain), &empty, &[0; 400]].concat();
    assert!(blocks(&both, 2).unwrap() == plain);
}

#[test]
fn liblzma_finds_the_same_faults() {
    if !require_tool("xz") {
        return;
    }
    for options in ["-T2 --block-size=1500", "-T1 --block-size=2000 --check=sha256", "-T1"] {
        let file = filter(&format!("xz -1 {options}"), &plain());
        assert!(check_same(&file, options));
        let mut found = 0;
        for at in 0..file.len() {
            let mut bad = file.clone();
            for bit in [0x01, 0x80] {
                bad[at] ^= bit;
                // A few bits of compressed data mean nothing, to liblzma neither.
                found += usize::from(!check_same(&bad, &format!("{options}: bits of byte {at}")));
            }
            assert!(at == 0 || !check_same(&file[..at], &format!("{options}: cut at {at}")));
            let without = [&file[..at], &file[at + 1..]].concat();
            assert!(!check_same(&without, &format!("{options}: without byte {at}")));
        }
        assert!(found > file.len() * 2 - 20, "{options}: {found} faults");
        for (at, len) in [(0, 4), (12, 4), (file.len(), 3), (file.len() - 12, 4)] {
            let more = [&file[..at], &vec![0; len], &file[at..]].concat();
            assert!(!check_same(&more, &format!("{options}: {len} zeros at {at}")));
            assert!(!xz_finds_good(&more));
        }
    }
}

#[test]
fn xz_finds_the_same_faults() {
    if !require_tool("xz") {
        return;
    }
    let file = filter("xz -1 -T2 --block-size=1500", &plain());
    assert!(xz_finds_good(&file));
    for at in (0..file.len()).step_by(17).chain(file.len() - 60..file.len()) {
        let mut bad = file.clone();
        bad[at] ^= 0x10;
        assert_eq!(blocks(&bad, 2).is_ok(), xz_finds_good(&bad), "byte {at}");
        assert_eq!(blocks(&file[..at], 2).is_ok(), xz_finds_good(&file[..at]), "cut at {at}");
    }
}

/// Sums up `file[from..to]` where its sum belongs, at `at`.
fn sum(file: &mut [u8], (from, to): (usize, usize), at: usize) {
    let mut crc = Crc::new();
    crc.update(&file[from..to]);
    file[at..at + 4].copy_from_slice(&crc.sum().to_le_bytes());
}

#[test]
fn right_checksums_do_not_help_lies() {
    if !require_tool("xz") {
        return;
    }
    let file = filter("xz -1 -T2 --block-size=1500", &plain());
    let len = file.len();
    let backward = u32::from_le_bytes(file[len - 8..len - 4].try_into().unwrap());
    let index = len - 12 - (backward as usize + 1) * 4;
    let header = usize::from(file[12]) * 4 + 4;
    assert!(check_same(&file, "as it is"));
    for (what, at, value) in [
        ("fewer blocks in the index", index + 1, file[index + 1] - 1),
        ("more blocks in the index", index + 1, file[index + 1] + 1),
        ("another packed size in the index", index + 2, file[index + 2] ^ 1),
        ("another plain size in the index", index + 4, file[index + 4] ^ 1),
        ("another backward size", len - 8, file[len - 8] ^ 1),
        ("another check in the footer", len - 3, 1),
        ("another packed size in a block", 14, file[14] ^ 1),
        ("another plain size in a block", 16, file[16] ^ 1),
        ("a smaller plain size in a block", 17, file[17] - 1),
        ("a reserved flag in a block", 13, file[13] | 4),
        ("another filter in a block", 18, 0x22),
        ("another check in the header", 7, 1),
        ("a reserved flag in the header", 6, 1),
    ] {
        let mut bad = file.clone();
        bad[at] = value;
        sum(&mut bad, (6, 8), 8);
        sum(&mut bad, (12, 12 + header - 4), 12 + header - 4);
        sum(&mut bad, (index, len - 16), len - 16);
        sum(&mut bad, (len - 8, len - 2), len - 12);
        assert!(!check_same(&bad, what), "{what}");
        assert!(!xz_finds_good(&bad), "{what}");
    }
}

#[test]
fn memory_does_not_grow_with_the_blocks() {
    if !require_tool("xz") {
        return;
    }
    let file = filter("xz -0 -T2 --block-size=16MiB", &vec![0; 96 << 20]);
    let (peek, _) = peek(&file);
    let mut reader = Blocks::new(peek, NonZeroUsize::new(2).unwrap());
    let mut part = vec![0; 300_000];
    let mut total = 0;
    loop {
        match reader.read(&mut part).unwrap() {
            0 => break,
            len => total += len,
        }
    }
    assert_eq!(total, 96 << 20);
    // 12 MiB ahead, 1 MiB of the next block, 5 MiB of compressed bytes, and what is in hands.
    assert!(reader.buffers() <= (12 + 1 + 5 + 1) * 8, "{} buffers", reader.buffers());
}

#[test]
fn a_reader_that_is_dropped_ends_its_threads() {
    if !require_tool("xz") {
        return;
    }
    let file = filter("xz -0 -T2 --block-size=4MiB", &vec![0; 64 << 20]);
    for len in [0, 1, 5 << 20] {
        let (peek, _) = peek(&file);
        let mut reader = Blocks::new(peek, NonZeroUsize::new(3).unwrap());
        let mut part = vec![0; len];
        reader.read_exact(&mut part).unwrap();
        drop(reader);
    }
}

#[test]
fn an_error_comes_once_and_stays() {
    if !require_tool("xz") {
        return;
    }
    let file = filter("xz -0", &plain());
    for bad in [&file[..file.len() - 1], &[&file[..], b"rubbish"].concat()] {
        let (peek, _) = peek(bad);
        let mut reader = Blocks::new(peek, NonZeroUsize::new(2).unwrap());
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap_err();
        assert!(all == plain(), "all before the fault is read");
        assert!(reader.read(&mut [0]).is_err());
    }
}
