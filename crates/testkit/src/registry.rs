//! A real registry on loopback (Debian's `docker-registry`, the CNCF's distribution), and what makes
//! container images without a daemon: `umoci` and `skopeo`.
#![expect(clippy::disallowed_methods, reason = "starts a server and waits for it")]

use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::nginx::{free_port, make_certificate};
use crate::{run, skip};

/// How long a start may take on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often another port is tried if somebody took the chosen one in between.
const PORTS_TRIED: usize = 5;

/// A running registry with a storage of its own; stopped when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    /// Configuration, log and storage.
    root: TempDir,
}

/// How the registry behaves. The default is plain HTTP for everybody.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// User and password that every request needs.
    pub basic_auth: Option<(String, String)>,
    /// Speak TLS with a certificate that only itself vouches for ([`Registry::ca`]).
    pub tls: bool,
    /// More of the configuration, such as an `auth:` section.
    pub configuration: String,
}

impl Registry {
    /// Starts an empty registry.
    ///
    /// # Panics
    ///
    /// If it does not start; the message holds its log. Ask
    /// [`require_tool`](crate::require_tool) for `docker-registry` first.
    pub fn start() -> Self {
        Self::start_with(&RegistryOptions::default())
    }

    /// Starts an empty registry as `options` say.
    ///
    /// # Panics
    ///
    /// As [`Registry::start`], and if `openssl` or `htpasswd` fail.
    pub fn start_with(options: &RegistryOptions) -> Self {
        let root = crate::temp_dir();
        if options.tls {
            make_certificate(root.path());
        }
        if let Some((user, password)) = &options.basic_auth {
            let line = run(Command::new("htpasswd").args(["-Bbn", user, password]));
            fs_err::write(root.path().join("htpasswd"), line).expect("a file of users");
        }
        for _ in 0..PORTS_TRIED {
            let port = free_port();
            let text = configuration(root.path(), port, options);
            fs_err::write(root.path().join("config.yml"), text).expect("a configuration");
            if let Some(child) = start(root.path(), port) {
                return Self { child, port, root };
            }
        }
        panic!("docker-registry did not start:\n{}", log(root.path()))
    }

    /// The host and port, as image names begin.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The source of an image: `docker://HOST/NAME`.
    pub fn image(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.host())
    }

    /// The certificate to trust for a registry with TLS, as PEM.
    pub fn ca(&self) -> PathBuf {
        self.root.path().join("cert.pem")
    }

    /// The file in which the registry keeps a blob, to be damaged.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let folder = self.root.path().join("storage/docker/registry/v2/blobs/sha256");
        folder.join(&hex[..2]).join(hex).join("data")
    }

    /// What the registry has written so far: a line for each request, among others.
    pub fn log(&self) -> String {
        log(self.root.path())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the registry and waits until it listens; `None` if it ended, as it does on a taken port.
fn start(root: &Path, port: u16) -> Option<Child> {
    let program = skip::find_tool("docker-registry").expect("docker-registry is installed");
    let output = fs_err::File::create(root.join("log")).expect("a log").into_file();
    let mut child = Command::new(program)
        .arg("serve")
        .arg(root.join("config.yml"))
        .env_clear()
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a second descriptor"))
        .stderr(output)
        .spawn()
        .expect("docker-registry can be run");
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if child.try_wait().expect("a child to wait for").is_some() {
            return None;
        }
        if log(root).contains("listening on") && TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(child);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("docker-registry does not listen after {START_LIMIT:?}:\n{}", log(root));
        }
        sleep(Duration::from_millis(5));
    }
}

fn log(root: &Path) -> String {
    fs_err::read_to_string(root.join("log")).unwrap_or_default()
}

fn configuration(root: &Path, port: u16, options: &RegistryOptions) -> String {
    let root = root.display();
    let mut text = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\nstorage:\n  \
         filesystem:\n    rootdirectory: {root}/storage\n  delete:\n    enabled: true\nhttp:\n  \
         addr: 127.0.0.1:{port}\n"
    );
    let mut add = |more: String| text.write_str(&more).expect("a string takes all text");
    if options.tls {
        add(format!("  tls:\n    certificate: {root}/cert.pem\n    key: {root}/key.pem\n"));
    }
    if options.basic_auth.is_some() {
        add(format!("auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n"));
    }
    add(options.configuration.clone());
    text
}

/// A folder in the OCI image layout that images are built in.
#[derive(Debug)]
pub struct ImageLayout {
    folder: TempDir,
}

impl Default for ImageLayout {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageLayout {
    /// An empty layout.
    ///
    /// # Panics
    ///
    /// If `umoci` fails. Ask [`require_tool`](crate::require_tool) first.
    pub fn new() -> Self {
        let folder = crate::temp_dir();
        let path = folder.path().join("layout");
        run(Command::new("umoci").arg("init").arg("--layout").arg(path));
        Self { folder }
    }

    /// The folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    /// Adds an image with one gzipped layer per list of files: pairs of a path in the image and the
    /// file whose bytes it has.
    ///
    /// # Panics
    ///
    /// If `umoci` fails.
    pub fn add(&self, tag: &str, layers: &[&[(&str, &Path)]]) {
        let image = format!("{}:{tag}", self.path().display());
        run(Command::new("umoci").args(["new", "--image", &image]));
        for layer in layers {
            let root = crate::temp_dir();
            let mut top = Vec::new();
            for (path, bytes) in *layer {
                let target = root.path().join(path);
                fs_err::create_dir_all(target.parent().expect("a folder")).expect("a folder");
                fs_err::copy(bytes, target).expect("a file of the layer");
                let first = path.split('/').next().expect("a name").to_owned();
                if !top.contains(&first) {
                    top.push(first);
                }
            }
            for name in top {
                let from = root.path().join(&name);
                run(Command::new("umoci")
                    .args(["insert", "--image", &image])
                    .arg(from)
                    .arg(format!("/{name}")));
            }
        }
    }

    /// Adds a layer that hides a path of those below.
    ///
    /// # Panics
    ///
    /// If `umoci` fails.
    pub fn hide(&self, tag: &str, path: &str) {
        let image = format!("{}:{tag}", self.path().display());
        run(Command::new("umoci").args(["insert", "--image", &image, "--whiteout", path]));
    }

    /// Changes the configuration of an image with these flags of `umoci config`.
    ///
    /// # Panics
    ///
    /// If `umoci` fails.
    pub fn configure(&self, tag: &str, flags: &[&str]) {
        let image = format!("{}:{tag}", self.path().display());
        run(Command::new("umoci").args(["config", "--image", &image]).args(flags));
    }

    /// Copies an image by `skopeo` to a place that it names, such as `docker://HOST/NAME:TAG`.
    ///
    /// # Panics
    ///
    /// If `skopeo` fails.
    pub fn copy(&self, tag: &str, to: &str, flags: &[&str]) {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .args(flags)
            .arg(format!("oci:{}:{tag}", self.path().display()))
            .arg(to));
    }
}
