//! Imports in a small memory cgroup, where the page cache counts: what is written has to leave it in
//! time, and nothing else may grow.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use bootyard_testkit::{Cli, Nginx, pseudo_random, qemu_img, require_tool, run, sha256_file};

/// Where cgroups of the second version are, if they are the only ones, and those of the first with
/// memory (cgroups(7)).
const CGROUPS: &str = "/sys/fs/cgroup";
const CGROUPS_1: &str = "/sys/fs/cgroup/memory";
const LIMIT: &str = "128M";
/// What is imported: much more than the limit.
const DISK: u64 = 1100 << 20;
const PART: u64 = 50 << 20;
/// Slower than this is thrashing.
const BYTES_PER_SECOND_MIN: f64 = (8 << 20) as f64;

/// A cgroup with little memory and no swap; removed when dropped.
struct Cgroup {
    path: PathBuf,
    /// Where it counts the processes that were killed.
    events: &'static str,
}

impl Cgroup {
    /// `None` where this machine has none with memory, or we may not make one.
    fn new() -> Option<Self> {
        let controllers = fs_err::read_to_string(Path::new(CGROUPS).join("cgroup.controllers"));
        let has_memory = controllers.is_ok_and(|all| all.split_whitespace().any(|c| c == "memory"));
        let (parent, limit, swap, events) = match has_memory {
            true => (CGROUPS, "memory.max", "memory.swap.max", "memory.events"),
            false => {
                (CGROUPS_1, "memory.limit_in_bytes", "memory.swappiness", "memory.oom_control")
            }
        };
        let path = Path::new(parent).join(format!("bootyard-test-{}", std::process::id()));
        fs_err::create_dir(&path).ok()?;
        let group = Self { path, events };
        fs_err::write(group.path.join(limit), LIMIT).ok()?;
        // Not there where the kernel has no swap.
        let _ = fs_err::write(group.path.join(swap), "0");
        Some(group)
    }

    /// The same command, run within.
    fn within(&self, command: &Command, script: &Path) -> Command {
        let procs = self.path.join("cgroup.procs");
        let text = format!("#!/bin/sh\necho $$ > '{}' || exit 99\nexec \"$@\"\n", procs.display());
        fs_err::write(script, text).expect("a script");
        fs_err::set_permissions(script, Permissions::from_mode(0o755)).expect("it can be run");
        let mut inside = Command::new(script);
        inside.arg(command.get_program()).args(command.get_args()).env_clear();
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.current_dir(command.get_current_dir().expect("a folder"));
        inside
    }

    /// How many processes were killed for want of memory.
    fn killed(&self) -> u64 {
        let events = fs_err::read_to_string(self.path.join(self.events)).expect("its events");
        let line = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|count| count.parse().ok()).expect("a count")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs_err::remove_dir(&self.path);
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "tells the reader of the log why it did not run")]
fn an_import_needs_no_more_than_a_small_cgroup_has() {
    if !require_tool("nginx") || !require_tool("qemu-img") {
        return;
    }
    let Some(group) = Cgroup::new() else {
        // No package brings them, so that their absence is no fault of who runs the tests.
        eprintln!("skipped: no cgroups with memory");
        return;
    };
    // On a disk: what is written to a tmpfs never leaves the memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let raw = folder.path().join("disk.raw");
    let part = pseudo_random(PART as usize, 11);
    let mut file = fs_err::File::create(&raw).expect("a file");
    (0..DISK / PART)
        .for_each(|_| std::io::Write::write_all(&mut file, &part).expect("it is written"));
    let qcow2 = folder.path().join("disk.qcow2").display().to_string();
    let raw = raw.display().to_string();
    qemu_img(["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
    run(Command::new("sync").arg("-f").arg(folder.path()));
    let (nginx, cli, expected) = (Nginx::serve(folder.path()), Cli::from_env(), sha256_file(&raw));
    let target = folder.path().join("target").display().to_string();
    for name in ["disk.raw", "disk.qcow2"] {
        let url = nginx.url(name);
        let command = cli.command(["import", &url, "--to", &target, "--json"]);
        let started = Instant::now();
        let mut command = group.within(&command, &cli.root().join("within"));
        let output = command.output().expect("it starts");
        let rate = DISK as f64 / started.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {:?} {said}", output.status);
        assert_eq!(group.killed(), 0, "{name}");
        assert!(rate >= BYTES_PER_SECOND_MIN, "{name}: {rate:.0} bytes a second");
        assert_eq!(sha256_file(&target), expected, "{name}");
        fs_err::remove_file(&target).expect("it is removed");
    }
}
