//! `bootyard inspect`.

use std::process::Command;

use bootyard_testkit::{Cli, Nginx, qemu_img, require_tool};
use expect_test::expect;

use crate::{check, small_qcow2};

#[test]
fn a_qcow2_is_described() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    small_qcow2(&cli, "small.qcow2");
    check(
        &cli,
        &["inspect", "small.qcow2"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            source        small.qcow2
            format        qcow2 version 3
            virtual size  8Mi (8388608 bytes)
            allocated     3840Ki (3932160 bytes)
            cluster size  64Ki
            compression   zlib
            volume size   8891925 bytes with a file system, 8388608 as a block device
            importable    yes
            ----- stderr -----
        "#]],
    );
    check(
        &cli,
        &["inspect", "small.qcow2", "--json"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            {"source":"small.qcow2","chain":["qcow2"],"format":"qcow2","variant":null,"content":null,"version":3,"virtual_size_bytes":8388608,"allocated_bytes":3932160,"cluster_size_bytes":65536,"sector_size_bytes":null,"compression":"zlib","refcount_bits":16,"features":[],"snapshots":[],"backing_file":null,"backing_format":null,"data_file":null,"extents":[],"notes":[],"volume_size_bytes":{"filesystem":8891925,"block":8388608},"refused":null}
            ----- stderr -----
        "#]],
    );
}

#[test]
fn a_disk_in_a_container_is_described() {
    if !require_tool("qemu-img") || !require_tool("gzip") {
        return;
    }
    let cli = Cli::from_env();
    small_qcow2(&cli, "small.qcow2");
    let mut gzip = Command::new("gzip");
    assert!(gzip.arg("small.qcow2").current_dir(cli.work()).status().unwrap().success());
    check(
        &cli,
        &["inspect", "small.qcow2.gz"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            source        small.qcow2.gz
            format        gzip → qcow2 version 3
            virtual size  8Mi (8388608 bytes)
            cluster size  64Ki
            compression   zlib
            volume size   8891925 bytes with a file system, 8388608 as a block device
            importable    yes
            ----- stderr -----
        "#]],
    );
}

#[test]
fn what_cannot_be_imported_is_described_all_the_same() {
    if !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    let path = cli.work().join("overlay.qcow2").display().to_string();
    qemu_img(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "base.raw", &path, "1G"]);
    check(
        &cli,
        &["inspect", "overlay.qcow2"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            source        overlay.qcow2
            format        qcow2 version 3
            virtual size  1Gi (1073741824 bytes)
            allocated     0 (0 bytes)
            cluster size  64Ki
            compression   zlib
            backing file  base.raw
            volume size   1138166334 bytes with a file system, 1073741824 as a block device
            importable    no: the image is an overlay over another file, `base.raw` (at offset 0x8)
            ----- stderr -----
        "#]],
    );
}

#[test]
fn over_http_it_costs_the_head_only() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let cli = Cli::from_env();
    small_qcow2(&cli, "small.qcow2");
    let nginx = Nginx::serve(cli.work());
    check(
        &cli,
        &["inspect", &nginx.url("small.qcow2")],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            source        http://127.0.0.1:$PORT/small.qcow2
            format        qcow2 version 3
            virtual size  8Mi (8388608 bytes)
            allocated     3840Ki (3932160 bytes)
            cluster size  64Ki
            compression   zlib
            volume size   8891925 bytes with a file system, 8388608 as a block device
            importable    yes
            ----- stderr -----
        "#]],
    );
    let sent: u64 = nginx.access_log().lines().filter_map(sent_bytes).sum();
    assert!(sent < 512 << 10, "{}", nginx.access_log());
}

/// The size of the body, behind the status, in nginx's log format.
fn sent_bytes(line: &str) -> Option<u64> {
    line.split('"').nth(2)?.split_whitespace().nth(1)?.parse().ok()
}
