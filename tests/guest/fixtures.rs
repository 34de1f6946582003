//! Disks that are laid out as distributions lay out theirs: what the boot loader says of them, and
//! that each of them boots.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bootyard_testkit::{Cli, skip};
use expect_test::expect;

use crate::{need, xtask};

/// Boots the disks in the order in which they are given, each with as little as it needs, and then
/// the kernel alone.
const BOOT: &str = r#"
export BOOTYARD_HOME=/tmp/home
boot() {
    bootyard run --engine kvm --memory 192Mi --timeout 120s "$@" >/tmp/serial 2>/tmp/err </dev/null
    echo "exit $? $(grep -o 'FIXTURE.*' /tmp/serial | tr -d '\r')"
    grep -q FIXTURE /tmp/serial || tail -n 5 /tmp/err /tmp/serial
}
for disk in /dev/vd?; do boot --disk $disk; done
boot --kernel /kernel --initrd /initrd --cmdline "console=ttyS0 fixture=given" --append appended
boot --disk /dev/vdc --entry 0a-6.10.3-200.x86_64 --append chosen
bootyard run --engine kvm --disk /dev/vdc --entry 1 2>&1 </dev/null | tail -n 2
"#;

/// The folder of the disks.
fn fixtures() -> Option<PathBuf> {
    Some(xtask(&["fixtures"])?.trim().into())
}

fn disks(folder: &Path) -> Vec<PathBuf> {
    let files = fs_err::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    let mut disks: Vec<PathBuf> = files.filter(|path| path.extension().is_some()).collect();
    disks.sort();
    disks
}

#[test]
fn every_layout_boots_on_the_kvm_engine() {
    let folder = need!(fixtures());
    let script = tempfile::NamedTempFile::with_suffix(".sh").expect("a file");
    fs_err::write(script.path(), BOOT).expect("a script");
    let mut words: Vec<String> = ["lab", "--memory", "1024"].map(str::to_owned).to_vec();
    for disk in disks(&folder) {
        words.extend(["--disk".to_owned(), disk.display().to_string()]);
    }
    for file in [folder.join("kernel"), folder.join("initrd"), script.path().to_owned()] {
        words.extend(["--file".to_owned(), file.display().to_string()]);
    }
    let name = script.path().file_name().expect("a name").to_string_lossy();
    words.extend(["--", "sh", &format!("/{name}")].map(str::to_owned));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let printed = need!(xtask(&words)).replace('\r', "");
    expect![[""]].assert_eq(&printed);
}

#[test]
fn every_layout_is_listed_as_its_loader_would_show_it() {
    let folder = need!(fixtures());
    let mut text = String::new();
    for disk in disks(&folder) {
        let name = disk.file_stem().expect("a name").to_string_lossy();
        let output = Cli::new().run(["boot-entries", &disk.display().to_string()]);
        let _ = writeln!(text, "{name}:\n{}", output.stdout);
    }
    expect![[""]].assert_eq(&text);
}
