//! A guest that none of us made: Alpine Linux as PyPI has it, a disk without a boot loader whose kernel
//! and initial RAM disk lie beside it. Its shell is typed to over the serial port, as somebody does who
//! looks into an image.

use std::path::{Path, PathBuf};
use std::process::Command;

use bootyard_testkit::{Cli, run, skip};
use expect_test::expect;

use crate::{need, xtask};

/// The folder of the image, its kernel and its initial RAM disk.
fn alpine() -> Option<PathBuf> {
    Some(xtask(&["alpine"])?.trim().into())
}

/// Boots the image to a shell, with the flags in `$@`, runs `$AT_PROMPT` and types. What begins with `=` is
/// said by the guest; what is typed is shown by it too, behind its prompt.
const TYPED: &str = r##"
cd "$(mktemp -d)" && export BOOTYARD_HOME="$PWD/home" && mkfifo typed && : >serial || exit 1
bootyard run "$@" --memory 192Mi --timeout 500s --net none \
    --cmdline 'console=ttyS0 quiet root=/dev/vda rootfstype=ext4 init=/bin/sh' <typed >serial 2>err &
machine=$!
exec 3>typed
tries=0
until grep -q '^~ #' serial; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ] || ! kill -0 $machine; then
        tail -n 40 serial err
        kill $machine
        exit 1
    fi
    sleep 0.5
done
eval "$AT_PROMPT"
cat >&3 <<'END'
echo "=release $(cat /etc/alpine-release)"
echo "=kernel $(uname -r)"
echo "=root $(grep -c ' / ext4 ro' /proc/mounts)"
mount -o remount,rw /
echo "apk $(apk info | wc -l)" >/file && sync
echo "=file $(cat /file)"
echo "=SSE4 $(grep -cw sse4_1 /proc/cpuinfo)"
poweroff -f
END
wait $machine
echo "exit $?"
grep -o '^=.*' serial | tr -d '\r'
"##;

#[test]
fn an_alpine_image_without_a_boot_loader_is_named_as_such() {
    let disk = need!(alpine()).join("disk.qcow2").display().to_string();
    let cli = Cli::from_env();
    let output = cli.run(["boot-entries", &disk]);
    assert_eq!(output.code, Some(7), "{output}");
    let text = output.stderr.replace(&disk, "alpine.qcow2");
    expect![[r#"
        error: nothing to boot was found on `alpine.qcow2` (whole disk: ext4 without a boot menu)
        hint: `bootyard run --engine qemu` boots through firmware as a PC would; `run --kernel` starts a kernel of yours
    "#]].assert_eq(&text);
}

#[test]
fn alpine_boots_on_the_qemu_engine() {
    let folder = need!(alpine());
    let bootyard = Cli::from_env().command(["--version"]).get_program().to_owned();
    let programs = Path::new(&bootyard).parent().expect("a folder of programs").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let [disk, kernel, initrd] = files(&folder);
    let mut shell = Command::new("sh");
    shell.args(["-c", TYPED, "sh", "--engine", "qemu", "--kernel", &kernel, "--initrd", &initrd]);
    shell.args(["--disk", &format!("{disk},ephemeral")]);
    shell.env("PATH", format!("{programs}:{path}")).env("TMPDIR", temporary.path());
    expect![[r#"
        exit 0
        =release 3.23.6
        =kernel 6.18.56-0-virt
        =root 1
        =file apk 59
        =SSE4 1
    "#]]
    .assert_eq(&run(&mut shell));
}

/// The lab's side: which huge pages the machine has while it runs, and that it leaves them.
const HUGE: &str = r#"
pages() { awk '/HugePages_Total/ { all = $2 } /HugePages_Free/ { print (all > $2) }' /proc/meminfo; }
echo 96 >/proc/sys/vm/nr_hugepages
AT_PROMPT='echo "huge pages in use: $(pages)"'
"#;

/// From huge pages, and with the least of a processor that x86-64 has.
#[test]
fn alpine_boots_on_the_kvm_engine() {
    let folder = need!(alpine());
    let [disk, kernel, initrd] = files(&folder);
    let script = format!("{HUGE}{TYPED}eval \"$AT_PROMPT\"\n");
    let size = ["lab", "--memory", "1280", "--cpus", "1"];
    let inside = ["--file", &disk, "--file", &kernel, "--file", &initrd];
    let flags = ["--engine", "kvm", "--hugepages", "2Mi", "--cpu-model", "minimal"];
    let paths = ["--kernel", "/kernel", "--initrd", "/initrd", "--disk", "/disk.qcow2,ephemeral"];
    let command = ["--", "sh", "-c", &script, "sh"];
    let printed = need!(xtask(&[&size[..], &inside, &command, &flags, &paths].concat()));
    expect![[r#"
        huge pages in use: 1
        exit 0
        =release 3.23.6
        =kernel 6.18.56-0-virt
        =root 1
        =file apk 59
        =SSE4 0
        huge pages in use: 0
    "#]]
    .assert_eq(&printed.replace('\r', ""));
}

fn files(folder: &Path) -> [String; 3] {
    ["disk.qcow2", "kernel", "initrd"].map(|name| folder.join(name).display().to_string())
}
