//! Runs programs. A failure names the whole command line, so that it can be tried by hand.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// How many lines of a program's log are shown when it fails.
const TAIL_LINES: usize = 30;

/// A command, found also in the folders that a user's `PATH` may lack.
pub(crate) fn cmd(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

/// A command that ends when we do, however we end.
pub(crate) fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = cmd("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// This cargo, in the repository, as if called from a shell. What an outer cargo or test runner says
/// of its own package is left out: build scripts take a change of it for a reason to build anew.
pub(crate) fn cargo() -> Command {
    let mut command = cmd(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::dirs::root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_MANIFEST", "CARGO_PKG_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Shows the command line, then runs it on our own terminal. Standard output is ours alone.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", line(command));
    command.stdout(std::io::stderr());
    let status = command.status().with_context(|| cannot_start(command))?;
    ensure!(status.success(), "`{}` failed: {status}", line(command));
    Ok(())
}

/// Shows the command line, runs it with its output in `log`, and shows the end of that on failure.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    eprintln!("$ {}", line(command));
    let file = fs_err::File::create(log)?.into_parts().0;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        eprintln!("{}", tail(log));
        bail!("`{}` failed: {status}; its output is in `{}`", line(command), log.display());
    }
    Ok(())
}

/// Runs it with its standard output on our own and in `log`, and says how it ended.
pub(crate) fn run_teed(command: &mut Command, log: &Path) -> Result<ExitStatus> {
    let mut copy = fs_err::File::create(log)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| cannot_start(command))?;
    let mut output = child.stdout.take().context("standard output is not piped")?;
    let mut buffer = [0; 4096];
    loop {
        let len = output.read(&mut buffer)?;
        if len == 0 {
            return Ok(child.wait()?);
        }
        copy.write_all(&buffer[..len])?;
        let mut terminal = std::io::stdout().lock();
        terminal.write_all(&buffer[..len])?;
        terminal.flush()?;
    }
}

/// Runs it silently and gives its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}: {}", line(command), output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote no UTF-8", line(command)))
}

/// Whether this program is there and answers.
pub(crate) fn answers(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether we may do everything.
pub(crate) fn is_root() -> Result<bool> {
    Ok(output(cmd("id").arg("-u"))?.trim() == "0")
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs_err::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// One word of a POSIX shell command.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`; `cargo xtask setup` installs what is needed", line(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for word in ["", "plain-1.0", "two words", "it's", "$HOME `id` \\ \" ;", "'", "ä\n"] {
            let echoed = output(cmd("sh").args(["-c", &format!("printf %s {}", quote(word))]));
            assert_eq!(echoed.unwrap(), word);
        }
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = output(cmd("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'echo why >&2; exit 3'` failed: exit status: 3: why");
    }
}
