//! A real S3 server on loopback: SeaweedFS, one process with all its parts.
#![expect(clippy::disallowed_methods, reason = "starts a server and waits for it")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::nginx::free_port;
use crate::{run, skip};

/// How long a start may take on a busy machine; on an idle one it takes 4 s.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How often other ports are tried if somebody took a chosen one in between.
const STARTS: usize = 3;

/// Everybody may read this bucket.
const PUBLIC: &str = "public";

/// Starts the server, and ends it when our end of the pipe closes: also when the test is killed, or
/// keeps the server in a static that is never dropped.
const LIFELINE: &str = r#""$@" </dev/null & server=$!; read -r _; kill -9 $server; wait $server"#;

/// A running server with the buckets `private` and [`S3Server::PUBLIC`]; stopped when dropped.
#[derive(Debug)]
pub struct S3Server {
    shell: Child,
    port: u16,
    dir: TempDir,
}

impl S3Server {
    /// The access key that may do everything.
    pub const KEY: &str = "AKIABOOTYARDTEST";
    /// Its secret key.
    pub const SECRET: &str = "a/secret+key";
    /// The bucket that everybody may read.
    pub const PUBLIC: &str = PUBLIC;
    /// The bucket that only [`S3Server::KEY`] may read.
    pub const PRIVATE: &str = "private";

    /// Starts SeaweedFS.
    ///
    /// # Panics
    ///
    /// If it does not start; the message holds its log. Ask
    /// [`require_tool`](crate::require_tool) for `weed` and `curl` first.
    pub fn start() -> Self {
        for _ in 0..STARTS {
            if let Some(server) = Self::try_start() {
                for bucket in [Self::PRIVATE, Self::PUBLIC] {
                    server.request("PUT", &server.url(bucket), None);
                }
                return server;
            }
        }
        panic!("SeaweedFS did not start in {STARTS} attempts");
    }

    /// `http://127.0.0.1:PORT`, without a slash.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The URL of an object in path style: `path` is `BUCKET/KEY`.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint())
    }

    /// Puts a file into a bucket: `path` is `BUCKET/KEY`.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub fn put(&self, path: &str, file: &Path) {
        self.request("PUT", &self.url(path), Some(file));
    }

    /// What the server answers to a signed `GET` of `path`, as [`S3Server::url`] takes it.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub fn get(&self, path: &str) -> String {
        self.request("GET", &self.url(path), None)
    }

    fn request(&self, method: &str, url: &str, file: Option<&Path>) -> String {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail-with-body", "-X", method])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3"])
            .args(["--user", &format!("{}:{}", Self::KEY, Self::SECRET)])
            .args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
            // The parts of the server find each other a moment after the port is open.
            .args(["--retry", "20", "--retry-delay", "1", "--retry-all-errors", url]);
        if let Some(file) = file {
            curl.arg("-T").arg(file);
        }
        run(&mut curl)
    }

    fn try_start() -> Option<Self> {
        let dir = crate::temp_dir();
        let port = free_port();
        fs_err::write(dir.path().join("s3.json"), identities()).expect("the server's users");
        let log = fs_err::File::create(dir.path().join("log")).expect("a log");
        let program = skip::find_tool("weed").expect("SeaweedFS is installed");
        let mut shell = Command::new("sh")
            .args(["-c", LIFELINE, "lifeline"])
            .arg(program)
            .args(arguments(dir.path(), port))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.into_file())
            .env("HOME", dir.path())
            .spawn()
            .expect("a shell can be run");
        let server = |shell| Self { shell, port, dir };
        let deadline = Instant::now() + START_LIMIT;
        while !is_up(port) {
            let is_over = shell.try_wait().expect("a child to wait for").is_some();
            if is_over || Instant::now() > deadline {
                eprint_log(&server(shell).dir);
                return None;
            }
            sleep(Duration::from_millis(50));
        }
        Some(server(shell))
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[expect(clippy::print_stderr, reason = "a test tells the reader of its log why it failed")]
fn eprint_log(dir: &TempDir) {
    let log = fs_err::read_to_string(dir.path().join("log")).unwrap_or_default();
    eprintln!("SeaweedFS did not start:\n{log}");
}

/// Any answer of HTTP will do: the server refuses those who do not say who they are.
fn is_up(port: u16) -> bool {
    let url = format!("http://127.0.0.1:{port}/");
    let mut curl = Command::new("curl");
    curl.args(["-s", "--max-time", "2", "-o", "/dev/null", &url]);
    curl.status().is_ok_and(|status| status.success())
}

fn identities() -> String {
    format!(
        r#"{{"identities": [
            {{"name": "admin", "credentials": [{{"accessKey": "{}", "secretKey": "{}"}}],
              "actions": ["Admin", "Read", "List", "Tagging", "Write"]}},
            {{"name": "anonymous", "actions": ["Read:{PUBLIC}", "List:{PUBLIC}"]}}
        ]}}"#,
        S3Server::KEY,
        S3Server::SECRET
    )
}

/// Every part gets a port of its own, since the usual ones may be taken; nothing is told to anybody.
fn arguments(dir: &Path, port: u16) -> Vec<String> {
    let dir = dir.display();
    let mut words = vec![
        "server".to_owned(),
        format!("-dir={dir}"),
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        "-master.telemetry=false".to_owned(),
        "-master.volumeSizeLimitMB=64".to_owned(),
        "-volume.max=100".to_owned(),
        "-s3".to_owned(),
        format!("-s3.port={port}"),
        format!("-s3.config={dir}/s3.json"),
        format!("-s3.localSocket={dir}/s3.sock"),
        format!("-filer.localSocket={dir}/filer.sock"),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
    ];
    for part in ["master", "volume", "filer"] {
        words.push(format!("-{part}.port={}", free_port()));
        words.push(format!("-{part}.port.grpc={}", free_port()));
    }
    words.push(format!("-s3.port.grpc={}", free_port()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_objects_and_knows_who_may_read_them() {
        if !crate::require_tool("weed") || !crate::require_tool("curl") {
            return;
        }
        let server = S3Server::start();
        let file = server.dir.path().join("object");
        fs_err::write(&file, "0123456789").unwrap();
        server.put("private/a/object", &file);
        server.put("public/object", &file);
        let get = |path: &str| {
            run(Command::new("curl").args(["-s", "-w", " %{http_code}", &server.url(path)]))
        };
        assert!(get("private/a/object").ends_with(" 403"));
        assert_eq!(get("public/object"), "0123456789 200");
        let port = server.port;
        drop(server);
        assert!(!is_up(port));
    }
}
