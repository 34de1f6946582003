//! Runs the real `bootyard` in an environment of its own, and shows what it printed in a form that
//! is the same on every machine.
#![expect(clippy::disallowed_methods, reason = "starts the binary under test and waits for it")]

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a command may take before the test fails instead of hanging.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// A fixed search path: the engine and the oracles are found, the developer's tools are not.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The binary with an empty home, store and working directory, removed when dropped.
#[derive(Debug)]
pub struct Cli {
    binary: PathBuf,
    root: TempDir,
    variables: Vec<(String, String)>,
    limit: Duration,
}

/// What a command printed and how it ended. `Display` is the text for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Output {
    /// Standard output, with this run's paths and ports replaced.
    pub stdout: String,
    /// Standard error, with this run's paths and ports replaced.
    pub stderr: String,
    /// The exit code; `None` if a signal ended the process.
    pub code: Option<i32>,
}

impl Cli {
    /// Finds `bootyard` beside the running test: `target/PROFILE/bootyard`.
    ///
    /// # Panics
    ///
    /// If it was not built; the message says how to.
    pub fn from_env() -> Self {
        let test = env::current_exe().expect("the path of the running test");
        let profile =
            test.parent().and_then(Path::parent).expect("tests run in target/PROFILE/deps");
        let binary = profile.join("bootyard");
        assert!(
            binary.is_file(),
            "`{}` is not there; build it with `cargo build -p bootyard`",
            binary.display()
        );
        Self::new(binary)
    }

    /// Takes the binary at this path, such as `env!("CARGO_BIN_EXE_bootyard")`.
    ///
    /// # Panics
    ///
    /// If no temporary directory can be made.
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        let root = crate::temp_dir();
        for name in ["home", "tmp", "store", "work"] {
            fs_err::create_dir(root.path().join(name)).expect("a directory of the environment");
        }
        Self { binary: binary.into(), root, variables: Vec::new(), limit: RUN_LIMIT }
    }

    /// Sets one more variable for the commands that follow.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Allows a command more time, or less, than two minutes.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The directory above all others: `$TEST_ENV` in outputs.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// `BOOTYARD_HOME`: where volumes go.
    pub fn store(&self) -> PathBuf {
        self.root.path().join("store")
    }

    /// The working directory of the commands.
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    /// Runs the binary to its end.
    ///
    /// # Panics
    ///
    /// If it cannot be started, or is not done in time: then it is killed and what it printed is
    /// shown.
    pub fn run<I>(&self, arguments: I) -> Output
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let stdout = collect(child.stdout.take().expect("a piped output"));
        let stderr = collect(child.stderr.take().expect("a piped output"));
        let code = wait(&mut child, self.limit);
        let [stdout, stderr] = [stdout, stderr].map(|text| self.normalise(&joined(text)));
        match code {
            Ok(code) => Output { stdout, stderr, code },
            Err(NotDone) => panic!("{command:?} ran over {:?}\n{stdout}\n{stderr}", self.limit),
        }
    }

    /// The command as [`Cli::run`] starts it, for tests that start, stop or feed it themselves.
    pub fn command<I>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .current_dir(self.work())
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .env("HOME", self.root().join("home"))
            .env("TMPDIR", self.root().join("tmp"))
            .env("BOOTYARD_HOME", self.store())
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Replaces what differs from run to run: this environment's directories by `$TEST_ENV`, the
    /// folder of the binary by `$TARGET`, ports on loopback by `$PORT`.
    pub fn normalise(&self, text: &str) -> String {
        let root = self.root().to_string_lossy();
        let text = text.replace(root.as_ref(), "$TEST_ENV");
        let text = match self.binary.parent() {
            Some(folder) => text.replace(folder.to_string_lossy().as_ref(), "$TARGET"),
            None => text,
        };
        mask_ports(&text)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => writeln!(f, "exit code: {code}")?,
            None => writeln!(f, "ended by a signal")?,
        }
        writeln!(f, "----- stdout -----\n{}", self.stdout.trim_end_matches('\n'))?;
        write!(f, "----- stderr -----\n{}", self.stderr.trim_end_matches('\n'))
    }
}

/// Reads a pipe on a thread, so that a full one never blocks the child.
fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

fn joined(pipe: JoinHandle<io::Result<Vec<u8>>>) -> String {
    let bytes = pipe.join().expect("a reader that does not panic").expect("a readable pipe");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The process did not end within the limit, and was killed.
struct NotDone;

fn wait(child: &mut Child, limit: Duration) -> Result<Option<i32>, NotDone> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("a child to wait for") {
            return Ok(status.code());
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(NotDone);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// `127.0.0.1:43211` becomes `127.0.0.1:$PORT`.
fn mask_ports(text: &str) -> String {
    const HOST: &str = "127.0.0.1:";
    let mut parts = text.split(HOST);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        masked.push_str(HOST);
        masked.push_str(if rest.len() < part.len() { "$PORT" } else { "" });
        masked.push_str(rest);
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell stands for the binary: what matters here is its environment.
    fn shell(script: &str) -> Output {
        Cli::new("/bin/sh").env("EXTRA", "1").run(["-c", script])
    }

    #[test]
    fn the_environment_is_empty_but_for_ours() {
        let output =
            shell("env | cut -d= -f1 | grep -v -e PWD -e _ -e SHLVL | sort | tr '\\n' ' '");
        assert_eq!(output.stdout, "EXTRA HOME PATH TMPDIR ");
        let output = shell("echo $BOOTYARD_HOME $LC_ALL $HOME $TMPDIR; pwd");
        assert_eq!(
            output.stdout,
            "$TEST_ENV/store C $TEST_ENV/home $TEST_ENV/tmp\n$TEST_ENV/work\n"
        );
    }

    #[test]
    fn an_output_reads_as_a_snapshot() {
        let output = shell("echo at http://127.0.0.1:4321/x; echo 127.0.0.1: bad >&2; exit 3");
        assert_eq!(
            output.to_string(),
            "exit code: 3\n----- stdout -----\nat http://127.0.0.1:$PORT/x\n\
             ----- stderr -----\n127.0.0.1: bad"
        );
        assert_eq!(shell("kill -9 $$").code, None);
    }

    #[test]
    fn a_command_that_hangs_fails_its_test() {
        let hang = || {
            let cli = Cli::new("/bin/sh").limit(Duration::from_millis(100));
            let _ = cli.run(["-c", "exec sleep 60"]);
        };
        let panic = std::panic::catch_unwind(hang).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("ran over"));
    }
}
