//! Tests of reading: `qemu-img` as the judge, the corpus, damaged and hostile files.

use bootyard_testkit::{pseudo_random, qemu_img, require_tool};

use super::footer::FOOTER_LEN;
use crate::oracle::Oracle;
use crate::support::decode;
use crate::{Error, ErrorKind, Format, Info, conformance, hostile, inspect, open};

const MIB: u64 = 1 << 20;

#[test]
fn reads_what_qemu_img_makes() {
    if !require_tool("qemu-io") {
        return;
    }
    let oracle = Oracle::new(Format::Vhd, "vpc", true);
    for len in [512, MIB, 12 * MIB + 512 * 77] {
        for options in ["subformat=dynamic", "subformat=dynamic,force_size=on", "subformat=fixed"] {
            let info = oracle.check(&oracle.convert(len, &["-o", options]));
            let variant = if options.contains("fixed") { "fixed" } else { "dynamic" };
            assert_eq!(info.variant.as_deref(), Some(variant));
            assert_eq!(info.notes, Vec::<String>::new());
        }
    }
    let writes = ["write -P 7 9M 1k", "write -P 8 5M 2500k", "write -P 9 0 1", "write -z 5M 1M"];
    let image = oracle.create("20M", &["-o", "force_size=on"], &writes);
    let info = oracle.check(&image);
    assert_eq!((info.allocated, info.cluster_size), (Some(8 * MIB), Some(2 * MIB)));
}

#[test]
fn reads_the_corpus() {
    let oracle = Oracle::new(Format::Vhd, "vpc", true);
    let count = oracle.check_corpus("vpc");
    assert!(count == 0 || count >= 8, "{count} images");
}

#[test]
fn hostile_files_are_refused_or_read() {
    hostile::check("vhd/*", &[]);
}

/// A footer with its checksum.
fn footer(size: u64, disk_type: u32, data_offset: u64) -> Vec<u8> {
    let mut footer = vec![0; FOOTER_LEN];
    footer[..16].copy_from_slice(b"conectix\0\0\0\x02\0\x01\0\0");
    footer[16..24].copy_from_slice(&data_offset.to_be_bytes());
    footer[28..32].copy_from_slice(b"win ");
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[60..64].copy_from_slice(&disk_type.to_be_bytes());
    sum(&mut footer, 64);
    footer
}

fn sum(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum = !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[field..field + 4].copy_from_slice(&sum.to_be_bytes());
}

/// A disk of 1.5 blocks of 4 KiB, in which the second block comes first.
fn dynamic(disk_type: u32) -> Vec<u8> {
    let mut header = vec![0; 1024];
    header[..8].copy_from_slice(b"cxsparse");
    header[16..24].copy_from_slice(&1536_u64.to_be_bytes());
    header[24..28].copy_from_slice(&0x1_0000_u32.to_be_bytes());
    header[28..32].copy_from_slice(&2_u32.to_be_bytes());
    header[32..36].copy_from_slice(&4096_u32.to_be_bytes());
    for (unit, c) in header[64..].chunks_exact_mut(2).zip("C:\\old\u{202e}.vhd".encode_utf16()) {
        unit.copy_from_slice(&c.to_be_bytes());
    }
    sum(&mut header, 36);
    let footer = footer(6144, disk_type, 512);
    let mut table = vec![0xff; 512];
    table[..8].copy_from_slice(&[0, 0, 0, 13, 0, 0, 0, 4]);
    let block = |fill| [vec![0; 512], vec![fill; 4096]].concat();
    [&footer, &header, &table, &block(0xb1), &block(0xb0), &footer].map(|part| &part[..]).concat()
}

/// Both ways of reading must refuse the file for the same reason. Returns it.
fn refused(file: &[u8]) -> Error {
    let error = open(file.to_vec()).map(drop).unwrap_err();
    assert_eq!(decode(file, &[1000]).unwrap_err().to_string(), error.to_string());
    error
}

/// Reads the file both ways.
fn read(file: &[u8]) -> (Vec<u8>, Info) {
    let disk = open(file.to_vec()).unwrap();
    conformance::check(&*disk, disk.virtual_size());
    let whole = conformance::read_all(&*disk);
    let (streamed, summary) = decode(file, &[100, 7000]).unwrap();
    assert!(streamed == whole);
    let info = inspect(&file.to_vec()).unwrap();
    assert_eq!((info.format, summary.format), (Format::Vhd, Format::Vhd));
    assert_eq!((info.virtual_size, info.refused.as_deref()), (Some(whole.len() as u64), None));
    (whole, info)
}

