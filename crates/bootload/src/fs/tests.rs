//! Every reader against the Linux kernel, which makes the file systems.
#![expect(clippy::disallowed_methods, reason = "the kernel and its tools make the file systems")]

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::{Disk, ReadAt};
use bootyard_testkit::{announce, pseudo_random, require_tool, run};
use fs_err as fs;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use tempfile::TempDir;

use super::*;
use crate::partition::{Budget, Partition, Table};

const UUID: &str = "25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f";

/// A file system that the kernel filled.
struct Made {
    folder: TempDir,
    image: PathBuf,
}

impl Made {
    /// Makes one by `mkfs` and its options, mounts it with `options`, and lets `fill` write to it;
    /// nothing, and the test is to be skipped, where the machine cannot.
    fn new(mkfs: &[&str], mib: u64, options: &str, fill: impl FnOnce(&Path)) -> Option<Self> {
        if ![mkfs[0], "mount", "umount"].into_iter().all(require_tool) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (image, point) = (folder.path().join("image"), folder.path().join("mount"));
        fs::File::create(&image).and_then(|file| file.set_len(mib << 20)).unwrap();
        fs::create_dir(&point).unwrap();
        run(Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image));
        let options = format!("loop,{options}");
        let mount = Command::new("mount").args(["-o", &options]).args([&image, &point]).output();
        let mount = mount.unwrap();
        if !mount.status.success() {
            let why = String::from_utf8_lossy(&mount.stderr);
            announce(format_args!("cannot mount what {} made from a loop device: {why}", mkfs[0]));
            return None;
        }
        let filled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fill(&point)));
        run(Command::new("umount").arg(&point));
        filled.unwrap();
        Some(Self { folder, image })
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.image).unwrap()
    }

    fn open(&self) -> Box<dyn FileSystem> {
        let file = FileAt::new(fs::File::open(&self.image).unwrap().into()).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RawDisk::read_only(file));
        mount(&disk).unwrap().unwrap()
    }
}

fn mount(disk: &Arc<dyn Disk>) -> Result<Option<Box<dyn FileSystem>>, Error> {
    let len = disk.virtual_size();
    let partition = Partition { table: Table::WholeDisk, number: 0, start: 0, len };
    open(&Region::of(disk, &partition, &Budget::new()).unwrap())
}

/// Files of every shape, by their paths.
fn files() -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = [
        ("/empty", Vec::new()),
        ("/small", b"a few bytes".to_vec()),
        ("/block", pseudo_random(4096, 1)),
        ("/large", pseudo_random(5 << 20 | 77, 2)),
        ("/a/b/c/d/e/deep", b"deep".to_vec()),
        ("/zeros", vec![0; 1 << 20]),
    ]
    .map(|(path, bytes)| (path.to_owned(), bytes))
    .into();
    let text: String = (0..50_000).map(|line| format!("line {line} of a file\n")).collect();
    files.insert("/text".to_owned(), text.into_bytes());
    for (folder, count) in [("few", 5), ("some", 60), ("many", 3000)] {
        for number in 0..count {
            let path = format!("/{folder}/file number {number}");
            files.insert(path, format!("{folder} {number}").into_bytes());
        }
    }
    files
}

fn fill(root: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (path, bytes) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A file of single blocks with holes between them, which needs a tree of extents.
const HOLES: (usize, usize) = (1500, 8192);

fn holes() -> Vec<u8> {
    let (count, step) = HOLES;
    let mut bytes = vec![0; count * step];
    for block in 0..count {
        bytes[block * step..block * step + 4096].fill(block as u8 | 1);
    }
    bytes
}

fn write_holes(path: &Path) {
    let (count, step) = HOLES;
    let mut file = fs::File::create(path).unwrap();
    file.set_len((count * step) as u64).unwrap();
    for block in (0..count).rev() {
        file.seek(SeekFrom::Start((block * step) as u64)).unwrap();
        file.write_all(&[block as u8 | 1; 4096]).unwrap();
    }
    file.sync_all().unwrap();
}

/// Links of every kind, where they lead, and what is read there.
fn links(root: &Path) {
    for (name, target) in [
        ("link", "small"),
        ("absolute", "/a/b/c/d/e/deep"),
        ("up", "a/b/../../a/./b/c/d/e/deep"),
        ("folder", "a/b"),
        ("again", "link"),
        ("circle", "circle"),
        ("gone", "nowhere/at/all"),
    ] {
        symlink(target, root.join(name)).unwrap();
    }
    symlink(format!("{}small", "a/../".repeat(150)), root.join("long")).unwrap();
}

#[track_caller]
fn all_is_there(fs: &dyn FileSystem, under: &str, files: &BTreeMap<String, Vec<u8>>) {
    for (path, bytes) in files {
        let at = format!("{under}{path}");
        assert_eq!(fs.size(&at).unwrap(), Some(bytes.len() as u64), "{at}");
        let read = fs.read(&at, 1 << 30).unwrap();
        assert!(read.as_ref() == Some(bytes), "{at}");
    }
    assert_eq!(fs.names(&format!("{under}/few")).unwrap().unwrap().len(), 5);
    assert_eq!(fs.names(&format!("{under}/many")).unwrap().unwrap().len(), 3000);
    assert_eq!(fs.names(&format!("{under}/a/b")).unwrap().unwrap(), ["c"]);
    for missing in ["/none", "/small/none", "/many/file number 3000", "/gone"] {
        assert_eq!(fs.read(missing, 1).unwrap(), None, "{missing}");
    }
    let error = fs.read(&format!("{under}/large"), 5 << 20).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::TooLarge);
}

