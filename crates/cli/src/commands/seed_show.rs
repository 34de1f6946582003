//! `bootyard seed show`: what is on a seed, or on another small disk with files, whoever made it.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bootyard_cloudinit::{FoundData, FoundImage, FoundSeed, Tree};
use bootyard_image::raw::FileAt;
use bootyard_image::{Disk, ErrorKind};
use bootyard_spec::Class;
use bootyard_volume::Store;
use clap::Args;
use fs_err::os::unix::fs::OpenOptionsExt as _;

use crate::commands::run::resolve;
use crate::error::{Failure, read_input};
use crate::json::{FailureLine, FoundLine};
use crate::{output, settings};

/// Reads NoCloud and ConfigDrive images, and other small disks with files: ISO 9660 and FAT, by the
/// names that Linux shows. Passwords, keys and tokens are in the files only, which `--file` prints.
#[derive(Debug, Args)]
pub(crate) struct SeedShowArgs {
    /// Image, as raw disk, qcow2 or another format; volume:NAME, or - for standard input
    pub(crate) image: String,
    /// Print the content of this file, such as user-data
    #[arg(long, value_name = "PATH", conflicts_with_all = ["extract", "json"])]
    pub(crate) file: Option<String>,
    /// Write all files into this new folder, readable for their owner only
    #[arg(long, value_name = "DIR")]
    pub(crate) extract: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &SeedShowArgs) -> Result<ExitCode, Failure> {
    let shown = show(args);
    if args.json
        && let Err(failure) = &shown
    {
        let _ = output::json_line(&FailureLine::new(failure));
    }
    shown
}