#[test]
fn a_dynamic_disk_needs_only_the_copy_of_its_footer() {
    let file = dynamic(3);
    let (disk, info) = read(&file);
    assert_eq!(info.notes, Vec::<String>::new());
    assert!(disk == [[0xb0; 4096].as_slice(), &[0xb1; 2048]].concat());
    for end in [vec![], vec![0; FOOTER_LEN]] {
        let cut = [&file[..file.len() - FOOTER_LEN], &end].concat();
        let (same, info) = read(&cut);
        assert!(same == disk);
        assert!(info.notes[0].starts_with("the footer at the end is missing"), "{info:?}");
    }
    let mut wrong = file;
    wrong[100] ^= 1;
    let error = refused(&wrong);
    assert_eq!((error.kind(), error.offset()), (ErrorKind::Corrupt, Some(64)));
}

#[test]
fn a_differencing_disk_is_refused_with_the_name_of_its_parent() {
    let file = dynamic(4);
    let what = "the disk is a differencing VHD over `C:\\old\\u{202e}.vhd` (at offset 0x240)";
    let error = refused(&file);
    assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::NeedsOtherFile, what));
    let info = inspect(&file).unwrap();
    assert_eq!(info.refused.as_deref(), Some(what));
    assert_eq!(info.variant.as_deref(), Some("differencing"));
    assert_eq!(info.backing_file.as_deref(), Some("C:\\old\\u{202e}.vhd"));
    assert_eq!((info.virtual_size, info.cluster_size), (Some(6144), Some(4096)));
}

#[test]
fn a_fixed_disk_is_told_by_its_end() {
    let data = pseudo_random(70_144, 1);
    let whole = [data.clone(), footer(70_144, 2, u64::MAX)].concat();
    for file in [&whole[..], &whole[..whole.len() - 1]] {
        let (disk, info) = read(file);
        assert!(disk == data);
        assert_eq!(info.variant.as_deref(), Some("fixed"));
    }
    // Not at the end, it is data.
    for file in [[&whole[..], &[0; 512]].concat(), whole[..whole.len() - 2].to_vec()] {
        let (disk, summary) = decode(&file, &[300]).unwrap();
        assert_eq!(summary.format, Format::Raw);
        assert_eq!(inspect(&file).unwrap().format, Format::Raw);
        assert!(disk.starts_with(&file));
    }
}

#[test]
fn an_end_that_contradicts_the_file_is_refused() {
    let data = pseudo_random(4096, 2);
    for (footer, what) in [
        (footer(8192, 2, u64::MAX), "the footer is that of a fixed VHD of 8192 bytes, got 4096"),
        (footer(4096, 3, 512), "the file ends as a dynamic VHD, but does not begin as one"),
        (footer(4096, 7, 512), "expected a VHD disk type of 2 to 4, got 7 (at offset 0x103c)"),
    ] {
        let error = refused(&[data.clone(), footer].concat());
        assert!(error.to_string().starts_with(what), "{error}");
    }
    let error = refused(&[footer(0, 2, u64::MAX), footer(512, 2, u64::MAX)].concat());
    assert!(error.to_string().starts_with("the file begins with the footer of a fixed"), "{error}");
}

#[test]
fn the_creator_decides_what_the_size_is() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let creators: [&[u8; 4]; 8] =
        [b"vpc ", b"qemu", b"qem2", b"win ", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0"];
    // The second geometry is the largest.
    for geometry in [[0, 3, 2, 2], [0xff, 0xff, 16, 255]] {
        for creator in creators {
            let mut file = dynamic(3);
            for at in [0, file.len() - FOOTER_LEN] {
                made_by(&mut file[at..at + FOOTER_LEN], creator, geometry);
            }
            fs_err::write(&path, &file).unwrap();
            let json = qemu_img(["info", "-f", "vpc", "--output=json", path.to_str().unwrap()]);
            let size = inspect(&file).unwrap().virtual_size.unwrap();
            let line = format!("\"virtual-size\": {size},");
            assert!(json.contains(&line), "{creator:?} {geometry:?}: {line}\n{json}");
        }
    }
}

fn made_by(footer: &mut [u8], creator: &[u8; 4], geometry: [u8; 4]) {
    footer[28..32].copy_from_slice(creator);
    footer[56..60].copy_from_slice(&geometry);
    sum(footer, 64);
}

#[test]
fn nothing_is_cut_off_what_others_wrote() {
    // Their geometry is the size rounded down, and their guests see all of it; in QEMU they do not.
    for creator in [b"vbox", b"dutl", b"\0\0\0\0"] {
        let mut file = dynamic(3);
        made_by(&mut file[..FOOTER_LEN], creator, [0, 3, 2, 1]);
        let (disk, _) = read(&file);
        assert_eq!(disk.len(), 6144);
    }
}
