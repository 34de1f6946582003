//! What else a partition may hold, by its magic number, so that it can be named.

use crate::Error;
use crate::partition::Region;

/// A name, and where which bytes stand. After libblkid's tables (`libblkid/src/superblocks`).
const KNOWN: [(&str, u64, &[u8]); 19] = [
    ("an encrypted volume (LUKS), which is not unlocked", 0, b"LUKS\xba\xbe"),
    ("an encrypted volume (BitLocker), which is not unlocked", 3, b"-FVE-FS-"),
    ("a physical volume of LVM, which is not read", 512, b"LABELONE"),
    ("a physical volume of LVM, which is not read", 0, b"LABELONE"),
    ("NTFS of Windows, which is not booted", 3, b"NTFS    "),
    ("exFAT, which is not read", 3, b"EXFAT   "),
    ("ISO 9660, which is not read", 0x8001, b"CD001"),
    ("squashfs, which is not read", 0, b"hsqs"),
    ("EROFS, which is not read", 1024, b"\xe2\xe1\xf5\xe0"),
    ("F2FS, which is not read", 1024, b"\x10\x20\xf5\xf2"),
    ("bcachefs, which is not read", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9"),
    ("UFS of a BSD, which is not booted", 65536 + 1372, b"\x19\x01\x54\x19"),
    ("UFS of a BSD, which is not booted", 8192 + 1372, b"\x54\x19\x01\x00"),
    ("ZFS, which is not read", 0x20000, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
    ("Linux RAID, which is not assembled", 4096, b"\xfc\x4e\x2b\xa9"),
    ("Linux RAID, which is not assembled", 0, b"\xfc\x4e\x2b\xa9"),
    ("APFS, which is not booted", 32, b"NXSB"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("ReiserFS, which is not read", 65536 + 52, b"ReIsEr"),
];

/// What `region` holds, if it is something that has a name here.
pub(crate) fn known(region: &Region) -> Result<Option<&'static str>, Error> {
    for (name, at, magic) in KNOWN {
        let is_there = region.len() >= at + magic.len() as u64;
        if is_there && region.bytes(at, magic.len())? == magic {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
