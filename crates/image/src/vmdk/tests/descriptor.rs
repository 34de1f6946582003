//! Descriptors, and disks in several files.

use std::sync::Arc;

use super::built::{Built, Tables, disk};
use super::with_folder;
use crate::support::decode;
use crate::{Error, ErrorKind, OpenOptions, conformance, inspect, open, open_with};

fn text(lines: impl AsRef<[u8]>) -> Vec<u8> {
    const BEGIN: &[u8] = b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
        createType=\"custom\"\n\n# Extent description\n";
    const END: &[u8] = b"\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"ide\"\n";
    [BEGIN, lines.as_ref(), END].concat()
}

fn refused(file: &[u8], options: OpenOptions) -> Error {
    open_with(file.to_vec(), options).map(drop).unwrap_err()
}

#[test]
fn a_disk_is_put_together_from_its_extents() {
    let dir = tempfile::tempdir().unwrap();
    let whole = disk(128 * 8, &[0, 1, 2, 4, 5, 6, 7]);
    let parts = |from: usize, to: usize| &whole[from * 65536..to * 65536];
    let flat = [&[7; 512][..], parts(0, 2), &[7; 512]].concat();
    let write = |name: &str, data: &[u8]| fs_err::write(dir.path().join(name), data).unwrap();
    write("a file-f001.vmdk", &flat);
    let mut split = Built::sparse(parts(2, 3), &[0]);
    split.u64(28, 0);
    write("s002.vmdk", &split.file);
    write("\u{e4}-c003.vmdk", &Built::stream(parts(4, 6), &[1, 0], Tables::End).file);
    write("thick-flat.vmdk", parts(6, 8));
    let lines = |letter: &[u8]| {
        let before = b"RW 256 FLAT \"a file-f001.vmdk\" 1\r\nrdonly 128 sparse \"s002.vmdk\"\r\n  \
            NOACCESS 128 ZERO\n\tRW\t256\tSPARSE\t\"";
        let behind = b"-c003.vmdk\"\nRW 0 FLAT \"none\" 0\nRW 256 VMFS \"thick-flat.vmdk\"";
        [before, letter, behind].concat()
    };
    let western = [&b"Encoding = \"windows-1252\"\n"[..], &lines(b"\xe4")].concat();
    for file in [text(lines("\u{e4}".as_bytes())), text(western)] {
        let image = open_with(file.clone(), with_folder(dir.path())).unwrap();
        conformance::check(&*image, whole.len() as u64);
        assert!(conformance::read_all(&*image) == whole);
        let zeros: Vec<(u64, u64)> = image
            .pieces()
            .map(Result::unwrap)
            .filter_map(|(at, extent)| extent.zero.then_some((at, extent.len)))
            .collect();
        assert_eq!(zeros, [(3 << 16, 1 << 16)]);

        let info = inspect(&file).unwrap();
        assert_eq!(info.virtual_size, Some(whole.len() as u64));
        assert_eq!(
            info.extents,
            ["a file-f001.vmdk", "s002.vmdk", "\u{e4}-c003.vmdk", "none", "thick-flat.vmdk"]
        );
        let refusal = "the VMDK (`custom`) is only a description; the disk is in \
                       `a file-f001.vmdk`, `s002.vmdk`, `\u{e4}-c003.vmdk`, and 2 more";
        assert!(info.refused.unwrap().starts_with(refusal));
        for error in [refused(&file, OpenOptions::default()), decode(&file, &[99]).unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::NeedsOtherFile);
            assert!(error.to_string().starts_with(refusal), "{error}");
        }
    }
}

#[test]
fn extents_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, data: &[u8]| fs_err::write(dir.path().join(name), data).unwrap();
    write("flat", &[1; 4096]);
    let sparse = Built::sparse(&disk(256, &[0]), &[0]);
    write("sparse", &sparse.file);
    let mut delta = sparse.clone();
    let text_at = delta.file.windows(8).position(|part| part == b"ffffffff").unwrap();
    delta.put(text_at, b"00000001");
    write("delta", &delta.file);
    write("text", &text("RW 1 ZERO"));
    write("cowd", b"COWD");
    for (lines, kind, what) in [
        ("RW 9 FLAT \"flat\" 0", ErrorKind::Truncated, "in `flat`: the file ends before"),
        ("RW 8 FLAT \"flat\" 1", ErrorKind::Truncated, "8 sectors from sector 1"),
        ("RW 8 FLAT \"none\" 0", ErrorKind::NeedsOtherFile, "the extent `none` is missing"),
        ("RW 257 SPARSE \"sparse\"", ErrorKind::Corrupt, "wants 257 sectors of an extent of 256"),
        ("RW 256 SPARSE \"sparse\" 1", ErrorKind::Corrupt, "wants 257 sectors"),
        ("RW 8 SPARSE \"flat\"", ErrorKind::Corrupt, "in `flat`: expected a VMDK header"),
        ("RW 8 SPARSE \"text\"", ErrorKind::Corrupt, "got another description"),
        ("RW 8 SPARSE \"cowd\"", ErrorKind::Unsupported, "in `cowd`: VMDK extents in the COWD"),
        ("RW 256 SPARSE \"delta\"", ErrorKind::NeedsOtherFile, "in `delta`: the disk is a delta"),
    ] {
        let error = refused(&text(lines), with_folder(dir.path()));
        assert_eq!(error.kind(), kind, "{lines}: {error}");
        assert!(error.to_string().contains(what), "{lines}: {error}");
        assert!(error.offset().is_some(), "{lines}: {error}");
    }
    // Damage inside of an extent is told with its name.
    let mut broken = sparse.clone();
    broken.u32(broken.tables[0], 2);
    write("broken", &broken.file);
    let image = open_with(text("RW 256 SPARSE \"broken\""), with_folder(dir.path())).unwrap();
    let error = image.read_at(&mut [0; 512], 0).unwrap_err();
    assert!(error.to_string().starts_with("in `broken`: the grain at"), "{error}");
}

