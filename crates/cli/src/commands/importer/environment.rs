//! What CDI tells its importer, by variables and mounted folders, as one [`Job`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bootyard_source::{GcsOptions, Header, Options, ParseHeaderError, ProxyOptions, S3Options};
use bootyard_spec::{
    ByteSize, Credentials, Digest, FilesystemOverhead, ObjectName, Platform, SafeUrl, Secret,
    Source, StoredImage,
};

use super::Refused;
use crate::settings;

/// Moves every absolute path of the contract under a folder, for tests.
const ROOT: &str = "BOOTYARD_IMPORTER_ROOT";

/// Where the metrics are served, if not on CDI's port.
const METRICS_PORT: &str = "BOOTYARD_IMPORTER_METRICS_PORT";

/// CDI's port for metrics.
const METRICS_PORT_DEFAULT: u16 = 8443;

/// Where CDI mounts the secrets that hold headers.
const EXTRA_HEADERS: &str = "/extraheaders";

/// A folder for each secret stands there, and in it a file for each key.
const MOUNT_DEPTH: u32 = 1;

/// The largest header that is read: what servers accept of all of them together.
const HEADER_MAX: u64 = 16 << 10;

/// The variables that CDI sets and that change nothing here, with the reason.
const WITHOUT_EFFECT: [(&str, &str); 6] = [
    ("IMPORTER_DISK_ID", "only imageio sources have it"),
    ("IMPORTER_UUID", "only vddk sources have it"),
    ("IMPORTER_BACKING_FILE", "only vddk sources have it"),
    ("IMPORTER_THUMBPRINT", "only vddk sources have it"),
    ("IMPORTER_FINAL_CHECKPOINT", "there are no checkpoints"),
    ("TLS_CIPHERS", "no weak ones are offered"),
];

/// The variables that mean something here.
const KNOWN: [&str; 13] = [
    "IMPORTER_SOURCE",
    "IMPORTER_ENDPOINT",
    "IMPORTER_CONTENTTYPE",
    "IMPORTER_IMAGE_SIZE",
    "IMPORTER_ACCESS_KEY_ID",
    "IMPORTER_SECRET_KEY",
    "IMPORTER_CERT_DIR",
    "IMPORTER_PROXY_CERT_DIR",
    "IMPORTER_PULL_METHOD",
    "IMPORTER_READY_FILE",
    "IMPORTER_DONE_FILE",
    "IMPORTER_CHECKSUM",
    "IMPORTER_REGISTRY_IMAGE_ARCHITECTURE",
];

/// The variables of imports in several stages.
const REFUSED: [&str; 2] = ["IMPORTER_CURRENT_CHECKPOINT", "IMPORTER_PREVIOUS_CHECKPOINT"];

/// All variables of the process, or of a test.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables(BTreeMap<String, String>);

/// One import, as CDI asks for it.
#[derive(Debug)]
pub(super) struct Job {
    /// `None` for a blank disk.
    pub(super) source: Option<Source>,
    pub(super) content: Content,
    pub(super) image_size: Option<ByteSize>,
    /// What the file system takes for itself, as a part of the rest.
    pub(super) overhead: FilesystemOverhead,
    pub(super) preallocation: bool,
    pub(super) checksum: Option<Digest>,
    /// The image's server says by this file that it is ready.
    pub(super) ready_file: Option<PathBuf>,
    /// It waits for this file before it ends.
    pub(super) done_file: Option<PathBuf>,
    pub(super) options: Options,
}

/// What the source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// A disk.
    Kubevirt,
    /// A tar archive of a file system's files.
    Archive,
}

/// How progress is served.
#[derive(Debug)]
pub(super) struct MetricsOptions {
    pub(super) port: u16,
    /// Nothing below TLS 1.3.
    pub(super) only_tls13: bool,
}

