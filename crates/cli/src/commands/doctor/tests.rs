//! What is said of hosts of every kind, made of files in a folder.

use std::path::Path;

use super::finding::State;
use super::*;

fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, HostFiles) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    }
    let host = HostFiles::at(root.path());
    (root, host)
}

/// Everything that is said of a host of these files.
fn said(files: &[(&str, &str)]) -> String {
    let (_root, host) = host(files);
    let findings = [
        host.processor(),
        host.memory(),
        host.huge_pages(),
        host.namespaces(),
        host.tun(),
        host.firmware(),
    ];
    findings.iter().map(Finding::to_string).collect()
}

#[test]
fn a_host_that_has_everything() {
    let text = said(&[
        (
            "proc/cpuinfo",
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9354\n\
             flags\t\t: fpu svm nx\n",
        ),
        ("sys/module/kvm_amd/parameters/nested", "1\n"),
        ("proc/meminfo", "MemTotal:       65536000 kB\nMemAvailable:   60000000 kB\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "100\n"),
        ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n"),
        ("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "0\n"),
        ("proc/sys/user/max_user_namespaces", "12345\n"),
        ("dev/net/tun", ""),
        ("usr/share/OVMF/OVMF_CODE_4M.fd", ""),
    ]);
    expect_test::expect![[r#"
        processor  ok       AMD EPYC 9354 (AuthenticAMD): SVM, nested on
        memory     ok       57.2Gi of 62.5Gi available
        hugepages  ok       100 of 512 pages of 2Mi free, 0 of 0 pages of 1Gi free
        userns     ok       allowed
        tun        ok       /dev/net/tun can be opened
        ovmf       ok       /usr/share/OVMF/OVMF_CODE_4M.fd
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_host_that_has_little() {
    let text = said(&[
        ("proc/cpuinfo", "vendor_id : GenuineIntel\nmodel name : Xeon\nflags : fpu hypervisor\n"),
        ("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n"),
        ("proc/sys/user/max_user_namespaces", "0\n"),
    ]);
    expect_test::expect![[r#"
        processor  limited  Xeon (GenuineIntel): no virtualisation, itself a guest
                            hint: turn nested virtualisation on in the hypervisor that this host runs on
        memory     limited  512Mi of 1.0Gi available
                            hint: end other programs, or give guests less with `--memory`
        hugepages  missing  0 of 0 pages of 2Mi free
                            hint: only for `run --hugepages`: `sysctl vm.nr_hugepages=512` sets aside 1 GiB
        userns     missing  forbidden: user.max_user_namespaces is 0
                            hint: `sysctl user.max_user_namespaces=100000`
        tun        missing  there is no /dev/net/tun; user networks do without it
                            hint: `modprobe tun`
        ovmf       missing  not installed; only QEMU's machines use it
                            hint: install it: `apt install ovmf`
    "#]]
    .assert_eq(&text);
}

#[test]
fn a_host_that_tells_nothing_is_no_error() {
    let text = said(&[]);
    assert!(text.lines().all(|line| !line.contains(" ok ")), "{text}");
}

#[test]
fn verdicts_on_kvm_have_states_and_remedies() {
    let why = || "why".to_owned();
    for (verdict, state) in [
        (KvmVerdict::Full, State::Ok),
        (KvmVerdict::Emulated { nanoseconds: 900 }, State::Limited),
        (KvmVerdict::Broken { step: "`hlt`", why: why() }, State::Missing),
        (KvmVerdict::Absent { why: why() }, State::Missing),
    ] {
        let finding = kvm(&verdict);
        assert_eq!((finding.state, finding.detail), (state, verdict.to_string()));
        assert_eq!(finding.remedy.is_some(), state != State::Ok);
    }
}

#[test]
fn the_space_is_that_of_the_nearest_folder_there_is() {
    let finding = host::space(Path::new("/tmp/no/such/folder"));
    assert!(finding.detail.ends_with(" free at /tmp/no/such/folder"), "{finding}");
}
