//! Archives of `zip` and of Python's `zipfile`, whole and damaged.

use bootyard_testkit::{pseudo_random, require_tool};
use bytes::Bytes;

use crate::stream::Head;
use crate::stream::unpack::tests::{archive, check, disk, filter};
use crate::support::decode;
use crate::{ErrorKind, Format};

/// Python that has what the cases use: a stream that cannot seek, and an archive that is written
/// bit by bit.
const PRELUDE: &str = r#"
import io, struct, sys, zipfile, zlib
class Pipe(io.RawIOBase):
    def __init__(self): self.f = open("archive", "wb")
    def writable(self): return True
    def write(self, b): return self.f.write(b)
disk = open("disk.raw", "rb").read()
Z, DEFLATE = zipfile.ZipFile, zipfile.ZIP_DEFLATED
def described(signature, form, name=b"disk.raw", flags=8):
    c = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = c.compress(disk) + c.flush()
    facts = (zlib.crc32(disk), len(data), len(disk))
    body = struct.pack("<4s5H3I2H", b"PK\3\4", 20, flags, 8, 0, 33, 0, 0, 0, len(name), 0) + name + data
    body += signature + struct.pack(form, *facts)
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, flags, 8, 0, 33, *facts, len(name), 0, 0, 0, 0, 0, 0) + name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(body), 0)
    open("archive", "wb").write(body + entry + end)
"#;

fn python(disk: &[u8], script: &str) -> Vec<u8> {
    let script = format!("{PRELUDE}{script}\n");
    archive(&[("disk.raw", disk), ("make.py", script.as_bytes())], "python3 make.py")
}

#[test]
fn one_disk_is_found_in_what_zip_writes() {
    if !(require_tool("zip") && require_tool("gzip")) {
        return;
    }
    let disk = &disk()[900_000..][..600 << 10];
    let files = [("disk.raw", disk), ("d/notes.txt", b"text"), ("d/e/readme", b"")];
    let zip = [Format::Zip];
    for (command, chain, told) in [
        ("zip -q a.zip disk.raw", &zip[..], true),
        ("zip -q0 a.zip disk.raw", &zip, true),
        ("zip -qr a.zip d disk.raw", &zip, true),
        ("zip -qr a.zip disk.raw d", &zip, true),
        ("zip -q - disk.raw | cat >a.zip", &zip, true),
        ("cat disk.raw | zip -q - - | cat >a.zip", &zip, false),
        ("zip -q0 - disk.raw | cat >a.zip", &zip, true),
        ("zip -q a.zip disk.raw && echo words | zip -qz a.zip", &zip, true),
        ("gzip -1 disk.raw && zip -q a.zip disk.raw.gz", &[Format::Zip, Format::Gzip], false),
    ] {
        let file = archive(&files, &format!("{command} && mv a.zip archive"));
        check(&file, disk, &[chain, &[Format::Raw]].concat(), command);
        let mut head = Head::new();
        head.push(Bytes::from(file)).unwrap();
        let size = told.then_some(disk.len() as u64);
        assert_eq!(head.end().unwrap().virtual_size, size, "{command}");
    }
    let file = filter("gzip -1", &archive(&files, "zip -q a.zip disk.raw && mv a.zip archive"));
    check(&file, disk, &[Format::Gzip, Format::Zip, Format::Raw], "zip in gzip");
}

#[test]
fn one_disk_is_found_in_what_python_writes() {
    if !require_tool("python3") {
        return;
    }
    let disk = &disk()[900_000..][..600 << 10];
    for script in [
        "Z('archive', 'w').write('disk.raw')",
        "Z('archive', 'w', DEFLATE).write('disk.raw')",
        "Z(Pipe(), 'w', DEFLATE).write('disk.raw')",
        "with Z('archive', 'w') as z:\n z.open('disk.raw', 'w', force_zip64=True).write(disk)\n z.comment = b'PK\\5\\6'",
        "with Z(Pipe(), 'w', DEFLATE) as z:\n with z.open('disk.raw', 'w', force_zip64=True) as f: f.write(disk)",
        // As if the archive were longer than 4 GiB, with more members than 65535.
        "zipfile.ZIP64_LIMIT = 100; zipfile.ZIP_FILECOUNT_LIMIT = 1\n\
         with Z('archive', 'w', DEFLATE) as z:\n z.writestr('a.txt', b'a' * 999)\n z.writestr('e/', b'')\n z.write('disk.raw')\n z.writestr('b.txt', b'b')",
        "described(b'PK\\7\\10', '<3I')",
        "described(b'PK\\7\\10', '<I2Q')",
        "described(b'', '<3I')",
        "described(b'', '<I2Q')",
        "described(b'', '<3I', 'd\u{ef}sk.raw'.encode(), 8 | 1 << 11)",
    ] {
        check(&python(disk, script), disk, &[Format::Zip, Format::Raw], script);
    }
}