#[test]
fn a_description_of_zeros_needs_no_files() {
    let image = open(text("RW 8 ZERO\nRW 8 ZERO")).unwrap();
    conformance::check(&*image, 8192);
    assert_eq!(inspect(&text("RW 8 ZERO")).unwrap().refused, None);
}

#[test]
fn descriptors_that_ask_for_too_much_are_refused_with_or_without_a_directory() {
    struct Nothing;
    impl crate::Directory for Nothing {
        fn open(&self, name: &str) -> std::io::Result<Box<dyn crate::ReadAt>> {
            panic!("{name} must not be opened");
        }
    }
    let long = format!("RW 1 FLAT \"{}\" 0", "x".repeat(256));
    let many = "RW 1 ZERO\n".repeat(4097);
    let half = i64::MAX as u64 / 512;
    for (file, kind, what) in [
        (text("RW 1 FLAT \"/etc/passwd\" 0"), ErrorKind::Unsupported, "`/etc/passwd` is not the"),
        (text("RW 1 FLAT \"..\" 0"), ErrorKind::Unsupported, "not the name of a file alone"),
        (text("RW 1 FLAT \"a\\b\" 0"), ErrorKind::Unsupported, "not the name of a file alone"),
        (text("RW 1 FLAT \"nbd:x\" 0"), ErrorKind::Unsupported, "not the name of a file alone"),
        (text("RW 1 FLAT \"a\u{1b}b\" 0"), ErrorKind::Unsupported, "`a\\u{1b}b` is not"),
        (text(long), ErrorKind::Unsupported, "not the name of a file alone"),
        (
            text("NOACCESS 1 FLAT \"a\" 0"),
            ErrorKind::Unsupported,
            "`a` is marked as not accessible",
        ),
        (text("RW 1 VMFSRDM \"a\""), ErrorKind::Unsupported, "of the kind `VMFSRDM`"),
        (text("RW 1 FLAT a 0"), ErrorKind::Corrupt, "`a 0` is not in quotes"),
        (text("RW 1 FLAT"), ErrorKind::Corrupt, "the extent has no name"),
        (text("RW 1 FLAT \"a\" x"), ErrorKind::Corrupt, "an offset in sectors, got `x`"),
        (text("RW +1 FLAT \"a\" 0"), ErrorKind::Corrupt, "a number of sectors, got `+1`"),
        (text("RW"), ErrorKind::Corrupt, "expected a number of sectors, got ``"),
        (text("XX 1 FLAT \"a\" 0"), ErrorKind::Corrupt, "expected an entry or an extent"),
        (text(""), ErrorKind::Corrupt, "the descriptor has no extents"),
        (text(many), ErrorKind::TooLarge, "more than 4096 extents"),
        (text(format!("RW {half} ZERO\nRW 1 ZERO")), ErrorKind::TooLarge, "ends beyond 2^63 - 1"),
        (text(format!("RW 2 FLAT \"a\" {half}")), ErrorKind::TooLarge, "ends beyond 2^63 - 1"),
        (text("createType=\"vmfs\"\nRW 1 ZERO"), ErrorKind::Corrupt, "`createtype` twice"),
        (text("PARENTCID=ffffffff\nRW 1 ZERO"), ErrorKind::Corrupt, "`parentcid` twice"),
        (
            text("parentFileNameHint=\"base.vmdk\"\nRW 1 ZERO"),
            ErrorKind::NeedsOtherFile,
            "a delta over another VMDK, `base.vmdk`",
        ),
        (text("encryptionKeys=\"x\"\nRW 1 ZERO"), ErrorKind::Encrypted, "encrypted by VMware"),
        (b"# Disk DescriptorFile\nversion=1\n".to_vec(), ErrorKind::Corrupt, "no `createType`"),
        (
            b"# Disk DescriptorFile\ncreateType=\"fullDevice\"\nRW 1 FLAT \"/dev/sda\" 0".to_vec(),
            ErrorKind::Unsupported,
            "a physical device (`fullDevice`)",
        ),
        (
            b"# Disk DescriptorFile\ncreateType=\"SESPARSE\"\nRW 1 SESPARSE \"a\"".to_vec(),
            ErrorKind::Unsupported,
            "seSparse",
        ),
        (b"# ".repeat(1 << 20), ErrorKind::NotAnImage, ""),
        (
            [b"# Disk DescriptorFile\n".to_vec(), vec![b'#'; 2 << 20]].concat(),
            ErrorKind::TooLarge,
            "a descriptor of at most 1048576 bytes",
        ),
    ] {
        let given = OpenOptions { extents: Some(Arc::new(Nothing)), ..OpenOptions::default() };
        for error in [refused(&file, given), refused(&file, OpenOptions::default())] {
            assert_eq!(error.kind(), kind, "{error}, expected {what}");
            assert!(error.to_string().contains(what), "{error}, expected {what}");
            assert!(error.offset().is_some(), "{error}");
        }
        assert!(decode(&file, &[70_000]).is_err(), "{what}");
        if let Ok(info) = inspect(&file) {
            assert!(info.refused.is_some_and(|refused| refused.contains(what)), "{what}");
        }
    }
}
