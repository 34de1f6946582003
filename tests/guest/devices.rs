//! Linux' own drivers on every virtio device besides block and network, in the lab. The guest is a kernel
//! with busybox and a shell that listens on a stream socket, through which everything is asked of it; the
//! machine is confined as any other.

use std::time::Duration;

use bootyard_cloudinit::{Image, ImageFormat, Tree};
use bootyard_testkit::{Cli, skip};
use expect_test::expect;

use crate::{need, xtask};

/// The modules that the guest loads.
const MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_scsi",
    "sd_mod",
    "sr_mod",
    "isofs",
    "virtio_balloon",
    "virtio_console",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
];

/// Debian's, which knows stream sockets without a network.
const SOCAT: &str = "/usr/bin/socat";

/// The guest's first process.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=80% tmp /tmp
mkdir /mnt
while read -r module; do insmod "/lib/modules/$module"; done </modules
until [ -b /dev/sda ] && [ -b /dev/sr0 ] && ln -s /dev/vport?p1 /channel && [ -c /channel ]; do
    rm -f /channel
    sleep 0.2
done
socat -t 60 VSOCK-LISTEN:1235 EXEC:sha256sum &
exec socat -t 60 VSOCK-LISTEN:1234,fork EXEC:sh,stderr
"#;

/// The lab's side. Sizes are said only as far as they are the same each time.
const DEVICES: &str = r##"
export BOOTYARD_HOME=/tmp/home
cd /tmp
truncate -s 16M disk.raw
bootyard run --engine kvm --memory 256Mi --timeout 400s --net none \
    --kernel /kernel --initrd /initrd --cmdline "console=ttyS0 quiet" \
    --disk ./disk.raw,bus=scsi,serial=S-1 --cdrom /one.iso --control control \
    --virtio-console hvc --channel org.example.0=channel --vsock cid=5,socket=vsock \
    >serial 2>err </dev/null &
machine=$!
# Sends standard input to a port of the guest, and shows what comes back.
port() { { echo "CONNECT $1"; cat; } | timeout 90 socat -t 90 - UNIX-CONNECT:vsock 2>>asked | tail -n +2; }
ask() { echo "$1" | port 1234; }
tries=0
until [ "$(ask 'echo ready')" = ready ]; do
    tries=$((tries + 1))
    [ $tries -gt 250 ] && { echo "not ready"; tail -n 40 asked serial err; exit 1; }
    sleep 1
done
control() { bootyard control control "$@"; }
statistic() { control statistics --json | grep -o "\"$1\":[0-9]*" | cut -d: -f2; }
left() { ask "awk '/MemFree/ { print \$2 * 1024 }' /proc/meminfo"; }
# Whether $2 becomes true within a while; $1 says what that would be.
becomes() {
    tries=0
    until [ "$(eval "echo \$(($2))")" = 1 ]; do
        tries=$((tries + 1))
        [ $tries -gt 20 ] && { echo "$1: not so"; return; }
        sleep 1
    done
    echo "$1"
}
same() { [ "$1" = "$sum" ] && echo "$2: the same" || echo "$2: $1, not $sum"; }

echo "# drivers"
ask 'for device in /sys/bus/virtio/devices/*; do basename "$(readlink "$device/driver")"; done'

echo "# sockets"
sum=$(ask 'dd if=/dev/urandom of=/tmp/noise bs=64k count=32 2>/dev/null; sha256sum </tmp/noise')
ask 'cat /tmp/noise' >noise
same "$(sha256sum <noise)" "from the guest"
same "$(port 1235 <noise)" "and back"
echo 'read word; echo "the host heard $word"' >answer.sh
socat -t 60 UNIX-LISTEN:vsock_7000 EXEC:"sh answer.sh" &
until chmod o+w vsock_7000 2>/dev/null; do sleep 0.1; done
ask 'echo hello | socat -t 60 - VSOCK-CONNECT:2:7000'
ask 'socat - VSOCK-CONNECT:2:7001 2>&1 | grep -o "Connection .*"'

echo "# randomness"
ask 'cat /sys/class/misc/hw_random/rng_current; head -c 64 /dev/hwrng | wc -c'

echo "# SCSI disk"
ask 'cd /sys/block/sda && cat device/vendor device/model size queue/write_cache queue/fua queue/rotational
    tail -c +5 device/vpd_pg80; echo
    dd if=/tmp/noise of=/dev/sda bs=64k seek=32 oflag=direct conv=fsync 2>/dev/null' | sed 's/ *$//'
