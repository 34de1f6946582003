//! Whole disks, made by `mke2fs` and `sfdisk`, from partition table to boot plan.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "the disks are made by other programs; a helper that cannot make one ends its test"
)]

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bootyard_bootload::{BootPlan, Error, ErrorKind, Options, find, list};
use bootyard_image::{Disk, Error as ImageError, Extent, ReadAt};
use bootyard_testkit::{pseudo_random, require_tool, run};
use fs_err::File;
use proptest::prelude::*;

const UUID: &str = "25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f";
const MIB: u64 = 1 << 20;

/// A disk in memory.
struct Memory(Vec<u8>);

impl Disk for Memory {
    fn virtual_size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        self.0.read_exact_at(buf, offset).map_err(|error| ImageError::read(error, offset))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, ImageError> {
        Ok(Extent { len: self.virtual_size() - offset, zero: false })
    }
}

fn disk(bytes: Vec<u8>) -> Arc<dyn Disk> {
    Arc::new(Memory(bytes))
}

fn boot(bytes: &[u8]) -> Result<BootPlan, Error> {
    find(&disk(bytes.to_vec()), &Options::default())
}

/// A directory tree from paths and contents.
fn tree(dir: &Path, files: &[(&str, &[u8])]) -> PathBuf {
    let root = dir.join("tree");
    let _ = fs_err::remove_dir_all(&root);
    fs_err::create_dir_all(&root).unwrap();
    for (path, bytes) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }
    root
}

/// A file system of `kind` (ext2, ext3, ext4) with these files.
fn ext(kind: &str, size: u64, files: &[(&str, &[u8])], options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("fs");
    File::create(&image).unwrap().set_len(size).unwrap();
    let mut mke2fs = Command::new("/usr/sbin/mke2fs");
    mke2fs.args(["-q", "-F", "-t", kind, "-U", UUID, "-L", "root"]).args(options).arg("-d");
    run(mke2fs.arg(tree(dir.path(), files)).arg(&image));
    fs_err::read(image).unwrap()
}

/// A disk with `parts` one after the other from 1 MiB, in a table of `label` (gpt, dos). Numbers
/// are those of the partitions.
fn partitioned(label: &str, parts: &[(u32, &[u8])]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    let (mut script, mut start) = (format!("label: {label}\n"), MIB);
    let mut file = File::create_new(&image).unwrap();
    for (number, bytes) in parts {
        let (first, len) = (start / 512, bytes.len() as u64 / 512);
        script += &format!("{number}: start={first}, size={len}, type=L\n");
        file.seek(SeekFrom::Start(start)).unwrap();
        file.write_all(bytes).unwrap();
        start = (start + bytes.len() as u64).next_multiple_of(MIB);
    }
    file.set_len(start + MIB).unwrap();
    let mut sfdisk = Command::new("/usr/sbin/sfdisk");
    let mut child = sfdisk.arg("-q").arg(&image).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    fs_err::read(image).unwrap()
}

fn tools() -> bool {
    require_tool("mke2fs") && require_tool("sfdisk")
}

fn debian_config() -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/grub/debian-12");
    fs_err::read(Path::new(folder).join("grub.cfg")).unwrap()
}

/// A root file system as Debian's, with random bytes for kernels and initial RAM disks.
fn debian_root(kind: &str) -> Vec<u8> {
    let config = debian_config();
    ext(
        kind,
        24 * MIB,
        &[
            ("/boot/grub/grub.cfg", config.as_slice()),
            ("/boot/vmlinuz-6.1.0-56-cloud-amd64", &pseudo_random(700_001, 1)),
            ("/boot/initrd.img-6.1.0-56-cloud-amd64", &pseudo_random(2_000_003, 2)),
            ("/boot/vmlinuz-6.1.0-53-cloud-amd64", b"old kernel"),
            ("/boot/initrd.img-6.1.0-53-cloud-amd64", b"old initrd"),
        ],
        &[],
    )
}

#[track_caller]
fn is_debian(plan: &BootPlan, partition: u32) {
    assert_eq!(plan.partition, partition);
    assert_eq!(plan.entry, "Debian GNU/Linux");
    assert_eq!(plan.config, "/boot/grub/grub.cfg");
    assert_eq!(plan.kernel_path, "/boot/vmlinuz-6.1.0-56-cloud-amd64");
    assert_eq!(plan.initrd_paths, ["/boot/initrd.img-6.1.0-56-cloud-amd64"]);
    assert!(plan.kernel == pseudo_random(700_001, 1) && plan.initrd == pseudo_random(2_000_003, 2));
    assert!(plan.console_on_serial);
}

#[test]
fn debian_boots_from_every_table_and_ext() {
    if !tools() {
        return;
    }
    let ext4 = debian_root("ext4");
    is_debian(&boot(&ext4).unwrap(), 0);
    is_debian(&boot(&debian_root("ext2")).unwrap(), 0);
    is_debian(&boot(&debian_root("ext3")).unwrap(), 0);
    is_debian(&boot(&partitioned("gpt", &[(14, &[0; 1 << 20]), (1, &ext4)])).unwrap(), 1);
    is_debian(&boot(&partitioned("dos", &[(2, &ext4)])).unwrap(), 2);
}

