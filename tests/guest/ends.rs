//! How guests end on our own machine, in the lab: power-off, and nothing to boot. A guest's restart
//! in place is not tried here: QEMU's emulation of nested virtualisation stands still when several
//! machines start in one lab.

use bootyard_testkit::{qemu_img, skip};

use crate::{guest, need, xtask};

/// Debian's initial RAM disk brings tools that end a guest at once, so that a run takes seconds.
/// Of the serial log only the number of kernels that started is shown.
const SCRIPT: &str = r#"
export BOOTYARD_HOME=/tmp/home
run() {
    name=$1
    shift
    bootyard run --engine kvm --timeout 90s "$@" >/tmp/log 2>/tmp/err
    echo "$name: exit $?, kernels started: $(grep -c 'Linux version' /tmp/log)"
}
bootyard doctor | head -n 1
run power-off --disk /dev/vda --cpus 2 --append rdinit=/bin/poweroff
grep -o 'Brought up 1 node, 2 CPUs' /tmp/log
dd if=/dev/zero of=/tmp/empty bs=1M count=1 2>/dev/null
run nothing-to-boot --disk /tmp/empty
cat /tmp/err
"#;

#[test]
fn a_guests_end_is_the_exit_code() {
    let image = need!(guest());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let paths = ["disk.raw", "ends.sh"].map(|name| folder.path().join(name).display().to_string());
    let [disk, script] = &paths;
    qemu_img(["convert", "-O", "raw", &image.display().to_string(), disk]);
    fs_err::write(script, SCRIPT).expect("a script");
    let size = ["lab", "--memory", "2048", "--cpus", "1"];
    let lab = [&size[..], &["--disk", disk, "--file", script, "--", "sh", "/ends.sh"]].concat();
    let printed = need!(xtask(&lab));
    expect_test::expect![[r#"
        kvm        ok       KVM runs ordinary kernels
        power-off: exit 0, kernels started: 1
        Brought up 1 node, 2 CPUs
        nothing-to-boot: exit 7, kernels started: 0
        empty: engine kvm (asked for)
        empty: running
        error: cannot boot from disk `/tmp/empty`
          caused by: nothing to boot was found (whole disk: no file system that is known)
        hint: use `--engine qemu`, which boots through firmware as a PC would
    "#]]
    .assert_eq(&printed.replace('\r', ""));
}