#[test]
fn what_is_not_read_is_refused_by_its_name() {
    if !(require_tool("python3") && require_tool("zip")) {
        return;
    }
    let disk = &disk()[..1 << 20];
    let noise = pseudo_random(200_000, 1);
    let files = [("a.raw", disk), ("b.img", disk), ("c.txt", b"text"), ("noise", &noise)];
    for (command, message) in [
        (
            "zip -q a.zip a.raw c.txt b.img",
            "expected one disk in the archive, got `a.raw` and `b.img`",
        ),
        ("zip -q a.zip c.txt", "expected a disk in the archive, got only `c.txt`"),
        ("zip -qP x a.zip a.raw", "the member `a.raw` is encrypted"),
        (
            "zip -q -Z bzip2 a.zip a.raw",
            "the member `a.raw` is compressed with bzip2 (12); expected deflate or none",
        ),
        ("ln -s $(printf %0600d 0) l && zip -qy a.zip l", "the member `l` is a link"),
        (
            "ln -s $(printf %0600d 0) l.txt && zip -qy a.zip a.raw l.txt",
            "the member `l.txt` is a link",
        ),
        ("zip -q -s 64k a.zip noise && mv a.z01 a.zip", "the zip archive is one of several parts"),
        (
            "mkdir d && (cd d && zip -q ../a.zip ../a.raw)",
            "the member `../a.raw` leads out of its archive",
        ),
        (
            "zip -q a.zip a.raw && printf x >>a.zip",
            "the zip archive is damaged: its end record is followed by other bytes",
        ),
        (
            "printf 'PK\\005\\006%018d' 0 | tr 0 '\\000' >a.zip",
            "expected a disk in the archive, got nothing",
        ),
    ] {
        let result = decode(&archive(&files, &format!("{command} && mv a.zip archive")), &[65_536]);
        let error = result.map(drop).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}, expected {message}");
        assert!(error.offset().is_some());
    }
    for (script, message) in [
        (
            "Z('archive', 'w', zipfile.ZIP_LZMA).write('disk.raw')",
            "the member `disk.raw` is compressed with LZMA (14)",
        ),
        (
            "Z(Pipe(), 'w').write('disk.raw')",
            "the member `disk.raw` is stored without its length before it",
        ),
        ("described(b'', '<3I', b'd\\x8bsk', 8 | 1)", "the member `d\u{ef}sk` is encrypted"),
        (
            "described(b'', '<3I', b'disk', 8 | 1 << 5)",
            "the member `disk` is a patch for another file",
        ),
        (
            "described(b'PK\\7\\7', '<3I')",
            "the zip archive is damaged: a member's data descriptor does not match",
        ),
        (
            "with Z('archive', 'w', DEFLATE) as z:\n z.writestr('a.txt', bytes(70 << 20))\n z.write('disk.raw')",
            "the members beside the disk have over 67108864 bytes",
        ),
    ] {
        let error = decode(&python(disk, script), &[65_536]).map(drop).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}, expected {message}");
    }
}

#[test]
fn damage_is_found_wherever_it_is() {
    if !require_tool("python3") {
        return;
    }
    let disk = [pseudo_random(64, 1), vec![0x90; 448]].concat();
    for script in [
        "Z('archive', 'w', DEFLATE).write('disk.raw')",
        "described(b'PK\\7\\10', '<I2Q')",
        "described(b'', '<3I')",
        "zipfile.ZIP64_LIMIT = 100\nwith Z('archive', 'w', DEFLATE) as z: z.write('disk.raw')",
    ] {
        let file = python(&disk, script);
        for cut in 4..file.len() {
            let error = decode(&file[..cut], &[300]).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{script} cut at {cut}: {error}");
        }
        let entry = file.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
        // Versions, flags, times, attributes.
        let free = |at: usize| {
            matches!(at, 4..8 | 10..14)
                || at.checked_sub(entry).is_some_and(|at| matches!(at, 4..10 | 12..16 | 36..42))
        };
        let mut unseen = 0;
        for at in 4..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 1 << (at % 8);
            match decode(&bad, &[300]) {
                // Deflate's last byte has bits without a meaning, and zip64's end two versions.
                Ok((read, _)) => {
                    assert!(read == disk, "{script}: at {at}");
                    unseen += usize::from(!free(at));
                }
                Err(error) => assert!(error.offset().is_some(), "{error}"),
            }
        }
        assert!(unseen <= 5, "{script}");
    }
}
