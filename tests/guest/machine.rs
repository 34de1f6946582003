//! Debian on our own machine, in the lab, as somebody who works with it sees it: two processors, the
//! network in both directions, a pause, a restart in place, the power button; and what is left of its
//! disk when the machine is killed while it writes.

use std::path::{Path, PathBuf};
use std::process::Command;

use bootyard_testkit::{Cli, qemu_img, run, skip};

use crate::{guest, need, xtask};

/// The lab's side. Of everything only lines that are the same each time are said; the rest is in the
/// logs that follow a failure.
const LIFE: &str = r#"
export BOOTYARD_HOME=/tmp/home
mkdir -p /www /root /etc
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
echo "served by the host" >/www/page
httpd -p 127.0.0.1:8080 -h /www
chmod 600 /key
guest() {
    ssh -i /key -p 2222 -o ConnectTimeout=10 -o ServerAliveInterval=5 -o StrictHostKeyChecking=no \
        -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR debian@127.0.0.1 "$@" 2>>/tmp/ssh
}
# Waits for what the first argument's command says to differ from the second.
until_other() {
    tries=0
    while said=$($1) || true; [ -z "$said" ] || [ "$said" = "$2" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 60 ]; then
            echo "waited in vain: $1"
            tail -n 20 /tmp/ssh /tmp/err /tmp/serial
            exit 1
        fi
        sleep 5
    done
    echo "$said"
}
# The machine's own process, which is a child of the one that was started.
engine() {
    for process in /proc/[0-9]*; do
        tr '\0' ' ' <$process/cmdline | grep -q 'bootyard[ ]machine' && echo ${process#/proc/}
    done 2>/dev/null
}
boot_id() { guest cat /proc/sys/kernel/random/boot_id; }
# Hundredths of a second that the machine's process has run, for itself and for the kernel.
ticks() { cut -d' ' -f14,15 "/proc/$(engine)/stat" | tr ' ' + | xargs -I{} sh -c 'echo $(({}))'; }

bootyard run --engine kvm --disk /dev/vda --seed /dev/vdb --cpus 2 --memory 1Gi --timeout 900s \
    --net masquerade -p 127.0.0.1:2222:22 --control /tmp/control >/tmp/serial 2>/tmp/err </dev/null &
machine=$!
first=$(until_other boot_id "") || { echo "$first"; exit 1; }
guest cloud-init status --wait >/dev/null
echo "processors: $(guest nproc)"
echo "from the host: $(guest cat /var/lib/from-the-host)"
echo "address: $(guest ip -4 -oneline addr show scope global | grep -o 'inet [0-9./]*')"

bootyard control /tmp/control pause >/dev/null && before=$(ticks)
guest true && echo "a paused guest answered"
used=$(($(ticks) - before))
[ $used -lt 30 ] && echo "paused: idle" || echo "paused: ran for $used ticks"
bootyard control /tmp/control resume >/dev/null
echo "resumed: $(guest echo answers)"

guest sudo reboot
second=$(until_other boot_id "$first") || { echo "$second"; exit 1; }
echo "restarted: $(grep -c 'Linux version' /tmp/serial) kernels, engine process $(engine | wc -l)"

bootyard control /tmp/control power-button >/dev/null
wait $machine
echo "power button: exit $?"
grep -c 'reboot: Power down' /tmp/serial
"#;

#[test]
fn debian_lives_on_the_kvm_engine() {
    let image = need!(guest());
    let place = Place::new();
    let disk = place.path("disk.raw");
    qemu_img(["convert", "-O", "raw", &text(&image), &text(&disk)]);
    let (key, seed, script) = (place.path("key"), place.path("seed.iso"), place.path("life.sh"));
    let keygen = ["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"];
    run(Command::new("ssh-keygen").args(keygen).arg(&key));
    let user_data = place.path("user-data");
    let fetch =
        "#cloud-config\nruncmd:\n- curl -sS http://10.0.2.1:8080/page -o /var/lib/from-the-host\n";
    fs_err::write(&user_data, fetch).expect("a file");
    let build = ["seed", "build", "--hostname", "lives", "--ssh-key"];
    let paths = [key.with_extension("pub"), user_data, seed.clone()].map(|path| text(&path));
    let [public, user_data, iso] = &paths;
    let output =
        Cli::from_env().run([&build[..], &[public, "--user-data", user_data, "-o", iso]].concat());
    assert_eq!(output.code, Some(0), "{output}");
    fs_err::write(&script, LIFE).expect("a script");

    let ssh = which("ssh");
    let size = ["lab", "--memory", "2048", "--cpus", "1", "--timeout", "1000"];
    let disks = ["--disk", &text(&disk), "--disk", &format!("{iso},ro")];
    let files = ["--file", &text(&key), "--file", &text(&script), "--program", &ssh];
    let command = ["--", "sh", "/life.sh"];
    let printed = need!(xtask(&[&size[..], &disks, &files, &command].concat()));
    expect_test::expect![[r#"
        processors: 2
        from the host: served by the host
        address: inet 10.0.2.2/24
        paused: idle
        resumed: answers
        restarted: 2 kernels, engine process 1
        power button: exit 0
        1
    "#]]
    .assert_eq(&printed.replace('\r', ""));
}

/// The lab's side: the machine is killed in the middle of the guest's writing.
const KILLED: &str = r#"
export BOOTYARD_HOME=/tmp/home
# The machine's own process, which is a child of the one that was started.
engine() {
    for process in /proc/[0-9]*; do
        tr '\0' ' ' <$process/cmdline | grep -q 'bootyard[ ]machine' && echo ${process#/proc/}
    done 2>/dev/null
}
mkdir /disk && mount -t ext4 /dev/vda /disk
: >/tmp/serial
bootyard run --engine kvm --disk /disk/root.qcow2 --cpus 1 --memory 512Mi --timeout 300s \
    --append "$(cat /append)" >/tmp/serial 2>/tmp/err </dev/null &
tries=0
until [ "$(grep -c ^STORED /tmp/serial)" -ge 12 ]; do
    tries=$((tries + 1))
    [ $tries -gt 200 ] && echo "nothing is stored" && cat /tmp/err && tail -n 40 /tmp/serial && exit 1
    sleep 1
done
kill -9 $(engine)
wait $!
echo "exit $?"
# The last line may be cut off.
grep '^STORED' /tmp/serial | tail -n 2 | head -n 1 | tr -d '\r'
umount /disk
"#;

/// The guest's side: a system without any service that writes files, and says so once they are stored.
const LOAD: &str = r#"rw quiet init=/bin/sh -- -c "mount -o remount,rw / ; n=0 ; while : ; do n=$((n+1)) ; dd if=/dev/urandom of=/load.$((n%7)) bs=64k count=20 conv=fsync 2>/dev/null ; rm -f /load.$(((n+3)%7)) ; echo $n >/stored.new ; sync /stored.new ; mv /stored.new /stored ; sync ; echo STORED $n >/dev/ttyS0 ; done""#;

#[test]
fn a_disk_survives_the_death_of_its_machine_under_load() {
    let image = need!(guest());
    let place = Place::new();
    let folder = place.path("folder");
    fs_err::create_dir(&folder).expect("a folder");
    fs_err::copy(&image, folder.join("root.qcow2")).expect("a copy");
    let outer = place.path("outer.img");
    let mut mke2fs = tool("mke2fs");
    run(mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(&folder).arg(&outer).arg("1G"));
    let (append, script) = (place.path("append"), place.path("killed.sh"));
    fs_err::write(&append, LOAD).expect("a file");
    fs_err::write(&script, KILLED).expect("a script");
    let size = ["lab", "--memory", "1536", "--cpus", "1"];
    let files = ["--disk", &text(&outer), "--file", &text(&append), "--file", &text(&script)];
    let lab = [&size[..], &files, &["--", "sh", "/killed.sh"]].concat();
    let printed = need!(xtask(&lab)).replace('\r', "");
    let mut lines = printed.lines();
    assert_eq!(lines.next(), Some("exit 8"), "{printed}");
    let said = lines.next().and_then(|line| line.strip_prefix("STORED "));
    let said: u32 = said.and_then(|said| said.parse().ok()).unwrap_or_else(|| panic!("{printed}"));

    let qcow2 = place.path("root.qcow2");
    let dump = format!("dump /root.qcow2 {}", qcow2.display());
    run(tool("debugfs").args(["-R", &dump]).arg(&outer));
    // Clusters that were allocated and not yet linked are lost space; a broken table is not.
    let check = tool("qemu-img").args(["check"]).arg(&qcow2).output().expect("qemu-img");
    assert!(
        matches!(check.status.code(), Some(0 | 3)),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );

    let (raw, root) = (place.path("root.raw"), place.path("root.ext4"));
    qemu_img(["convert", "-O", "raw", &text(&qcow2), &text(&raw)]);
    cut_root(&raw, &root);
    // The journal is replayed, as the next mount would; then there must be nothing left to mend.
    let replay = tool("e2fsck").args(["-fp"]).arg(&root).output().expect("e2fsck");
    assert!(matches!(replay.status.code(), Some(0 | 1)), "{replay:?}");
    run(tool("e2fsck").args(["-fn"]).arg(&root));
    let stored = run(tool("debugfs").args(["-R", "cat /stored"]).arg(&root));
    let stored: u32 = stored.trim().parse().unwrap_or_else(|_| panic!("`/stored` is `{stored}`"));
    assert!(stored >= said, "the guest was told that {said} is stored, and {stored} is");
}

/// Copies the last partition, which holds the root file system, out of the disk.
fn cut_root(disk: &Path, root: &Path) {
    let table = run(tool("sfdisk").arg("--dump").arg(disk));
    let line = table.lines().find(|line| line.contains("name=\"root\"")).expect("a root partition");
    let field = |name: &str| -> String {
        let rest = line.split(name).nth(1).unwrap_or_else(|| panic!("no `{name}` in `{line}`"));
        rest.trim_start_matches([' ', '=']).chars().take_while(char::is_ascii_digit).collect()
    };
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", disk.display())).arg(format!("of={}", root.display()));
    dd.args(["bs=512", "conv=sparse", "status=none"]);
    run(dd.arg(format!("skip={}", field("start="))).arg(format!("count={}", field("size="))));
}

/// A folder for a test's files, with room for whole disks.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A program that may lie where only root's `PATH` leads.
fn tool(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn which(program: &str) -> String {
    run(Command::new("which").arg(program)).trim().to_owned()
}