/// The paths of the contract.
#[derive(Debug, Clone)]
pub(super) struct Paths(PathBuf);

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl Variables {
    /// The value of a variable that is set and not empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn paths(&self) -> Paths {
        Paths(self.get(ROOT).unwrap_or("/").into())
    }

    /// Whose progress it is: the volume claim's.
    pub(super) fn owner_uid(&self) -> &str {
        self.get("OWNER_UID").unwrap_or_default()
    }

    pub(super) fn metrics(&self) -> Result<MetricsOptions, Refused> {
        let port = self.get(METRICS_PORT).map(str::parse).transpose();
        let port = port.map_err(|_| broken(METRICS_PORT, "a port"))?;
        Ok(MetricsOptions {
            port: port.unwrap_or(METRICS_PORT_DEFAULT),
            only_tls13: self.get("TLS_MIN_VERSION") == Some("VersionTLS13"),
        })
    }

    /// What is set and has no effect, a line each.
    pub(super) fn ignored(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for name in self.0.keys().filter(|name| self.get(name).is_some()) {
            let reason = WITHOUT_EFFECT.iter().find(|(own, _)| own == name).map(|(_, why)| *why);
            let mut known = KNOWN.iter().chain(&REFUSED);
            let is_ours = known.any(|own| own == name) || name.starts_with(HEADER_PREFIX);
            let is_unknown = name.starts_with("IMPORTER_") && !is_ours;
            if let Some(reason) = reason.or(is_unknown.then_some("it is not known")) {
                lines.push(format!("`{name}` is ignored: {reason}"));
            }
        }
        lines
    }

    /// Everything that decides the import. Reads the mounted folders.
    pub(super) fn job(&self, paths: &Paths) -> Result<Job, Refused> {
        let content = match self.get("IMPORTER_CONTENTTYPE").unwrap_or("kubevirt") {
            "kubevirt" => Content::Kubevirt,
            "archive" => Content::Archive,
            other => return Err(Refused::new(format!("unknown content type `{other}`"))),
        };
        for name in REFUSED {
            if self.get(name).is_some() {
                return Err(Refused::new("imports in several stages are not supported"));
            }
        }
        let ready_file = self.get("IMPORTER_READY_FILE").map(|path| paths.at(path));
        let mut options = self.options(paths)?;
        let source = self.source(&mut options, paths)?;
        match (&source, content) {
            (None, Content::Archive) => {
                return Err(Refused::new("Cannot create empty disk with content type archive"));
            }
            (Some(Source::Registry(_) | Source::Stored(_)), Content::Archive) => {
                return Err(Refused::new(
                    "Unsupported content type archive when importing from registry",
                ));
            }
            _ => {}
        }
        Ok(Job {
            source,
            content,
            image_size: self.parsed("IMPORTER_IMAGE_SIZE", "a quantity such as `10Gi`")?,
            overhead: self.overhead()?,
            preallocation: self.switch("PREALLOCATION")?,
            checksum: self.parsed("IMPORTER_CHECKSUM", "a digest such as `sha256:HEX`")?,
            ready_file,
            done_file: self.get("IMPORTER_DONE_FILE").map(|path| paths.at(path)),
            options,
        })
    }

    /// The source, with what only its kind needs put into `options`.
    fn source(&self, options: &mut Options, paths: &Paths) -> Result<Option<Source>, Refused> {
        let kind = self.get("IMPORTER_SOURCE").unwrap_or_default();
        let endpoint = || {
            self.get("IMPORTER_ENDPOINT")
                .ok_or_else(|| Refused::new("`IMPORTER_ENDPOINT` is not set"))
        };
        let url = || endpoint()?.parse().map_err(|_| broken("IMPORTER_ENDPOINT", "a URL"));
        let source = match kind {
            "none" => return Ok(None),
            "http" => Source::Http(url()?),
            "s3" => Source::S3(self.s3(endpoint()?, options)?),
            "gcs" => Source::Gcs(self.gcs(endpoint()?, options, paths)?),
            // Pulled by the node, the image's files are served by a container of the pod.
            "registry" if self.get("IMPORTER_PULL_METHOD") == Some("node") => Source::Http(url()?),
            "registry" => self.registry(endpoint()?, options, paths)?,
            "imageio" | "vddk" => {
                let what = format!("sources of kind `{kind}` are not supported");
                return Err(Refused::new(what));
            }
            other => return Err(Refused::new(format!("Unknown data source: {other}"))),
        };
        Ok(Some(source))
    }

    /// `https://HOST/BUCKET/KEY` as CDI has it, or `s3://BUCKET/KEY`. Without keys in the variables
    /// the SDK looks for others: those of the pod's service account, for one.
    fn s3(&self, endpoint: &str, options: &mut Options) -> Result<ObjectName, Refused> {
        if let Ok(Source::S3(object)) = endpoint.parse() {
            return Ok(object);
        }
        let url: SafeUrl =
            endpoint.parse().map_err(|_| broken("IMPORTER_ENDPOINT", "the URL of an object"))?;
        let (object, s3) = S3Options::default().locate(&url).map_err(Refused::from_error)?;
        options.s3 = s3;
        Ok(object)
    }

    /// `gs://BUCKET/OBJECT`, or `https://HOST/BUCKET/OBJECT`.
    fn gcs(
        &self,
        endpoint: &str,
        options: &mut Options,
        paths: &Paths,
    ) -> Result<ObjectName, Refused> {
        let key = self.get("GOOGLE_APPLICATION_CREDENTIALS").map(|path| paths.at(path));
        let key = key.map(fs_err::read_to_string).transpose().map_err(Refused::from_error)?;
        options.gcs = GcsOptions { key: key.map(Secret::new), ..GcsOptions::default() };
        if let Ok(Source::Gcs(object)) = endpoint.parse() {
            return Ok(object);
        }
        let url: SafeUrl =
            endpoint.parse().map_err(|_| broken("IMPORTER_ENDPOINT", "the URL of an object"))?;
        let mut server = url.expose().clone();
        server.set_path("");
        options.gcs.endpoint = Some(SafeUrl::from(server));
        // Whoever has no key has none by intention; Google's own host asks the machine for one.
        options.gcs.anonymous = options.gcs.key.is_none();
        GcsOptions::locate(&url).map_err(Refused::from_error)
    }

    /// `docker://…`, or an archive in the pod.
    fn registry(
        &self,
        endpoint: &str,
        options: &mut Options,
        paths: &Paths,
    ) -> Result<Source, Refused> {
        options.image.insecure = options.insecure_skip_verify;
        if let Some(architecture) = self.get("IMPORTER_REGISTRY_IMAGE_ARCHITECTURE") {
            let platform = format!("linux/{architecture}").parse::<Platform>();
            let platform =
                platform.map_err(|_| broken("IMPORTER_REGISTRY_IMAGE_ARCHITECTURE", "a name"))?;
            options.image.platform = Some(platform);
        }
        match endpoint.parse().map_err(Refused::from_error)? {
            Source::Stored(image) => {
                Ok(Source::Stored(StoredImage { path: paths.at(&image.path), ..image }))
            }
            source @ Source::Registry(_) => Ok(source),
            other => Err(Refused::new(format!("`{other}` is no container image"))),
        }
    }

    fn options(&self, paths: &Paths) -> Result<Options, Refused> {
        let id = self.get("IMPORTER_ACCESS_KEY_ID");
        let credentials = id.zip(self.get("IMPORTER_SECRET_KEY")).map(|(id, secret)| Credentials {
            id: id.to_owned(),
            secret: Secret::new(secret.to_owned()),
        });
        Ok(Options {
            extra_ca: self.certificates("IMPORTER_CERT_DIR", paths)?,
            insecure_skip_verify: self.switch("INSECURE_TLS")?,
            proxy: ProxyOptions {
                ca: self.certificates("IMPORTER_PROXY_CERT_DIR", paths)?,
                ..settings::proxies().map_err(|failure| Refused::new(failure.message()))?
            },
            headers: self.headers(paths)?,
            credentials,
            ..Options::default()
        })
    }

    /// The certificates of a mounted folder: its `*.crt` and `*.pem`.
    fn certificates(&self, name: &str, paths: &Paths) -> Result<Vec<u8>, Refused> {
        let Some(folder) = self.get(name) else { return Ok(Vec::new()) };
        let mut bundle = Vec::new();
        for entry in fs_err::read_dir(paths.at(folder)).map_err(Refused::from_error)? {
            let path = entry.map_err(Refused::from_error)?.path();
            let ending = path.extension().and_then(|ending| ending.to_str());
            if matches!(ending, Some("crt" | "pem")) && path.is_file() {
                bundle.extend(fs_err::read(&path).map_err(Refused::from_error)?);
                bundle.push(b'\n');
            }
        }
        Ok(bundle)
    }

    /// Those of the variables, by name, and then those of the mounted secrets.
    fn headers(&self, paths: &Paths) -> Result<Vec<Header>, Refused> {
        let given = self.0.iter().filter(|(name, _)| name.starts_with(HEADER_PREFIX));
        let given = given.map(|(name, text)| (name.clone(), text.clone()));
        let mut texts: Vec<(String, String)> = given.collect();
        mounted(&paths.at(EXTRA_HEADERS), MOUNT_DEPTH, &mut texts)?;
        let parse = |(place, text): (String, String)| {
            text.parse()
                .map_err(|error: ParseHeaderError| Refused::new(format!("`{place}`: {error}")))
        };
        texts.into_iter().map(parse).collect()
    }

    /// Nothing without a value, as in CDI, whose controller always gives one; but what is no number
    /// is refused.
    fn overhead(&self) -> Result<FilesystemOverhead, Refused> {
        let overhead = self.parsed("FILESYSTEM_OVERHEAD", "a part such as `0.06`")?;
        Ok(overhead.unwrap_or(FilesystemOverhead::NONE))
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str, what: &str) -> Result<Option<T>, Refused> {
        self.get(name).map(str::parse).transpose().map_err(|_| broken(name, what))
    }

    /// A Boolean as Go's `strconv.ParseBool` takes it; absent means false.
    fn switch(&self, name: &str) -> Result<bool, Refused> {
        match self.get(name) {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some(_) => Err(broken(name, "`true` or `false`")),
        }
    }
}