#[test]
fn a_damaged_primary_gpt_is_read_from_its_copy() {
    if !tools() {
        return;
    }
    let mut bytes = partitioned("gpt", &[(3, &debian_root("ext4"))]);
    bytes[512..1024].fill(0xff);
    is_debian(&boot(&bytes).unwrap(), 3);
}

#[test]
fn entries_are_found_by_title_id_index_and_path() {
    if !tools() {
        return;
    }
    let disk = disk(debian_root("ext4"));
    let advanced = "Advanced options for Debian GNU/Linux";
    let old = format!("{advanced}>Debian GNU/Linux, with Linux 6.1.0-53-cloud-amd64");
    for name in [
        "1>2",
        old.as_str(),
        "Debian GNU/Linux, with Linux 6.1.0-53-cloud-amd64",
        "gnulinux-6.1.0-53-cloud-amd64-advanced-25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f",
    ] {
        let (entry, append) = (Some(name.to_owned()), Some("quiet".to_owned()));
        let options = Options { entry, append, ..Options::default() };
        let plan = find(&disk, &options).unwrap();
        assert_eq!(
            (plan.entry.as_str(), plan.kernel.as_slice()),
            (old.as_str(), &b"old kernel"[..])
        );
        assert!(plan.cmdline.ends_with("consoleblank=0 quiet"), "{}", plan.cmdline);
    }
    let options = Options { entry: Some("Windows".to_owned()), ..Options::default() };
    let error = find(&disk, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchEntry);
    assert!(error.to_string().starts_with("no boot entry `Windows`; expected `Advanced options"));

    let entries = list(&disk).unwrap().entries;
    assert_eq!(entries.len(), 5);
    let defaults: Vec<&str> =
        entries.iter().filter(|entry| entry.default).map(|entry| entry.title.as_str()).collect();
    assert_eq!(defaults, ["Debian GNU/Linux"]);
}

#[test]
fn a_boot_partition_of_its_own_holds_the_paths() {
    if !tools() {
        return;
    }
    // As Ubuntu's cloud images since 23.10: root in 1, ESP in 15, `/boot` in 16.
    let config = format!(
        "set default=\"0\"
function recordfail {{
  set recordfail=1
  if [ -n \"${{have_grubenv}}\" ]; then if [ -z \"${{boot_once}}\" ]; then save_env recordfail; fi; fi
}}
menuentry 'Ubuntu' --class ubuntu $menuentry_id_option 'gnulinux-simple-x' {{
	recordfail
	load_video
	gfxmode $linux_gfx_mode
	insmod gzio
	if [ \"$grub_platform\" = xen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root {UUID}
	linux	/vmlinuz-6.8.0-60-generic root=LABEL=cloudimg-rootfs ro  console=tty1 console=ttyS0
	initrd	/initrd.img-6.8.0-60-generic /microcode.img
}}
"
    );
    let boot_part = ext(
        "ext4",
        8 * MIB,
        &[
            ("/grub/grub.cfg", config.as_bytes()),
            ("/vmlinuz-6.8.0-60-generic", b"kernel"),
            ("/initrd.img-6.8.0-60-generic", b"first"),
            ("/microcode.img", b"second"),
        ],
        &[],
    );
    let root = vec![0; 2 << 20];
    let plan = boot(&partitioned("gpt", &[(1, &root), (15, &root), (16, &boot_part)])).unwrap();
    assert_eq!((plan.partition, plan.config.as_str()), (16, "/grub/grub.cfg"));
    assert_eq!(
        (plan.kernel.as_slice(), plan.initrd.as_slice()),
        (&b"kernel"[..], &b"firstsecond"[..])
    );
    assert_eq!(plan.cmdline, "root=LABEL=cloudimg-rootfs ro console=tty1 console=ttyS0");
}

#[test]
fn a_kernel_may_be_named_by_a_symbolic_link_and_the_serial_console_may_be_missing() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = tree(
        dir.path(),
        &[
            ("/boot/grub/grub.cfg", b"menuentry a { linux /vmlinuz root=/dev/vda console=ttyS1 }"),
            ("/boot/vmlinuz-1", b"kernel"),
        ],
    );
    std::os::unix::fs::symlink("boot/vmlinuz-1", root.join("vmlinuz")).unwrap();
    let image = dir.path().join("fs");
    File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    run(Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-d"]).arg(root).arg(&image));
    let plan = boot(&fs_err::read(image).unwrap()).unwrap();
    assert_eq!((plan.kernel.as_slice(), plan.initrd.len()), (&b"kernel"[..], 0));
    assert!(!plan.console_on_serial);
}

#[test]
fn what_does_not_boot_says_what_was_looked_at() {
    if !tools() {
        return;
    }
    let no_kernel = b"menuentry a {\n  linux /boot/gone\n}\n";
    let cut = partitioned("gpt", &[(1, &ext("ext4", 4 * MIB, &[], &[]))]);
    for (bytes, kind, expected) in [
        (
            vec![0; 1 << 20],
            ErrorKind::NotBootable,
            "nothing to boot was found (whole disk: no file system that is known)",
        ),
        (
            vec![],
            ErrorKind::NotBootable,
            "nothing to boot was found (whole disk: no file system that is known)",
        ),
        (
            partitioned("gpt", &[(1, &ext("ext4", 4 * MIB, &[], &[])), (2, &[0; 1 << 20])]),
            ErrorKind::NotBootable,
            "nothing to boot was found (partition 2: no file system that is known; partition 1: ext4 without a boot menu)",
        ),
        (
            cut[..2 << 20].to_vec(),
            ErrorKind::NotBootable,
            "nothing to boot was found (partition 1: reaches beyond the end of the disk)",
        ),
        (
            ext("ext4", 4 * MIB, &[("/boot/grub/grub.cfg", no_kernel)], &[]),
            ErrorKind::Missing,
            "`/boot/grub/grub.cfg` line 2: `/boot/gone` is not on `hd0`",
        ),
        (
            ext("ext4", 4 * MIB, &[("/boot/grub/grub.cfg", b"menuentry a {\n true\n}")], &[]),
            ErrorKind::Config,
            "`/boot/grub/grub.cfg` line 1: the entry `a` loads no Linux kernel",
        ),
        (
            ext("ext4", 4 * MIB, &[("/boot/grub2/grub.cfg", b"insmod blscfg\nblscfg\n")], &[]),
            ErrorKind::Config,
            "`/boot/grub2/grub.cfg` on whole disk has no menu entries",
        ),
    ] {
        let error = boot(&bytes).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, expected));
    }
}

