//! An initial RAM disk: a cpio archive in the kernel's "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Directories and files only, all
//! owned by root.

/// An archive that grows in memory.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// Name of the entry behind which the kernel reads nothing.
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    /// Adds a directory. Its parents must come before it.
    pub(super) fn dir(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file. Its directory must come before it.
    pub(super) fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entry(path, REGULAR | mode, data);
    }

    /// The archive with its end.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let len = u32::try_from(data.len()).expect("the format ends at 4 GiB");
        let name_len = path.len() as u32 + 1;
        // inode, mode, uid, gid, links, mtime, file size, device (2), its device (2), name size, sum
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(path.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
    }

    /// Headers and data begin at multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::sh;

    #[test]
    fn cpio_reads_it() {
        if !bootyard_testkit::require_tool("cpio") {
            return;
        }
        let mut archive = Archive::default();
        archive.dir("bin");
        archive.file("bin/one", 0o755, b"12345");
        archive.file("empty", 0o644, b"");
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("archive"), archive.finish()).unwrap();
        let input = fs_err::File::open(dir.path().join("archive")).unwrap().into_parts().0;
        let mut cpio = sh::cmd("cpio");
        cpio.args(["--extract", "--quiet"]).current_dir(dir.path());
        let status = cpio.stdin(Stdio::from(input)).status().unwrap();
        assert!(status.success());
        assert_eq!(fs_err::read(dir.path().join("bin/one")).unwrap(), b"12345");
        assert_eq!(fs_err::read(dir.path().join("empty")).unwrap(), b"");
        let listed = sh::output(sh::cmd("stat").args(["-c", "%a", "bin/one"]).current_dir(&dir));
        assert_eq!(listed.unwrap(), "755\n");
    }
}
