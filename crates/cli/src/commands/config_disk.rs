//! `bootyard create config-disk`: files, literals and a manifest as a small disk, by kubectl's rules.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bootyard_cloudinit::{ConfigDisk, ConfigKind, ImageFormat};
use bootyard_manifest::DataKind;
use bootyard_spec::{Class, Secret};
use clap::Args;
use serde::Serialize;

use super::seed::{refuse_other, replace};
use crate::error::{Failure, read_input};
use crate::{output, settings};

/// Flags are kubectl's. The same input makes the same bytes; the file is for its owner alone.
#[derive(Debug, Args)]
pub(crate) struct ConfigDiskArgs {
    /// New file; an existing disk is replaced
    file: PathBuf,
    /// What it holds: configmap, secret, service-account, downward-api or sysprep [default: as the
    /// manifest's kind]
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "manifest")]
    kind: Option<ConfigKind>,
    /// File whose content becomes the file KEY, or a folder with such files; may be repeated
    #[arg(long = "from-file", value_name = "[KEY=]PATH")]
    from_files: Vec<Pair>,
    /// Text that becomes the file KEY; may be repeated
    #[arg(long = "from-literal", value_name = "KEY=TEXT")]
    from_literals: Vec<Pair>,
    /// Manifest of a ConfigMap or Secret; - reads standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Label of the disk [default: cfgdata; for sysprep unattendCD]
    #[arg(long)]
    label: Option<String>,
    /// File system of the disk: iso or fat
    #[arg(long, default_value = "iso")]
    format: ImageFormat,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// `KEY=VALUE`, or a value alone. The value may be a secret.
#[derive(Clone)]
struct Pair {
    key: Option<String>,
    value: Secret,
}

impl From<String> for Pair {
    fn from(text: String) -> Self {
        match text.split_once('=') {
            Some((key, value)) => {
                Self { key: Some(key.to_owned()), value: Secret::new(value.into()) }
            }
            None => Self { key: None, value: Secret::new(text) },
        }
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}={:?}", self.key, self.value)
    }
}

/// What `create config-disk --json` prints.
#[derive(Debug, Serialize)]
struct CreatedLine<'a> {
    event: &'static str,
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    label: &'a str,
    format: &'static str,
    size_bytes: usize,
    files: usize,
}

pub(super) fn create(args: &ConfigDiskArgs) -> Result<ExitCode, Failure> {
    refuse_other(&args.file)?;
    let (disk, files) = gather(args)?;
    let label = args.label.as_deref();
    let image = disk.build(args.format, label, settings::seed_timestamp()?)?;
    replace(&args.file, &image)?;
    let path = args.file.display().to_string();
    if !args.json {
        output::result(&format!("{path}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::json_line(&CreatedLine {
        event: "created",
        path,
        kind: disk.kind().name(),
        label: label.unwrap_or(disk.kind().label()),
        format: args.format.name(),
        size_bytes: image.size(),
        files,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The disk and the number of its files.
fn gather(args: &ConfigDiskArgs) -> Result<(ConfigDisk, usize), Failure> {
    let files = args.from_files.iter().map(|pair| Path::new(pair.value.expose()));
    if files.chain(args.manifest.as_deref()).filter(|path| *path == Path::new("-")).count() > 1 {
        let what = "`-` is given more than once: expected one reader of standard input";
        return Err(Failure::new(Class::Usage, what).with_hint("put the others into files"));
    }
    let mut entries = Vec::new();
    let mut kind = args.kind;
    if let Some(path) = &args.manifest {
        let object = bootyard_manifest::data_object(&read_input(path)?).map_err(|error| {
            Failure::new(Class::Usage, format!("`{}`: {error}", path.display()))
        })?;
        kind = Some(kind_of(object.kind, args.kind, path)?);
        entries.extend(object.entries);
    }
    // clap lets none through without the one or the other.
    let kind = kind.ok_or_else(|| Failure::new(Class::Usage, "expected `--type`"))?;
    for pair in &args.from_files {
        add_file(pair, &mut entries)?;
    }
    for pair in &args.from_literals {
        let Some(key) = &pair.key else {
            let what = "`--from-literal` without `=`: expected KEY=TEXT";
            return Err(Failure::new(Class::Usage, what));
        };
        entries.push((key.clone(), pair.value.expose().as_bytes().to_vec()));
    }
    if entries.is_empty() && args.manifest.is_none() {
        return Err(Failure::new(Class::Usage, "the disk would have no file")
            .with_hint("give `--from-file`, `--from-literal` or a manifest with `-f`"));
    }
    let mut disk = ConfigDisk::new(kind);
    let files = entries.len();
    for (key, value) in entries {
        // The downward API has paths, with folders.
        if kind != ConfigKind::DownwardApi {
            bootyard_manifest::check_key(&key).map_err(|error| {
                Failure::new(Class::Usage, error).with_hint("name it otherwise: `KEY=…`")
            })?;
        }
        disk.insert(&key, value)?;
    }
    Ok((disk, files))
}

/// The type of a disk of a manifest's object, which may be asked for by `--type`.
fn kind_of(found: DataKind, asked: Option<ConfigKind>, path: &Path) -> Result<ConfigKind, Failure> {
    use ConfigKind::{ConfigMap, DownwardApi, Secret, ServiceAccount, Sysprep};
    match (found, asked) {
        (DataKind::ConfigMap, None) => Ok(ConfigMap),
        (DataKind::Secret, None) => Ok(Secret),
        (_, Some(kind @ Sysprep))
        | (DataKind::ConfigMap, Some(kind @ ConfigMap))
        | (DataKind::Secret, Some(kind @ (Secret | ServiceAccount))) => Ok(kind),
        (_, Some(kind @ (ConfigMap | Secret | ServiceAccount | DownwardApi))) => {
            let (path, kind) = (path.display(), kind.name());
            let what = format!("`{path}` is a {found:?}, which no `{kind}` disk is made of");
            Err(Failure::new(Class::Usage, what).with_hint("leave out `--type`"))
        }
    }
}

/// A file under its key or its own name; a folder's files under their names, as far as these are
/// keys: a mounted Secret has folders and links of its own beside them.
fn add_file(pair: &Pair, entries: &mut Vec<(String, Vec<u8>)>) -> Result<(), Failure> {
    let path = Path::new(pair.value.expose());
    let failed = |error| Failure::new(Class::Usage, error);
    let is_stdin = path == Path::new("-");
    let name = path.file_name().and_then(|name| name.to_str()).filter(|_| !is_stdin);
    if is_stdin || !fs_err::metadata(path).map_err(failed)?.is_dir() {
        let Some(key) = pair.key.as_deref().or(name) else {
            let what = format!("`{}` has no name that could be a key", path.display());
            let hint = format!("give it one: `--from-file KEY={}`", path.display());
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        };
        entries.push((key.to_owned(), read_input(path)?));
        return Ok(());
    }
    if let Some(key) = &pair.key {
        let what = format!("`{}` is a folder, whose files have names of their own", path.display());
        return Err(Failure::new(Class::Usage, what).with_hint(format!("leave out `{key}=`")));
    }
    let mut names = Vec::new();
    for entry in fs_err::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().into_string().unwrap_or_default();
        let is_file = fs_err::metadata(entry.path()).is_ok_and(|found| found.is_file());
        if is_file && bootyard_manifest::check_key(&name).is_ok() {
            names.push(name);
        }
    }
    names.sort_unstable();
    for name in names {
        let content = read_input(&path.join(&name))?;
        entries.push((name, content));
    }
    Ok(())
}
