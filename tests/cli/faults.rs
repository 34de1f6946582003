//! A disk below the store that fails: strace makes single calls of the system fail with EIO.

use std::process::Command;

use bootyard_testkit::{Cli, pseudo_random, require_tool, sha256_file};

/// What stores something or makes it durable.
const CALLS: [&str; 5] = ["pwrite64", "fdatasync", "fsync", "ftruncate", "linkat"];
/// Which of these calls fails: an early one, and ones in the middle of the work.
const WHICH: [u32; 4] = [1, 2, 5, 11];

/// Runs `bootyard` with the call that is the `which`th of its name failing.
fn failing(cli: &Cli, arguments: &[&str], call: &str, which: u32) -> Option<i32> {
    let command = cli.command(arguments);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    traced.args(["-e", &format!("inject={call}:error=EIO:when={which}")]);
    traced.arg(command.get_program()).args(command.get_args()).env_clear();
    traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    traced.current_dir(command.get_current_dir().expect("a folder"));
    let output = traced.output().expect("strace starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(!said.contains("panicked"), "{call} {which}: {said}");
    assert!(code == Some(0) || said.contains("error: "), "{call} {which}: {code:?} {said}");
    code
}

/// Whether the volume is there; if it is, it is whole.
fn is_whole(cli: &Cli, name: &str, expected: &str) -> bool {
    let shown = cli.run(["volume", "show", name, "--json"]);
    if shown.code != Some(0) {
        return false;
    }
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).expect("an object");
    let path = shown["path"].as_str().expect("a path").to_owned();
    let path = path.replace("$TEST_ENV", &cli.root().display().to_string());
    assert_eq!(sha256_file(path), expected);
    true
}

#[test]
fn what_is_stored_on_a_failing_disk_is_whole_or_not_there() {
    if !require_tool("strace") {
        return;
    }
    let cli = Cli::from_env();
    let disk = cli.work().join("disk.raw");
    fs_err::write(&disk, pseudo_random(3 << 20, 1)).expect("a disk");
    let expected = sha256_file(&disk);
    let output = cli.run(["import", "disk.raw", "--name", "golden"]);
    assert_eq!(output.code, Some(0), "{output}");
    let mut failed = 0;
    for call in CALLS {
        for which in WHICH {
            for arguments in [&["import", "disk.raw", "--name", "v"][..], &["clone", "golden", "v"]]
            {
                let code = failing(&cli, arguments, call, which);
                failed += u32::from(code != Some(0));
                let is_there = is_whole(&cli, "v", &expected);
                assert!(is_there || code != Some(0), "{call} {which}: {arguments:?} is lost");
                if !is_there {
                    // The same command begins or goes on.
                    let output = cli.run(arguments);
                    assert_eq!(output.code, Some(0), "{call} {which}: {output}");
                    assert!(is_whole(&cli, "v", &expected), "{call} {which}");
                }
                failing(&cli, &["volume", "rm", "v"], call, which);
                let output = cli.run(["volume", "verify", "--repair"]);
                assert!(!output.stdout.contains("damage"), "{call} {which}: {output}");
                let _ = cli.run(["volume", "rm", "v"]);
                assert!(!cli.store().join("volumes/v").exists(), "{call} {which}");
            }
        }
    }
    assert!(failed > 10, "only {failed} commands have noticed");
    assert!(is_whole(&cli, "golden", &expected));
}
