//! The command line as its user sees it: standard output, standard error and exit code of the real
//! binary in an environment of its own. `UPDATE_EXPECT=1` rewrites what is expected.
#![expect(clippy::disallowed_methods, reason = "the oracles are other programs")]

mod boot_entries;
mod clone;
mod config_disk;
mod control;
mod create;
mod disks;
mod faults;
mod import;
mod inspect;
mod lint;
mod run;
mod seed;
mod seed_build;
mod seed_show;
mod usage;
mod validate;
mod volume;

use bootyard_testkit::{Cli, qemu_img, sparse_image};
use expect_test::Expect;

/// Runs `bootyard` with these words, and compares all that it printed.
#[track_caller]
fn check(cli: &Cli, arguments: &[&str], expected: &Expect) {
    expected.assert_eq(&cli.run(arguments).to_string());
}

/// A qcow2 of 8 MiB, with holes, in the working directory.
fn small_qcow2(cli: &Cli, name: &str) {
    let raw = cli.root().join("small.raw");
    sparse_image(&raw, 8 << 20, 1);
    let target = cli.work().join(name);
    let [raw, target] = [raw, target].map(|path| path.display().to_string());
    qemu_img(["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &target]);
}