#[track_caller]
fn links_lead_on(fs: &dyn FileSystem) {
    for (path, expected) in [
        ("/link", &b"a few bytes"[..]),
        ("/again", b"a few bytes"),
        ("/long", b"a few bytes"),
        ("/absolute", b"deep"),
        ("/up", b"deep"),
        ("/folder/c/d/e/deep", b"deep"),
        ("/folder/../../../small", b"a few bytes"),
    ] {
        assert_eq!(fs.read(path, 100).unwrap().as_deref(), Some(expected), "{path}");
    }
    assert_eq!(fs.read("/circle", 1).unwrap_err().kind(), crate::ErrorKind::TooLarge);
}

/// Today's kernels no longer mount these, so that `mkfs.xfs` itself fills it.
#[test]
fn xfs_without_checksums_is_read_as_its_tool_filled_it() {
    if !require_tool("mkfs.xfs") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let large: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(path("large"), &large).unwrap();
    let many: String = (0..300).map(|n| format!(" file-{n:03} ---644 0 0 /dev/null\n")).collect();
    let tree = format!(
        "/\n0 0\nd--755 0 0\nlarge ---644 0 0 {}\nto l--777 0 0 dir/copy\n\
         dir d--755 0 0\n copy ---644 0 0 {0}\n{many} $\n$\n",
        path("large").display()
    );
    fs::write(path("tree"), tree).unwrap();
    let image = path("image");
    fs::File::create(&image).and_then(|file| file.set_len(300 << 20)).unwrap();
    let options = ["-q", "-m", "crc=0", "-n", "ftype=0", "-p"];
    run(Command::new("mkfs.xfs").args(options).arg(path("tree")).arg(&image));
    let fs = Made { folder, image }.open();
    for name in ["/large", "/dir/copy", "/to"] {
        assert!(fs.read(name, 1 << 20).unwrap().as_deref() == Some(&large), "{name}");
    }
    assert_eq!(fs.read("/dir/file-299", 1).unwrap(), Some(Vec::new()));
    assert_eq!(fs.read("/dir/file-300", 1).unwrap(), None);
}

#[test]
fn xfs_is_read_as_linux_wrote_it() {
    let plain = format!("uuid={UUID}");
    for options in [
        &["-m", &plain][..],
        &["-m", &plain, "-b", "size=1024", "-n", "size=8192"],
        &["-m", &plain, "-i", "size=2048", "-n", "ftype=1"],
    ] {
        let mut mkfs = vec!["mkfs.xfs", "-q", "-L", "root"];
        mkfs.extend(options);
        let mut files = files();
        let made = Made::new(&mkfs, 300, "rw", |root| {
            fill(root, &files);
            write_holes(&root.join("holes"));
            links(root);
        });
        let Some(made) = made else { return };
        files.insert("/holes".to_owned(), holes());
        let fs = made.open();
        assert_eq!((fs.kind(), fs.uuid(), fs.label()), ("XFS", UUID.to_owned(), "root".to_owned()));
        assert_eq!(fs.note(), None, "{options:?}");
        all_is_there(fs.as_ref(), "", &files);
        links_lead_on(fs.as_ref());
    }
}

#[test]
fn an_xfs_that_was_not_unmounted_says_so() {
    let mut copy = None;
    let made = Made::new(&["mkfs.xfs", "-q"], 300, "rw", |root| {
        fs::write(root.join("old"), "old").unwrap();
        run(Command::new("sync").arg("-f").arg(root));
        let image = root.with_file_name("image");
        copy = Some(root.with_file_name("copy"));
        run(Command::new("cp").arg("--sparse=always").arg(image).arg(copy.as_ref().unwrap()));
    });
    let Some(Made { folder, image }) = made else { return };
    let clean = Made { folder, image };
    assert_eq!(clean.open().note(), None);
    let dirty = Made { image: copy.unwrap(), ..clean };
    assert_eq!(dirty.open().note(), Some("its journal holds changes, which are not seen"));
}