same "$(ask 'dd if=/dev/sda bs=64k skip=32 count=32 iflag=direct 2>/dev/null | sha256sum')" "read back"
same "$(dd if=disk.raw bs=64k skip=32 count=32 2>/dev/null | sha256sum)" "in the file"
before=$(stat -c %b disk.raw)
ask 'blkdiscard -o 2097152 -l 1048576 /dev/sda; dd if=/dev/sda bs=1M skip=2 count=1 iflag=direct 2>/dev/null | tr -d "\0" | wc -c'
echo "given back: $((before - $(stat -c %b disk.raw))) of $before blocks"

echo "# CD-ROM"
look='mount -t iso9660 -o ro /dev/sr0 /mnt 2>&1 && { cat /mnt/name; umount /mnt; }'
ask 'mount -t iso9660 -o ro /dev/sr0 /mnt && cat /mnt/name'
control eject cdrom0 2>&1 | grep -o 'the guest.*'
ask 'umount /mnt'
control eject cdrom0 && ask "$look"
control insert cdrom0 /two.iso && ask "$look; cat /sys/block/sr0/size"
# The guest opens its drive itself, and closes it again.
ask 'cd /proc/sys/dev/cdrom && echo 1 >autoeject && head -c 1 /dev/sr0 >/dev/null; echo 0 >autoeject
    echo 0 >autoclose; head -c 1 /dev/sr0 2>&1; echo 1 >autoclose'
ask "$look"

echo "# channels"
for port in channel hvc; do
    { echo "$port: from the host"; sleep 90; } | timeout 90 socat - UNIX-CONNECT:$port >heard.$port &
    [ $port = hvc ] && at=/dev/hvc0 || at=/channel
    ask "exec 3<>$at; [ $port = hvc ] && stty -echo <&3
        read -r line <&3; echo \"\$line\"; echo '$port: from the guest' >&3"
    becomes "$port: heard" '$(grep -c "guest" heard.$port) == 1'
done
ask 'cat /sys/class/virtio-ports/vport?p1/name'

echo "# balloon"
total=$(ask "awk '/MemTotal/ { print \$2 * 1024 }' /proc/meminfo")
[ "$(statistic total_bytes)" = "$total" ] && echo "tells what the guest has"
ask 'rm -f /tmp/*; dd if=/dev/zero of=/tmp/full bs=1M count=80 2>/dev/null'
full=$(statistic resident_bytes)
ask 'rm /tmp/full'
becomes "what the guest frees goes back" '$(statistic resident_bytes) < full - (64 << 20)'
before=$(left)
control balloon 192Mi
becomes "the guest leaves what is asked for" '$(statistic actual_balloon_bytes) <= 192 << 20'
becomes "and lacks it" '$(left) < before - (56 << 20)'
control balloon 256Mi
becomes "and has it again" '$(left) > before - (8 << 20)'

echo "# end"
ask 'dmesg -r | grep -E "^<[0-3]>" | cut -c1-200'
ask 'poweroff -f'
wait $machine
echo "exit $?"
cat err
"##;

/// A disc with one file, `name`, and `mib` of others.
fn disc(name: &str, mib: usize) -> Vec<u8> {
    let mut tree = Tree::new();
    tree.insert("name", format!("disc {name}\n").as_bytes()).expect("a good path");
    tree.insert("fill", vec![1; mib << 20].as_slice()).expect("a good path");
    let image = Image { format: ImageFormat::Iso, label: "TEST", timestamp: 1_767_323_046 };
    image.build(&tree).expect("an image").into_bytes()
}

/// A folder with a guest that begins with this script, a disc, and another one.
fn guest_with(init: &str, modules: &[&str], programs: &[&str]) -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| {
        fs_err::write(folder.path().join(name), bytes).expect("a file");
    };
    write("init", init.as_bytes());
    write("one.iso", &disc("one", 1));
    write("two.iso", &disc("two", 2));
    let (init, target) = (folder.path().join("init"), folder.path().display().to_string());
    let init = init.display().to_string();
    let modules = modules.iter().flat_map(|module| ["--module", module]);
    let programs = programs.iter().flat_map(|program| ["--program", program]);
    let words = ["initrd", "--init", &init, &target].into_iter().chain(modules).chain(programs);
    xtask(&words.collect::<Vec<_>>())?;
    Some(folder)
}