#[test]
fn a_kernel_beyond_the_limit_is_refused_unread() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = tree(dir.path(), &[("/boot/grub/grub.cfg", b"menuentry a { linux /huge }")]);
    File::create(root.join("huge")).unwrap().set_len(1 << 40).unwrap();
    let image = dir.path().join("fs");
    File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    run(Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-d"])
        .arg(root)
        .arg(&image));
    let error = boot(&fs_err::read(image).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(error.to_string(), "expected at most 268435456 bytes in `/huge`, got 1099511627776");
}

#[test]
fn files_that_the_memory_cannot_hold_are_refused_unread() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let config = b"menuentry a {\nlinux /k\ninitrd /small /sparse\n}";
    let root = tree(
        dir.path(),
        &[("/boot/grub/grub.cfg", config), ("/k", &[1; 5000]), ("/small", &[2; 3000])],
    );
    File::create(root.join("sparse")).unwrap().set_len(512 * MIB).unwrap();
    let image = dir.path().join("fs");
    File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    run(Command::new("/usr/sbin/mke2fs").args(["-q", "-F", "-d"]).arg(root).arg(&image));
    let disk = disk(fs_err::read(image).unwrap());
    for (memory, expected) in [
        (4999, "line 2: `/k` has 5000 bytes, the memory has room for 4999"),
        (5001, "line 3: `/small` has 3000 bytes, the memory has room for 1"),
        (
            8000 + 512 * MIB - 1,
            "line 3: `/sparse` has 536870912 bytes, the memory has room for 536870911",
        ),
    ] {
        let error = find(&disk, &Options { memory: Some(memory), ..Options::default() });
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        assert_eq!(error.to_string(), format!("`/boot/grub/grub.cfg` {expected}"));
    }
}

/// A small bootable file system without checksums, behind which damage would hide; made once.
fn small() -> &'static [u8] {
    static SMALL: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SMALL.get_or_init(|| {
        let config = b"menuentry a { linux /k\ninitrd /i\n}";
        let files: &[(&str, &[u8])] =
            &[("/boot/grub/grub.cfg", config), ("/k", b"kernel"), ("/i", b"initrd")];
        ext("ext4", SMALL_LEN as u64, files, &["-O", "^metadata_csum"])
    })
}

const SMALL_LEN: usize = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Most structures of so small a file system are in its first blocks.
    #[test]
    fn damage_is_an_error_and_never_a_panic(
        damage in proptest::collection::vec((1024..200_usize << 10, any::<u8>()), 1..60),
        superblock in proptest::collection::vec((1024..1300_usize, any::<u8>()), 0..3),
    ) {
        if !tools() {
            return Ok(());
        }
        let mut bytes = small().to_vec();
        for (at, byte) in damage.into_iter().chain(superblock) {
            bytes[at] = byte;
        }
        let _ = boot(&bytes);
    }

    #[test]
    fn a_cut_disk_is_an_error_and_never_a_panic(len in 0..SMALL_LEN) {
        if !tools() {
            return Ok(());
        }
        let _ = boot(&small()[..len]);
    }
}

#[test]
fn a_random_disk_is_not_bootable() {
    assert_eq!(boot(&pseudo_random(1 << 16, 3)).unwrap_err().kind(), ErrorKind::NotBootable);
}