#[test]
fn btrfs_is_read_as_linux_wrote_it() {
    for (mkfs, options) in [
        (&[][..], "compress-force=zstd"),
        (&["-d", "dup", "-m", "single"], "compress-force=lzo"),
        (&["--mixed", "-n", "4096"], "compress-force=zlib"),
        (&["--csum", "sha256"], "compress=none"),
    ] {
        let mut all = vec!["mkfs.btrfs", "-q", "-L", "root"];
        all.extend(mkfs);
        let mut files = files();
        let made = Made::new(&all, 256, options, |root| {
            fill(root, &files);
            write_holes(&root.join("holes"));
            links(root);
        });
        let Some(made) = made else { return };
        files.insert("/holes".to_owned(), holes());
        let fs = made.open();
        assert_eq!((fs.kind(), fs.label()), ("btrfs", "root".to_owned()));
        let mut blkid = Command::new("blkid");
        assert_eq!(
            run(blkid.args(["-o", "value", "-s", "UUID"]).arg(&made.image)).trim(),
            fs.uuid()
        );
        all_is_there(fs.as_ref(), "", &files);
        links_lead_on(fs.as_ref());
    }
}

#[test]
fn paths_of_btrfs_begin_at_the_default_subvolume_or_at_the_top() {
    let make = |root: &Path, default: Option<&str>| {
        let create = |path: &str| {
            let path = root.join(path);
            run(Command::new("btrfs").args(["subvolume", "create"]).arg(&path));
            fs::write(path.join("here"), path.file_name().unwrap().as_encoded_bytes()).unwrap();
        };
        ["@", "@/.snapshots", "@/.snapshots/1", "root", "other"]
            .iter()
            .for_each(|path| create(path));
        fs::write(root.join("top"), "top").unwrap();
        if let Some(default) = default {
            run(Command::new("btrfs").args(["subvolume", "set-default"]).arg(root.join(default)));
        }
    };
    for (default, expected) in
        [(None, "@"), (Some("@/.snapshots/1"), "1"), (Some("other"), "other")]
    {
        if !require_tool("btrfs") {
            return;
        }
        let made = Made::new(&["mkfs.btrfs", "-q"], 128, "rw", |root| make(root, default));
        let Some(made) = made else { return };
        let fs = made.open();
        let read =
            |path: &str| fs.read(path, 100).unwrap().map(|text| String::from_utf8(text).unwrap());
        assert_eq!(read("/here").as_deref(), Some(expected));
        assert_eq!(read("/top").as_deref(), Some("top"));
        assert_eq!(read("/@/here").as_deref(), Some("@"));
        assert_eq!(read("/@/.snapshots/1/here").as_deref(), Some("1"));
        assert_eq!(read("/root/here").as_deref(), Some("root"));
    }
}

