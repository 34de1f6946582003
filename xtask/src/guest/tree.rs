//! The guest's root tree: Debian's packages, and the few files that make them a cloud image.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::disk;
use crate::deb::Mirrors;
use crate::sh;

/// What the tree gives to the disk.
#[derive(Debug)]
pub(super) struct Tree {
    /// All files of the root file system.
    pub(super) tar: PathBuf,
    /// GRUB's code for the master boot record.
    pub(super) boot_img: PathBuf,
    /// GRUB's code for the BIOS boot partition.
    pub(super) core_img: PathBuf,
    /// The signed first loader for UEFI.
    pub(super) shim: PathBuf,
    /// The signed GRUB for UEFI.
    pub(super) grub_efi: PathBuf,
}

const SUITE: &str = "bookworm";

const PACKAGES: &str = "linux-image-cloud-amd64,initramfs-tools,zstd,\
    systemd-sysv,systemd-resolved,libpam-systemd,dbus,udev,\
    cloud-init,cloud-guest-utils,openssh-server,sudo,qemu-guest-agent,\
    netbase,iproute2,iputils-ping,curl,ca-certificates,e2fsprogs,gdisk,kmod,procps,less,\
    grub2-common,grub-pc-bin,grub-efi-amd64-bin,grub-efi-amd64-signed,shim-signed";

/// Documentation is a third of the tree, and no guest of a test reads it.
const LEAVE_OUT: [&str; 6] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/man/*",
];

/// Runs inside the tree once the packages are there.
const FINISH: &str = r#"set -e
release=$(basename /lib/modules/*-cloud-amd64)
test -s /boot/vmlinuz-$release
test -s /boot/initrd.img-$release
sed -i "s/@RELEASE@/$release/" /boot/grub/grub.cfg
mkdir -p /boot/efi
systemctl --quiet enable systemd-networkd systemd-resolved ssh
# A boot must not wait for a network that a test does not give it.
systemctl --quiet mask systemd-networkd-wait-online.service e2scrub_reap.service
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
cd /boot/grub/i386-pc
cp /usr/lib/grub/i386-pc/*.mod /usr/lib/grub/i386-pc/*.lst /usr/lib/grub/i386-pc/boot.img .
grub-mkimage --format=i386-pc --output=core.img --config=load.cfg --prefix=/boot/grub \
    biosdisk part_gpt ext2 search_fs_uuid normal configfile linux serial terminal
rm -f /etc/ssh/ssh_host_* /finish
rm -rf /var/log/* /var/cache/debconf/*-old
"#;

/// The files that we put into the tree.
fn overlay() -> [(&'static str, String); 7] {
    let (root, esp, fs) = (disk::ROOT_PARTUUID, disk::ESP_PARTUUID, disk::ROOT_FS_UUID);
    let fstab = format!(
        "PARTUUID={root} / ext4 rw,discard,errors=remount-ro,x-systemd.growfs 0 1\n\
         PARTUUID={esp} /boot/efi vfat umask=0077,nofail 0 1\n"
    );
    let grub = format!(
        "set default=0\n\
         set timeout=1\n\
         serial --unit=0 --speed=115200\n\
         terminal_input console serial\n\
         terminal_output console serial\n\
         \n\
         menuentry 'Debian GNU/Linux' --class debian --class gnu-linux --class os {{\n\
         \tinsmod part_gpt\n\
         \tinsmod ext2\n\
         \tsearch --no-floppy --fs-uuid --set=root {fs}\n\
         \tlinux\t/boot/vmlinuz-@RELEASE@ root=PARTUUID={root} ro net.ifnames=0 console=tty0 \
         console=ttyS0,115200\n\
         \tinitrd\t/boot/initrd.img-@RELEASE@\n\
         }}\n"
    );
    let cloud = "# What a disk can hand over without a network.\n\
                 datasource_list: [NoCloud, ConfigDrive, None]\n\
                 # What takes long in an emulated machine, or needs a package that is not here.\n\
                 ssh_genkeytypes: [ed25519]\n\
                 ssh: {emit_keys_to_console: false}\n\
                 grub_dpkg: {enabled: false}\n\
                 locale: C.UTF-8\n";
    let load = format!("search.fs_uuid {fs} root\nset prefix=($root)/boot/grub\n");
    [
        ("etc/fstab", fstab),
        ("etc/hostname", "localhost\n".to_owned()),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned()),
        ("etc/cloud/cloud.cfg.d/90_seed.cfg", cloud.to_owned()),
        ("boot/grub/grub.cfg", grub),
        ("boot/grub/i386-pc/load.cfg", load),
        ("finish", FINISH.to_owned()),
    ]
}

/// Installs the packages and our files. Takes minutes.
pub(super) fn bootstrap(work: &Path, log: &Path) -> Result<Tree> {
    let files = work.join("overlay");
    for (path, text) in overlay() {
        let path = files.join(path);
        fs_err::create_dir_all(path.parent().expect("it lies in the overlay"))?;
        fs_err::write(path, text)?;
    }
    let tree = Tree {
        tar: work.join("root.tar"),
        boot_img: work.join("boot.img"),
        core_img: work.join("core.img"),
        shim: work.join("shim.efi"),
        grub_efi: work.join("grub.efi"),
    };
    let download = |from: &str, to: &Path| {
        format!("--customize-hook=download {from} {}", sh::quote(&to.to_string_lossy()))
    };
    let mut mmdebstrap = sh::cmd("mmdebstrap");
    mmdebstrap.args(["--variant=minbase", "--format=tar"]);
    mmdebstrap.arg(format!("--include={PACKAGES}"));
    mmdebstrap.arg("--aptopt=Apt::Install-Recommends \"false\"");
    mmdebstrap.arg("--aptopt=Acquire::Retries \"3\"");
    mmdebstrap.args(LEAVE_OUT.map(|rule| format!("--dpkgopt={rule}")));
    mmdebstrap.args([
        format!("--customize-hook=sync-in {} /", sh::quote(&files.to_string_lossy())),
        "--customize-hook=chroot \"$1\" sh /finish".to_owned(),
        download("/boot/grub/i386-pc/boot.img", &tree.boot_img),
        download("/boot/grub/i386-pc/core.img", &tree.core_img),
        download("/usr/lib/shim/shimx64.efi.signed", &tree.shim),
        download("/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", &tree.grub_efi),
    ]);
    mmdebstrap.arg(SUITE).arg(&tree.tar);
    mmdebstrap.args(sources(&Mirrors::of_this_machine()?));
    sh::run_logged(&mut mmdebstrap, log)?;
    Ok(tree)
}

fn sources(mirrors: &Mirrors) -> [String; 3] {
    let Mirrors { archive, security } = mirrors;
    [
        format!("deb {archive} {SUITE} main"),
        format!("deb {archive} {SUITE}-updates main"),
        format!("deb {security} {SUITE}-security main"),
    ]
}