/// What the numbers of extra headers follow.
const HEADER_PREFIX: &str = "IMPORTER_EXTRA_HEADER_";

impl Paths {
    /// Where an absolute path of the contract is.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// The texts of all files below a folder of mounted secrets, if there is one. Kubernetes keeps its
/// own links there, which begin with two dots.
fn mounted(folder: &Path, depth: u32, texts: &mut Vec<(String, String)>) -> Result<(), Refused> {
    let Ok(entries) = fs_err::read_dir(folder) else { return Ok(()) };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(Refused::from_error)?.path());
    }
    paths.sort();
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    for path in paths.iter().filter(|path| !name(path).is_some_and(|name| name.starts_with(".."))) {
        if path.is_dir() {
            if depth > 0 {
                mounted(path, depth - 1, texts)?;
            }
            continue;
        }
        let size = fs_err::metadata(path).map_err(Refused::from_error)?.len();
        if size > HEADER_MAX {
            return Err(Refused::new(format!("`{}` is too large for a header", path.display())));
        }
        let text = fs_err::read_to_string(path).map_err(Refused::from_error)?;
        texts.push((path.display().to_string(), text));
    }
    Ok(())
}

fn broken(name: &str, expected: &str) -> Refused {
    // The value may hold a secret.
    Refused::new(format!("`{name}` is not {expected}"))
}
