//! What the environment decides, read in this one place.

#![expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]

use std::env;
use std::io::Read as _;
use std::path::PathBuf;

use bootyard_source::oci::ImageOptions;
use bootyard_source::{NoProxy, ProxyOptions};
use bootyard_spec::{Class, SafeUrl, Secret};

use crate::args::ImageArgs;
use crate::commands::importer::Variables;
use crate::commands::upload_server::UploadVariables;
use crate::error::Failure;

/// Moves the store.
const HOME_VARIABLE: &str = "BOOTYARD_HOME";
/// The time that goes into seeds, in seconds since 1970, by the reproducible-builds convention.
const EPOCH_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// Where the store is: `$BOOTYARD_HOME`; for root `/var/lib/bootyard`; else
/// `$XDG_DATA_HOME/bootyard`, which is by default `~/.local/share/bootyard`.
pub(crate) fn store_home() -> Result<PathBuf, Failure> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(home) = set(HOME_VARIABLE) {
        return Ok(home);
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/bootyard".into());
    }
    set("XDG_DATA_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("bootyard"))
        .ok_or_else(|| {
            Failure::new(Class::Usage, "no place for the store: `HOME` is not set")
                .with_hint(format!("set `{HOME_VARIABLE}` to a directory"))
        })
}

/// Where a test wants this process to be killed: `$BOOTYARD_STOP_AT`, which release builds do not know.
pub(crate) fn stop_where_tests_say() {
    if cfg!(debug_assertions)
        && let Ok(point) = env::var("BOOTYARD_STOP_AT")
    {
        bootyard_volume::stop::set(point);
    }
}

/// `SOURCE_DATE_EPOCH`, or 1970 so that the same input gives the same seed on every day.
pub(crate) fn seed_timestamp() -> Result<i64, Failure> {
    let Some(text) = env::var_os(EPOCH_VARIABLE) else { return Ok(0) };
    text.to_str().and_then(|text| text.parse().ok()).filter(|seconds| *seconds >= 0).ok_or_else(
        || {
            let what = format!("`{EPOCH_VARIABLE}` is not a number of seconds: {}", text.display());
            Failure::new(Class::Usage, what)
        },
    )
}

/// Bytes that nobody can foresee, from the kernel.
pub(crate) fn random_bytes() -> Result<[u8; 16], Failure> {
    let mut bytes = [0; 16];
    let mut kernel =
        fs_err::File::open("/dev/urandom").map_err(|e| Failure::new(Class::Other, e))?;
    kernel.read_exact(&mut bytes).map_err(|error| Failure::new(Class::Other, error))?;
    Ok(bytes)
}

/// The key file of Google's application default credentials: `$GOOGLE_APPLICATION_CREDENTIALS`, else
/// what `gcloud auth application-default login` has left.
pub(crate) fn google_key() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("GOOGLE_APPLICATION_CREDENTIALS").or_else(|| {
        let config = set("CLOUDSDK_CONFIG").or_else(|| Some(set("HOME")?.join(".config/gcloud")));
        let file = config?.join("application_default_credentials.json");
        file.exists().then_some(file)
    })
}

/// The emulator of Google's store: `$STORAGE_EMULATOR_HOST`, with or without a scheme.
pub(crate) fn google_endpoint() -> Result<Option<SafeUrl>, Failure> {
    let Some(text) = env::var_os("STORAGE_EMULATOR_HOST").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_string_lossy();
    let url = if text.contains("://") { text.parse() } else { format!("http://{text}").parse() };
    url.map(Some).map_err(|_| {
        Failure::new(Class::Usage, "`STORAGE_EMULATOR_HOST` is not a host with its port")
    })
}

/// The metadata server: `$GCE_METADATA_HOST`, as Google's own tools take it.
pub(crate) fn google_metadata_host() -> Option<String> {
    env::var("GCE_METADATA_HOST").ok().filter(|host| !host.is_empty())
}

/// The proxies, by the variables that curl and Go read: `http_proxy`, `https_proxy` and `no_proxy`,
/// in lower or else in upper case.
pub(crate) fn proxies() -> Result<ProxyOptions, Failure> {
    let text = |name: &str| {
        let value = env::var(name).or_else(|_| env::var(name.to_ascii_uppercase()));
        value.ok().filter(|value| !value.is_empty())
    };
    let url = |name: &str| {
        let Some(text) = text(name) else { return Ok(None) };
        let url = if text.contains("://") { text } else { format!("http://{text}") };
        let url: Option<SafeUrl> = url.parse().ok();
        url.filter(|url| matches!(url.expose().scheme(), "http" | "https")).map(Some).ok_or_else(
            || {
                let what = format!("`{name}` is not the URL of an HTTP proxy");
                Failure::new(Class::Usage, what)
                    .with_hint("expected http://[USER:PASSWORD@]HOST:PORT")
            },
        )
    };
    let no_proxy = NoProxy::from(text("no_proxy").unwrap_or_default().as_str());
    let (http, https) = (url("http_proxy")?, url("https_proxy")?);
    Ok(ProxyOptions { http, https, no_proxy, ca: Vec::new() })
}

/// All variables, for the importer, whose interface they are. What is not UTF-8 is none of them.
pub(crate) fn variables() -> Variables {
    let text = |text: std::ffi::OsString| text.into_string().ok();
    env::vars_os().filter_map(|(name, value)| text(name).zip(text(value))).collect()
}

/// The token for an upload server: `$BOOTYARD_UPLOAD_TOKEN`.
pub(crate) fn upload_token() -> Option<Secret> {
    env::var("BOOTYARD_UPLOAD_TOKEN").ok().filter(|token| !token.is_empty()).map(Secret::new)
}

/// CDI's variables for its upload server.
pub(crate) fn upload_variables() -> Result<UploadVariables, Failure> {
    UploadVariables::parse(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

/// How container images are found: the flags, and where credentials are by default, as
/// containers-auth.json(5) has it.
pub(crate) fn image_options(args: &ImageArgs) -> ImageOptions {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("HOME");
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = set("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    let defaults = [
        set("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        config.map(|folder| folder.join("containers/auth.json")),
        docker.map(|folder| folder.join("config.json")),
    ];
    ImageOptions {
        platform: args.platform.clone(),
        path: args.image_path.clone(),
        digest: None,
        insecure: args.insecure,
        auth_file: args.registry_auth.clone().or_else(|| set("REGISTRY_AUTH_FILE")),
        default_auth_files: defaults.into_iter().flatten().collect(),
    }
}

/// The directories in which programs are found.
pub(crate) fn search_path() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

/// This program, for the engine that runs it again as its child.
pub(crate) fn own_executable() -> Result<PathBuf, Failure> {
    env::current_exe().map_err(|error| Failure::new(Class::Other, error))
}