#[test]
fn linux_drives_every_device_on_the_kvm_engine() {
    let folder = need!(guest_with(INIT, &MODULES, &[SOCAT]));
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs_err::write(path("devices.sh"), DEVICES).expect("a script");
    let files = ["kernel", "initrd", "one.iso", "two.iso", "devices.sh"].map(path);
    let files = files.iter().flat_map(|file| ["--file", file]);
    let words = ["lab", "--memory", "1024", "--cpus", "1", "--program", SOCAT];
    let command = ["--", "sh", "/devices.sh"];
    let words: Vec<&str> = words.into_iter().chain(files).chain(command).collect();
    let printed = need!(xtask(&words));
    expect![[r#"
        # drivers
        virtio_rng
        virtio_scsi
        virtio_balloon
        virtio_console
        vmw_vsock_virtio_transport
        # sockets
        from the guest: the same
        and back: the same
        the host heard hello
        Connection reset by peer
        # randomness
        virtio_rng.0
        64
        # SCSI disk
        BOOTYARD
        DISK
        32768
        write back
        1
        0
        S-1
        read back: the same
        in the file: the same
        0
        given back: 2048 of 4096 blocks
        # CD-ROM
        disc one
        the guest has locked the medium, and was asked for it
        mount: mounting /dev/sr0 on /mnt failed: No medium found
        disc two
        6144
        head: /dev/sr0: No medium found
        disc two
        # channels
        channel: from the host
        channel: heard
        hvc: from the host
        hvc: heard
        org.example.0
        # balloon
        tells what the guest has
        what the guest frees goes back
        the guest leaves what is asked for
        and lacks it
        and has it again
        # end
        exit 0
        disk: engine kvm (asked for)
        disk: running
        disk: the guest powered itself off
    "#]]
    .assert_eq(&printed.replace('\r', ""));
}

/// The guest's first process where it is only to say what is on the SCSI bus.
const SCSI: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /mnt
while read -r module; do insmod "/lib/modules/$module"; done </modules
until [ -b /dev/sda ] && [ -b /dev/sdb ] && [ -b /dev/sr0 ] && [ -b /dev/sr1 ]; do sleep 0.2; done
exec >/dev/ttyS0
# Linux names disks in whatever order it finds them.
at() { ls /sys/bus/scsi/devices/0:0:$1:0/block; }
echo
for target in 0 1; do
    disk=$(at $target)
    cd /sys/block/$disk
    echo "=$target: $(tail -c +5 device/vpd_pg80), $(cat size) sectors, read-only $(cat ro)"
    echo written | dd of=/dev/$disk bs=512 seek=7 conv=fsync,sync 2>/dev/null || echo "=$target: cannot be written to"
done
for target in 2 3; do
    mount -t iso9660 -o ro /dev/$(at $target) /mnt
    echo "=$target: $(cat /mnt/name)"
    umount /mnt
done
poweroff -f
"#;

#[test]
fn scsi_disks_and_discs_are_on_the_qemu_engine() {
    let modules = ["virtio_pci", "virtio_scsi", "sd_mod", "sr_mod", "isofs"];
    let folder = need!(guest_with(SCSI, &modules, &[]));
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["a.raw", "b.raw"] {
        fs_err::File::create(path(name)).and_then(|file| file.set_len(1 << 20)).expect("a disk");
    }
    let output = Cli::from_env().limit(Duration::from_secs(300)).run([
        "run",
        "--engine=qemu",
        "--memory=256Mi",
        "--timeout=280s",
        "--kernel",
        &path("kernel"),
        "--initrd",
        &path("initrd"),
        "--cmdline=console=ttyS0 quiet",
        "--disk",
        &format!("{},bus=scsi,serial=A-1", path("a.raw")),
        "--disk",
        &format!("{},bus=scsi,readonly,serial=B-2", path("b.raw")),
        "--cdrom",
        &path("one.iso"),
        "--cdrom",
        &path("two.iso"),
    ]);
    assert_eq!(output.code, Some(0), "{output}");
    let said: String = output
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix('='))
        .map(|line| format!("{line}\n"))
        .collect();
    expect![[r#"
        0: A-1, 2048 sectors, read-only 0
        1: B-2, 2048 sectors, read-only 1
        1: cannot be written to
        2: disc one
        3: disc two
    "#]]
    .assert_eq(&said);
    let disk = fs_err::read(path("a.raw")).expect("the disk");
    assert_eq!(&disk[7 * 512..][..9], b"written\n\0");
    assert!(fs_err::read(path("b.raw")).expect("the disk").iter().all(|byte| *byte == 0));
}
