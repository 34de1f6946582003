//! A real nginx on loopback, serving one folder. What nginx cannot get wrong is in
//! [`FaultServer`](crate::FaultServer).
#![expect(clippy::disallowed_methods, reason = "starts a server and waits for it")]

use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{run, skip};

/// How long a start may take on a busy machine. nginx itself gives up on a taken port after 3 s.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How often another port is tried if somebody took the chosen one in between.
const PORTS_TRIED: usize = 5;

/// A running server; stopped when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    port: u16,
    tls: bool,
    /// Configuration, logs, pid and temporary files.
    prefix: TempDir,
}

/// How the server behaves. The default is a plain one: ranges, no TLS, no limits.
#[derive(Debug, Clone, Default)]
pub struct NginxOptions {
    /// Answer ranged requests with the whole file and announce no `Accept-Ranges`.
    pub no_ranges: bool,
    /// User and password that every request needs; neither may hold a colon.
    pub basic_auth: Option<(String, String)>,
    /// Serve HTTPS with a certificate that only itself vouches for ([`Nginx::ca`]).
    pub tls: bool,
    /// Bytes a second that each connection gets.
    pub bytes_per_second: Option<u64>,
    /// More directives of the `server` block, such as `location /old { return 302 /new; }`.
    pub directives: String,
}

impl Nginx {
    /// Serves the files of `dir`.
    ///
    /// # Panics
    ///
    /// If nginx does not start; the message holds its log. Ask
    /// [`require_tool`](crate::require_tool) first.
    pub fn serve(dir: impl AsRef<Path>) -> Self {
        Self::serve_with(dir, &NginxOptions::default())
    }

    /// Serves the files of `dir` as `options` say.
    ///
    /// # Panics
    ///
    /// As [`Nginx::serve`], and if `openssl` cannot make a certificate.
    pub fn serve_with(dir: impl AsRef<Path>, options: &NginxOptions) -> Self {
        let dir = dir.as_ref().canonicalize().expect("a folder to serve");
        let prefix = crate::temp_dir();
        if let Some((user, password)) = &options.basic_auth {
            assert!(
                !format!("{user}{password}").contains(':'),
                "nginx's files cannot hold a colon"
            );
            let line = format!("{user}:{{PLAIN}}{password}\n");
            fs_err::write(prefix.path().join("users"), line).expect("a file of users");
        }
        if options.tls {
            make_certificate(prefix.path());
        }
        for _ in 0..PORTS_TRIED {
            let port = free_port();
            let text = configuration(prefix.path(), &dir, port, options);
            fs_err::write(prefix.path().join("nginx.conf"), text).expect("a configuration");
            if let Some(child) = start(prefix.path()) {
                return Self { child, port, tls: options.tls, prefix };
            }
        }
        panic!("nginx did not start:\n{}", log(prefix.path()))
    }

    /// The URL of a file of the folder: `path` with or without a slash in front.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}/{}", self.port, path.trim_start_matches('/'))
    }

    /// The port on 127.0.0.1.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The certificate to trust for a server with TLS, as PEM.
    pub fn ca(&self) -> PathBuf {
        self.prefix.path().join("cert.pem")
    }

    /// Answers everything with 503 while `down`.
    ///
    /// # Panics
    ///
    /// If the switch cannot be written.
    pub fn set_down(&self, down: bool) {
        let switch = self.prefix.path().join("down");
        if down {
            fs_err::write(switch, "").expect("the switch");
        } else {
            fs_err::remove_file(switch).expect("the switch");
        }
    }

    /// The requests that were answered, one a line: status, bytes of the body, request line, range.
    pub fn access_log(&self) -> String {
        fs_err::read_to_string(self.prefix.path().join("access.log")).unwrap_or_default()
    }
}

impl Nginx {
    /// How many bytes of bodies have been sent, also to clients that did not take them all.
    pub fn bytes_sent(&self) -> u64 {
        let sent = |line: &str| line.split(' ').nth(1)?.parse::<u64>().ok();
        self.access_log().lines().filter_map(sent).sum()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // One process without a master: killing it by its id leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port on loopback");
    listener.local_addr().expect("a bound socket has an address").port()
}

pub(crate) fn make_certificate(prefix: &Path) {
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=bootyard-test"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(prefix.join("key.pem"))
        .arg("-out")
        .arg(prefix.join("cert.pem")));
}