/// A FAT of `kib` KiB with long and short names, made by mtools.
fn fat(bits: &str, kib: &str, files: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    if !["mkfs.vfat", "mcopy", "mmd"].into_iter().all(require_tool) {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("fat");
    run(Command::new("mkfs.vfat")
        .args(["-F", bits, "-n", "ESP", "-i", "1234abcd", "-s", "1", "-C"])
        .arg(&image)
        .arg(kib));
    for (path, bytes) in files {
        let file = folder.path().join("file");
        fs::write(&file, bytes).unwrap();
        let mut parents: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
        parents.retain(|path| path.parent().is_some());
        for parent in parents.iter().rev() {
            let _ = Command::new("mmd").arg("-i").arg(&image).arg(parent).output().unwrap();
        }
        run(Command::new("mcopy").arg("-i").args([&image, &file]).arg(format!("::{path}")));
    }
    Some(fs::read(image).unwrap())
}

#[test]
fn fat_is_read_as_mtools_wrote_it() {
    let large = pseudo_random(700_001, 5);
    let many: Vec<String> = (0..300).map(|n| format!("/loader/entries/entry-{n}.conf")).collect();
    let mut files: Vec<(&str, &[u8])> = vec![
        ("/EFI/BOOT/BOOTX64.EFI", &large),
        ("/EFI/Linux/a name that is long.efi", b"long"),
        ("/empty", b""),
    ];
    files.extend(many.iter().map(|path| (path.as_str(), path.as_bytes())));
    for (bits, kib) in [("12", "1800"), ("16", "8000"), ("32", "36000")] {
        let Some(bytes) = fat(bits, kib, &files) else { return };
        let fs = mount(&memory(bytes)).unwrap().unwrap();
        let facts = (fs.kind(), fs.uuid(), fs.label());
        assert_eq!(facts, ("FAT", "1234-abcd".to_owned(), "ESP".to_owned()));
        for (path, bytes) in &files {
            assert!(fs.read(path, 1 << 20).unwrap().as_deref() == Some(*bytes), "{path}");
        }
        assert!(fs.size("/efi/boot/bootx64.efi").unwrap() == Some(700_001));
        assert_eq!(fs.names("/loader/entries").unwrap().unwrap().len(), 300);
        assert_eq!(fs.names("/EFI").unwrap().unwrap(), ["BOOT", "Linux"]);
        assert_eq!(fs.read("/EFI/none", 1).unwrap(), None);
    }
}

fn memory(bytes: Vec<u8>) -> Arc<dyn Disk> {
    Arc::new(RawDisk::read_only(bytes))
}

/// File systems whose structures are damaged: small ones, without the checksums that would hide it.
fn victims() -> &'static [Vec<u8>] {
    static VICTIMS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    VICTIMS.get_or_init(|| {
        let tree = |root: &Path| {
            fill(root, &files());
            write_holes(&root.join("holes"));
            links(root);
        };
        let xfs = Made::new(&["mkfs.xfs", "-q"], 300, "rw", tree);
        let no_sums = ["mkfs.btrfs", "-q", "--csum", "xxhash", "-m", "single"];
        let btrfs = Made::new(&no_sums, 128, "compress-force=lzo", tree);
        let fat = fat("12", "1800", &[("/a/long name", b"text"), ("/small", b"x")]);
        let made = [xfs, btrfs].into_iter().flatten().map(|made| made.bytes());
        made.chain(fat).collect()
    })
}

/// Blocks that are not all zeros are where damage may show.
fn used_blocks(bytes: &[u8]) -> Vec<usize> {
    let is_used = |(_, block): &(usize, &[u8])| block.iter().any(|byte| *byte != 0);
    bytes.chunks(4096).enumerate().filter(is_used).map(|(number, _)| number * 4096).collect()
}

#[test]
fn damage_is_an_error_and_never_a_panic_or_a_hang() {
    for victim in victims() {
        let blocks = used_blocks(victim);
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let damage = (any::<proptest::sample::Index>(), 0..4096_usize, any::<u8>());
        let damages = proptest::collection::vec(damage, 1..30);
        for _ in 0..12 {
            let damages = damages.new_tree(&mut runner).unwrap().current();
            let at = |(block, at, byte): &(proptest::sample::Index, _, _)| {
                (block.get(&blocks) + at, *byte)
            };
            read_all(Damaged { bytes: victim, damages: damages.iter().map(at).collect() });
        }
        for part in 1..10 {
            let bytes = &victim[..victim.len() * part / 10];
            read_all(Damaged { bytes, damages: Vec::new() });
        }
    }
}

#[test]
fn a_btrfs_chunk_that_ends_before_its_stripes_is_an_error() {
    // Key, then an item as long as the number of stripes, which is none, needs.
    const CHUNKS: u32 = 17 + 46;
    let mut bytes = vec![0; 1 << 20];
    let head = &mut bytes[64 << 10..];
    head[64..72].copy_from_slice(b"_BHRfS_M");
    for (at, number) in [(136, 1), (144, 4096), (148, 16384), (160, CHUNKS)] {
        head[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
    }
    let error = mount(&memory(bytes)).err().unwrap();
    assert!(error.to_string().contains("ends before its byte 48"), "{error}");
}

/// Bytes of which some are others.
struct Damaged {
    bytes: &'static [u8],
    damages: Vec<(usize, u8)>,
}

impl ReadAt for Damaged {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
        let begin = offset as usize;
        let end = begin + buf.len();
        let bytes = self.bytes.get(begin..end);
        buf.copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        for (at, byte) in self.damages.iter().filter(|(at, _)| (begin..end).contains(at)) {
            buf[at - begin] = *byte;
        }
        Ok(())
    }
}

/// Reads whatever can be read.
fn read_all(damaged: Damaged) {
    let begin = std::time::Instant::now();
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::read_only(damaged));
    let Ok(Some(fs)) = mount(&disk) else { return };
    for path in ["/holes", "/text", "/long", "/many/file number 7", "/a/long name", "/small"] {
        let _ = fs.read(path, 1 << 24);
    }
    for path in ["/", "/many", "/few", "/folder"] {
        let _ = fs.names(path);
    }
    // Milliseconds on an idle machine.
    assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", begin.elapsed());
}