fn show(args: &SeedShowArgs) -> Result<ExitCode, Failure> {
    let image = found(&args.image)?;
    if let Some(path) = &args.file {
        let content = image.file(path.trim_start_matches('/'));
        output::bytes(content.ok_or_else(|| no_file(&args.image, path, &image.files))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(folder) = &args.extract {
        extract(&image.files, folder)?;
    }
    let seed = FoundSeed::of(&image);
    if args.json {
        output::json_line(&FoundLine::new(&args.image, &image, seed.as_ref()))?;
    } else {
        output::result(&text(&args.image, &image, seed.as_ref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The image that the user named.
pub(crate) fn found(image: &str) -> Result<FoundImage, Failure> {
    let disk = match image.strip_prefix("volume:") {
        _ if image == "-" => bootyard_image::open(read_input(Path::new("-"))?),
        Some(name) => open(&resolve(&Store::open(&settings::store_home()?), name)?)?,
        None => open(Path::new(image))?,
    };
    let disk = disk.map_err(|error| {
        let is_packed = error.kind() == ErrorKind::Unsupported;
        let failure = Failure::new(Class::Image, error).about(image);
        match is_packed {
            true => failure.with_hint("unpack it: `gzip -dc IMAGE | bootyard seed show -`"),
            false => failure,
        }
    })?;
    FoundImage::read(&mut Bytes { disk, at: 0 }).map_err(|error| Failure::from(error).about(image))
}

/// An image in a file, in whichever format it says.
pub(crate) fn open(path: &Path) -> Result<Result<Box<dyn Disk>, bootyard_image::Error>, Failure> {
    let failed = |error| Failure::new(Class::Source, error);
    let file = fs_err::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        let what = format!("`{}` is a folder: expected an image", path.display());
        return Err(Failure::new(Class::Source, what));
    }
    Ok(bootyard_image::open(FileAt::new(file.into_parts().0).map_err(failed)?))
}

/// A disk as a stream that can be set to any place.
struct Bytes {
    disk: Box<dyn Disk>,
    at: u64,
}

impl Read for Bytes {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.disk.virtual_size().saturating_sub(self.at);
        let len = left.min(buf.len() as u64) as usize;
        self.disk.read_at(&mut buf[..len], self.at).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Bytes {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.disk.virtual_size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn no_file(image: &str, path: &str, files: &Tree) -> Failure {
    let what = format!("there is no file `{path}` on `{image}`");
    let mut names: Vec<String> = files.files().map(|(path, _)| path).take(11).collect();
    if names.len() > 10 {
        names[10] = "…".to_owned();
    }
    let names = output::plain_line(&names.join(", "));
    Failure::new(Class::Usage, what).with_hint(format!("it has {names}"))
}

/// Writes the files beside `folder` and renames: it has all of them, or is not there.
fn extract(files: &Tree, folder: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(Class::Target, error);
    let name = folder.file_name().ok_or_else(|| {
        Failure::new(Class::Usage, format!("`{}` names no new folder", folder.display()))
    })?;
    if fs_err::symlink_metadata(folder).is_ok() {
        let what = format!("`{}` is there already", folder.display());
        return Err(Failure::new(Class::Target, what).with_hint("name a new folder"));
    }
    let part = folder.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    let write = |(path, content): (String, &[u8])| {
        let path = part.join(path);
        fs_err::create_dir_all(path.parent().unwrap_or(&part))?;
        let mut options = fs_err::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).open(&path)?.write_all(content)
    };
    fs_err::create_dir(&part).map_err(failed)?;
    let written = fs_err::set_permissions(&part, Permissions::from_mode(0o700))
        .and_then(|()| files.files().try_for_each(write))
        .and_then(|()| fs_err::rename(&part, folder));
    written.map_err(|error| {
        // It is ours: it was made here. That it cannot be removed is no worse than the error.
        let _ = fs_err::remove_dir_all(&part);
        failed(error)
    })
}

/// One fact a line; what is not there is left out.
fn text(name: &str, image: &FoundImage, seed: Option<&FoundSeed>) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<14}{}", output::plain_line(&value));
        }
    };
    row("image", Some(name.to_owned()));
    row("file system", Some(image.file_system.name().to_owned()));
    row("partition", image.partition.map(|number| number.to_string()));
    row("label", image.label.clone());
    row("data source", Some(seed.map_or("none: this is no seed", |s| s.datasource.name()).into()));
    if let Some(seed) = seed {
        row("instance-id", seed.instance_id.clone());
        row("host name", seed.hostname.clone());
        for key in &seed.ssh_keys {
            let (kind, fingerprint) = (key.key_type(), key.fingerprint());
            let line = format!("{kind} {fingerprint} {}", key.comment());
            row("ssh key", Some(line.trim_end().to_owned()));
        }
        data_rows("user-data", seed.user_data.as_ref(), &mut row);
        data_rows("vendor-data", seed.vendor_data.as_ref(), &mut row);
        let network = seed.network_config.as_ref();
        row("network", network.map(|n| format!("{}, {}", n.form.name(), bytes(n.content.len()))));
    }
    for (path, content) in image.files.files() {
        row("file", Some(format!("{path}, {}", bytes(content.len()))));
    }
    for (path, target) in &image.loose_links {
        row("loose link", Some(format!("{path} to {target}")));
    }
    for problem in seed.map(|seed| &seed.problems).into_iter().flatten() {
        row("problem", Some(problem.clone()));
    }
    text
}

/// Each part of the data, the first one beside its name.
fn data_rows(name: &str, data: Option<&FoundData>, row: &mut impl FnMut(&str, Option<String>)) {
    for (part, number) in data.iter().flat_map(|data| &data.parts.parts).zip(0..) {
        let taken_for = part.format.map_or("ignored", |format| format.content_type());
        let mut line = format!("{taken_for}, {}", bytes(part.content.len()));
        if let Some(name) = &part.file_name {
            let _ = write!(line, ", {name}");
        }
        if part.was_compressed {
            line += ", compressed";
        }
        row(if number == 0 { name } else { "" }, Some(line));
    }
}

fn bytes(len: usize) -> String {
    if len == 1 { "1 byte".to_owned() } else { format!("{len} bytes") }
}