/// Starts nginx and waits until it listens; `None` if it ended, as it does on a taken port.
///
/// It writes its pid file after it has bound its sockets: to try a connection instead could reach
/// another process on the same port.
fn start(prefix: &Path) -> Option<Child> {
    let pid_file = prefix.join("nginx.pid");
    let program = skip::find_tool("nginx").expect("nginx is installed");
    let mut child = Command::new(program)
        .arg("-p")
        .arg(prefix)
        .arg("-c")
        .arg(prefix.join("nginx.conf"))
        .arg("-e")
        .arg(prefix.join("error.log"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nginx can be run");
    let deadline = Instant::now() + START_LIMIT;
    while !fs_err::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n')) {
        if child.try_wait().expect("a child to wait for").is_some() {
            return None;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("nginx does not listen after {START_LIMIT:?}:\n{}", log(prefix));
        }
        sleep(Duration::from_millis(5));
    }
    Some(child)
}

fn log(prefix: &Path) -> String {
    fs_err::read_to_string(prefix.join("error.log")).unwrap_or_default()
}

fn configuration(prefix: &Path, dir: &Path, port: u16, options: &NginxOptions) -> String {
    let prefix = prefix.display();
    let mut server = String::new();
    let tls = if options.tls { " ssl" } else { "" };
    let mut line = |text: String| writeln!(server, "    {text}").expect("a string takes all text");
    line(format!("listen 127.0.0.1:{port}{tls};"));
    line(format!("root {};", dir.display()));
    line(format!("if (-f {prefix}/down) {{ return 503; }}"));
    if options.tls {
        line(format!("ssl_certificate {prefix}/cert.pem;"));
        line(format!("ssl_certificate_key {prefix}/key.pem;"));
    }
    if options.no_ranges {
        line("max_ranges 0;".to_owned());
    }
    if options.basic_auth.is_some() {
        line("auth_basic test;".to_owned());
        line(format!("auth_basic_user_file {prefix}/users;"));
    }
    if let Some(rate) = options.bytes_per_second {
        line(format!("limit_rate {rate};"));
    }
    line(options.directives.clone());
    format!(
        "daemon off;\nmaster_process off;\npid {prefix}/nginx.pid;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  sendfile on;\n  default_type application/octet-stream;\n  \
         types {{ text/html html; }}\n  \
         client_body_temp_path {prefix}/body;\n  proxy_temp_path {prefix}/proxy;\n  \
         fastcgi_temp_path {prefix}/fastcgi;\n  uwsgi_temp_path {prefix}/uwsgi;\n  \
         scgi_temp_path {prefix}/scgi;\n  \
         log_format short '$status $body_bytes_sent \"$request\" \"$http_range\"';\n  \
         access_log {prefix}/access.log short;\n  \
         server {{\n{server}  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curl(arguments: &[&str]) -> String {
        run(Command::new("curl").args(["-sS", "-w", " %{http_code}"]).args(arguments))
    }

    fn folder() -> TempDir {
        let dir = crate::temp_dir();
        fs_err::write(dir.path().join("a"), "0123456789").unwrap();
        dir
    }

    #[test]
    fn serves_a_folder_with_ranges_and_can_go_down() {
        if !crate::require_tool("nginx") || !crate::require_tool("curl") {
            return;
        }
        let dir = folder();
        let nginx = Nginx::serve(dir.path());
        assert_eq!(curl(&[&nginx.url("a")]), "0123456789 200");
        assert_eq!(curl(&["-r", "2-4", &nginx.url("/a")]), "234 206");
        nginx.set_down(true);
        assert!(curl(&[&nginx.url("a")]).ends_with(" 503"));
        nginx.set_down(false);
        assert_eq!(curl(&[&nginx.url("a")]), "0123456789 200");
        assert!(nginx.access_log().contains("206 3 \"GET /a HTTP/1.1\" \"bytes=2-4\""));
    }

    #[test]
    fn the_options_do_what_they_say() {
        if !crate::require_tool("nginx") || !crate::require_tool("curl") {
            return;
        }
        let dir = folder();
        let nginx = Nginx::serve_with(
            dir.path(),
            &NginxOptions {
                no_ranges: true,
                basic_auth: Some(("u".into(), "p".into())),
                tls: true,
                directives: "location = /old { return 302 /a; }".into(),
                ..NginxOptions::default()
            },
        );
        let ca = nginx.ca();
        let ca = ca.to_str().unwrap();
        assert!(curl(&["--cacert", ca, &nginx.url("a")]).ends_with(" 401"));
        let range = curl(&["--cacert", ca, "-u", "u:p", "-r", "2-4", "-L", &nginx.url("old")]);
        assert_eq!(range, "0123456789 200");
    }

    #[test]
    fn a_dropped_server_is_gone() {
        if !crate::require_tool("nginx") {
            return;
        }
        let dir = folder();
        let nginx = Nginx::serve(dir.path());
        let port = nginx.port();
        drop(nginx);
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
