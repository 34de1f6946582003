//! cloud-init itself, as an oracle: Debian's package, unpacked and not installed, since an installed
//! one configures the machine at its next start.
#![expect(
    clippy::disallowed_methods,
    reason = "test support names the running test and starts programs"
)]

use std::env;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Debian's Python with the modules of cloud-init, where `cargo xtask setup` unpacked them: in the
/// folder of what is built, of which the running test is a part. `None` if they are not there.
pub fn cloud_init() -> Option<Command> {
    let test = env::current_exe().ok()?;
    let folders = test.ancestors().skip(1);
    let modules = folders
        .map(|folder| folder.join("oracles/cloud-init/usr/lib/python3/dist-packages"))
        .find(|folder| folder.is_dir())?;
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-W", "ignore"]).env("PYTHONPATH", modules);
    Some(python)
}

/// What a program answers on its standard output.
///
/// # Panics
///
/// If it does not start or fails.
pub fn answer(command: &mut Command, question: &[u8]) -> Vec<u8> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(question).expect("the program reads all before it answers");
    drop(stdin);
    let output = child.wait_with_output().expect("a child can be waited for");
    assert!(output.status.success(), "{command:?}: {}", output.status);
    output.stdout
}
