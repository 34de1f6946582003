//! `bootyard volume` and `storage-class`: many processes at one store, kills in every state, stores
//! that are full or cannot be written.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bootyard_testkit::{Cli, Output, require_tool, run};
use expect_test::expect;

use crate::check;

fn blank(cli: &Cli, name: &str, more: &[&str]) -> Output {
    cli.run([&["create", "blank", "--name", name, "--size", "1Mi"], more].concat())
}

fn ok(output: &Output) {
    assert_eq!(output.code, Some(0), "{output}");
}

/// The names that `volume ls` lists.
fn listed(cli: &Cli) -> BTreeSet<String> {
    let output = cli.run(["volume", "ls"]);
    ok(&output);
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    output.stdout.lines().skip(1).map(name).collect()
}

/// Everything in the store's folder of volumes.
fn left(cli: &Cli) -> Vec<String> {
    let Ok(entries) = fs_err::read_dir(cli.store().join("volumes")) else { return Vec::new() };
    let name = |entry: fs_err::DirEntry| entry.file_name().into_string().expect("a plain name");
    entries.map(|entry| name(entry.expect("an entry"))).collect()
}

#[test]
fn volumes_are_listed_resized_and_removed() {
    let cli = Cli::from_env();
    ok(&blank(&cli, "web", &["--access-mode", "RWX,ROX"]));
    ok(&blank(&cli, "db", &["--output-format", "qcow2"]));
    check(
        &cli,
        &["volume", "resize", "db", "4Gi"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            resized db from 1Mi to 4Gi
            ----- stderr -----
        "#]],
    );
    check(
        &cli,
        &["volume", "ls"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            NAME  SIZE  FORMAT  CLASS  MODE        ACCESS   STATE
            db    4Gi   qcow2   local  Filesystem  RWO      ready
            web   1Mi   raw     local  Filesystem  RWX,ROX  ready
            ----- stderr -----
        "#]],
    );
    check(
        &cli,
        &["volume", "resize", "db", "1Gi"],
        &expect![[r#"
            exit code: 6
            ----- stdout -----

            ----- stderr -----
            error: volume `db` has 4Gi, and does not shrink to 1Gi
            hint: shrink the file systems in it, and copy it with its own tools; or name a size of at least 4Gi"#]],
    );
    check(
        &cli,
        &["volume", "rm", "db", "web", "db"],
        &expect![[r#"
            exit code: 6
            ----- stdout -----

            ----- stderr -----
            error: there is no volume `db`
            hint: make it: `bootyard import SOURCE --name db`"#]],
    );
    assert_eq!(left(&cli), [""; 0]);
}

#[test]
fn what_no_class_can_give_is_one_error() {
    let cli = Cli::from_env();
    for (flags, code, said) in [
        (["--storage-class", "fast"], 2, "there is no storage class `fast`"),
        (["--volume-mode", "Block"], 2, "class `local` has Filesystem volumes only"),
        (["--access-mode", "RWY"], 2, "unknown access mode `RWY`; expected ReadWriteOnce (RWO)"),
        (
            ["--volume-mode", "block"],
            2,
            "unknown volume mode `block`; expected Filesystem or Block",
        ),
    ] {
        let output = blank(&cli, "v", &flags);
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.contains(said), "{output}");
    }
    let output = cli.run(["import", "blank", "--size", "1Mi", "--to", "x", "--access-mode", "RWO"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("`--access-mode` is for volumes of the store"), "{output}");
    assert_eq!(left(&cli), [""; 0]);
}

#[test]
fn a_clusters_files_decide_what_nobody_asked_for() {
    let cli = Cli::from_env();
    let defaults = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: \
                    kubevirt-storage-class-defaults\ndata:\n  accessMode: ReadOnlyMany\n  \
                    ceph.volumeMode: Block\n";
    fs_err::write(cli.work().join("defaults.yaml"), defaults).unwrap();
    check(
        &cli,
        &["storage-class", "apply", "-f", "defaults.yaml"],
        &expect![[r#"
            exit code: 0
            ----- stdout -----
            applied defaults of storage classes (ceph not here yet)
            ----- stderr -----
        "#]],
    );
    let profile = "apiVersion: cdi.kubevirt.io/v1beta1\nkind: StorageProfile\nmetadata:\n  name: \
                   local\nspec:\n  claimPropertySets:\n  - accessModes: [ReadWriteMany]\n";
    let access = |name: &str, flags: &[&str]| {
        ok(&blank(&cli, name, flags));
        let shown = cli.run(["volume", "show", name]).stdout;
        let line = shown.lines().find(|line| line.starts_with("  class")).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(access("a", &[]), "ROX");
    fs_err::write(cli.work().join("profile.yaml"), profile).unwrap();
    ok(&cli.run(["storage-class", "apply", "-f", "profile.yaml"]));
    assert_eq!(access("b", &[]), "RWX");
    assert_eq!(access("c", &["--access-mode", "ReadWriteOnce"]), "RWO");
    fs_err::write(cli.work().join("bad.yaml"), profile.replace("Many", "Some")).unwrap();
    let output = cli.run(["storage-class", "apply", "-f", "bad.yaml"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("unknown access mode `ReadWriteSome`"), "{output}");
}

#[test]
fn a_kill_in_any_state_leaves_what_is_cleaned() {
    let cli = Cli::from_env();
    let killed = |point: &str, arguments: &[&str]| {
        let output = cli.command(arguments).env("BOOTYARD_STOP_AT", point).output().unwrap();
        assert_eq!(output.status.code(), None, "{point}: {output:?}");
    };
    let make = ["create", "blank", "--name", "v", "--size", "1Mi"];
    for (point, arguments, is_there) in [
        ("made", &make[..], false),
        ("registered", &make, false),
        ("before-name", &make, false),
        ("named", &make, true),
        ("grown", &["volume", "resize", "v", "8Mi"], true),
        ("removing", &["volume", "rm", "v"], false),
        ("removed", &["volume", "rm", "v"], false),
    ] {
        for repair in [true, false] {
            // What is to be changed has to be there.
            let before = listed(&cli).contains("v");
            if arguments[0] == "volume" && !before {
                ok(&blank(&cli, "v", &[]));
            } else if arguments[0] == "create" && before {
                ok(&cli.run(["volume", "rm", "v"]));
            }
            killed(point, arguments);
            if repair {
                ok(&cli.run(["volume", "verify", "--repair"]));
                let again = cli.run(["volume", "verify"]);
                assert_eq!((again.code, again.stdout.as_str()), (Some(0), ""), "{point}");
            }
            assert_eq!(listed(&cli).contains("v"), is_there, "{point}");
            // Without a repair, the next command under the name does the same.
            if !is_there {
                ok(&blank(&cli, "v", &[]));
            }
            ok(&cli.run(["volume", "rm", "v"]));
            ok(&cli.run(["volume", "verify", "--repair"]));
            assert_eq!(left(&cli), [""; 0], "{point}");
        }
    }
}

/// Eight processes at a time do what they like with few names, and each keeps one of its own.
fn hammer(time: Duration) {
    let cli = Cli::from_env();
    let (cli, end) = (&cli, Instant::now() + time);
    let worker = |number: u32| {
        let (mut state, mut done) = (number + 1, 0);
        let own = format!("own-{number}");
        ok(&blank(cli, &own, &[]));
        while Instant::now() < end {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let name = format!("shared-{}", (state >> 8) % 3);
            let output = match (state >> 16) % 8 {
                0..=2 => blank(cli, &name, &[]),
                3 => blank(cli, &name, &["--output-format", "qcow2"]),
                4 => cli.run(["volume", "rm", &name]),
                5 => cli.run(["volume", "resize", &name, "2Mi"]),
                6 => cli.run(["volume", "ls", "--all", "--json"]),
                _ => cli.run(["volume", "show", &name]),
            };
            let expected =
                ["exists", "there is no volume", "in use", "is making volume", "another import"];
            let is_race =
                output.code == Some(6) && expected.iter().any(|text| output.stderr.contains(text));
            assert!(output.code == Some(0) || is_race, "{output}");
            ok(&cli.run(["volume", "show", &own]));
            done += 1;
        }
        done
    };
    let done: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || worker(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker")).sum()
    });
    assert!(done > 16, "{done}");
    let names = listed(cli);
    assert!((0..8).all(|number| names.contains(&format!("own-{number}"))), "{names:?}");
    let verdict = cli.run(["volume", "verify", "--deep"]);
    assert_eq!(verdict.code, Some(0), "{verdict}");
    let folders: BTreeSet<String> = left(cli).into_iter().collect();
    assert_eq!(folders, names);
}

/// Three seconds, or as many as `$BOOTYARD_HAMMER_SECONDS` says.
#[test]
fn eight_processes_lose_nothing() {
    let seconds = std::env::var("BOOTYARD_HAMMER_SECONDS").ok().and_then(|text| text.parse().ok());
    hammer(Duration::from_secs(seconds.unwrap_or(3)));
}

/// A file system of its own for the store, until it is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    /// `None` where nothing can be mounted.
    fn new(folder: &Path, size: &str) -> Option<Self> {
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "store"]).arg(folder).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        mounted.then(|| Self(folder.to_owned()))
    }

    fn remount(&self, option: &str) {
        let folder = self.0.to_str().expect("a plain path");
        run(Command::new("mount").args(["-o", &format!("remount,{option}"), folder]));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_read_only_store_is_read() {
    let cli = Cli::from_env();
    let Some(mounted) = Mounted::new(&cli.store(), "16m") else {
        bootyard_testkit::skip!("nothing can be mounted");
    };
    ok(&blank(&cli, "v", &[]));
    let shown = cli.run(["volume", "show", "v"]);
    mounted.remount("ro");
    assert_eq!(cli.run(["volume", "show", "v"]), shown);
    assert_eq!(listed(&cli), BTreeSet::from(["v".to_owned()]));
    ok(&cli.run(["volume", "verify", "--deep"]));
    for arguments in [
        &["volume", "rm", "v"][..],
        &["volume", "resize", "v", "1Gi"],
        &["create", "blank", "--name", "w", "--size", "1Mi"],
        &["volume", "verify", "--repair"],
        &["storage-class", "set-default", "local"],
    ] {
        let output = cli.run(arguments);
        assert_eq!(output.code, Some(6), "{output}");
        let said = "error: the store `$TEST_ENV/store` is read-only\nhint: see how it is mounted";
        assert!(output.stderr.starts_with(said), "{output}");
    }
}

#[test]
fn a_full_store_loses_nothing() {
    let cli = Cli::from_env();
    let Some(_mounted) = Mounted::new(&cli.store(), "8m") else {
        bootyard_testkit::skip!("nothing can be mounted");
    };
    ok(&blank(&cli, "v", &[]));
    let output = cli.run(["create", "blank", "--name", "w", "--size", "32Mi", "--preallocation"]);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("no space for"), "{output}");
    // Now that there is not even room for a row.
    let filler = cli.store().join("filler");
    let full = fs_err::write(&filler, vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let output = blank(&cli, "x", &[]);
    assert_eq!(output.code, Some(6), "{output}");
    assert!(output.stderr.contains("df -h"), "{output}");
    assert_eq!(listed(&cli), BTreeSet::from(["v".to_owned()]));
    fs_err::remove_file(filler).unwrap();
    ok(&blank(&cli, "x", &[]));
    assert_eq!(cli.run(["volume", "verify"]).stdout, "");
}

#[test]
fn block_volumes_are_on_loop_devices_of_both_sectors() {
    if !require_tool("losetup") {
        return;
    }
    let cli = Cli::from_env();
    for sectors in ["512", "4096"] {
        let folder = cli.root().join(format!("loops-{sectors}"));
        let class = format!("loop-{sectors}");
        let add = ["storage-class", "add", &class, "--driver", "loop", "--sector-size", sectors];
        ok(&cli.run([&add[..], &["--path", folder.to_str().unwrap()]].concat()));
        ok(&blank(&cli, "v", &["--storage-class", &class]));
        // Attached while it is used, here by a machine that finds nothing to boot.
        let output = cli.run(["run", "--disk", "v", "--engine", "qemu"]);
        assert!(matches!(output.code, Some(7 | 8)), "{output}");
        let attached = run(Command::new("losetup").arg("-j").arg(folder.join("v/disk.raw")));
        let device = attached.split(':').next().unwrap();
        if output.code == Some(7) {
            let size = |option: &str| {
                run(Command::new("blockdev").args([option, device])).trim().to_owned()
            };
            assert_eq!(
                (size("--getss").as_str(), size("--getsize64").as_str()),
                (sectors, "1048576")
            );
            ok(&cli.run(["volume", "resize", "v", "3Mi"]));
            assert_eq!(size("--getsize64"), "3145728");
        }
        ok(&cli.run(["volume", "verify", "--deep"]));
        ok(&cli.run(["volume", "rm", "v"]));
        ok(&cli.run(["storage-class", "rm", &class]));
    }
}

#[test]
fn a_mounted_volume_is_left_alone() {
    if !["losetup", "mkfs.ext4", "mount", "umount"].into_iter().all(require_tool) {
        return;
    }
    let cli = Cli::from_env();
    let folder = cli.root().join("loops");
    let add = ["storage-class", "add", "loop", "--driver", "loop", "--path"];
    ok(&cli.run([&add[..], &[folder.to_str().unwrap()]].concat()));
    ok(&blank(&cli, "v", &["--storage-class", "loop"]));
    let disk = folder.join("v/disk.raw");
    run(Command::new("mkfs.ext4").arg("-q").arg(&disk));
    let device = run(Command::new("losetup").args(["--find", "--show", "--nooverlap"]).arg(&disk));
    let (device, point) = (device.trim(), cli.work().join("point"));
    fs_err::create_dir(&point).unwrap();
    run(Command::new("mount").arg(device).arg(&point));
    let used: [&[&str]; 3] =
        [&["volume", "rm", "v"], &["volume", "resize", "v", "3Mi"], &["clone", "v", "w"]];
    let outputs = used.map(|arguments| cli.run(arguments));
    let listed = cli.run(["volume", "ls"]);
    run(Command::new("umount").arg(&point));
    for output in outputs {
        assert_eq!(output.code, Some(6), "{output}");
        assert!(output.stderr.contains(&format!("block device `{device}` is in use")), "{output}");
    }
    assert!(listed.stdout.contains("ready"), "{listed}");
    ok(&cli.run(["volume", "rm", "v"]));
    assert_eq!(run(Command::new("losetup").arg("-j").arg(&disk)), "");
}
