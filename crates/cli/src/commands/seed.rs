//! `bootyard seed`: reads what the user named, and writes the seed in one step.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use bootyard_cloudinit::DiskImage;
use bootyard_spec::Class;
use fs_err::os::unix::fs::OpenOptionsExt;
use serde::Serialize;

use crate::args::SeedBuildArgs;
use crate::error::Failure;
use crate::json::FailureLine;
use crate::{output, seeds, settings};

/// What `seed build --json` prints.
#[derive(Debug, Serialize)]
struct BuiltLine {
    event: &'static str,
    path: String,
    datasource: &'static str,
    label: &'static str,
    format: &'static str,
    size_bytes: usize,
    hostname: String,
    instance_id: String,
}

pub(crate) fn build(args: &SeedBuildArgs) -> Result<ExitCode, Failure> {
    let done = build_seed(args);
    if args.json
        && let Err(failure) = &done
    {
        let _ = output::json_line(&FailureLine::new(failure));
    }
    done
}

fn build_seed(args: &SeedBuildArgs) -> Result<ExitCode, Failure> {
    refuse_other(&args.output)?;
    let seed = seeds::gather(&args.seed, &args.users, None, args.datasource)?;
    let image = seed.build(args.datasource, args.format, settings::seed_timestamp()?)?;
    replace(&args.output, &image)?;
    let path = args.output.display().to_string();
    if !args.json {
        output::result(&format!("{path}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::json_line(&BuiltLine {
        event: "built",
        path,
        datasource: args.datasource.name(),
        label: args.datasource.label(),
        format: args.format.name(),
        size_bytes: image.size(),
        hostname: seed.hostname.to_string(),
        instance_id: seed.instance_id().to_string(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses to replace what is no image: a device, a folder, or whatever a link leads to.
pub(crate) fn refuse_other(path: &Path) -> Result<(), Failure> {
    match fs_err::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            let what = format!("output `{}` is not a regular file", path.display());
            Err(Failure::new(Class::Target, what).with_hint("name another file"))
        }
        _ => Ok(()),
    }
}

/// Writes the image beside `path` and renames: a reader sees the old image or the new one, never half.
///
/// One that takes the place of another is on the disk before it does, so that a power cut leaves either.
/// A new one is not waited for, which would take as long as all else: the same command makes it again.
pub(crate) fn replace(path: &Path, image: &DiskImage) -> Result<(), Failure> {
    let name = path
        .file_name()
        .ok_or_else(|| Failure::new(Class::Usage, format!("`{}` names no file", path.display())))?;
    let part = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    let failed = |error| Failure::new(Class::Target, error);
    let is_new = fs_err::symlink_metadata(path).is_err();
    // It may hold password hashes and keys: it is for its owner alone.
    let mut options = fs_err::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&part).map_err(failed)?;
    // The zeros that fill an image up are a hole.
    let written = file
        .write_all(image.content())
        .and_then(|()| file.set_len(image.size() as u64))
        .and_then(|()| if is_new { Ok(()) } else { file.sync_all() });
    written.and_then(|()| fs_err::rename(&part, path)).map_err(|error: io::Error| {
        // It is ours: it was made here. That it cannot be removed is no worse than the error.
        let _ = fs_err::remove_file(&part);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use bootyard_cloudinit::{Image, ImageFormat, Tree};

    use super::*;

    #[test]
    fn only_a_regular_file_is_replaced_and_the_seed_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let (seed, link) = (folder.path().join("seed"), folder.path().join("link"));
        for label in ["one", "two"] {
            let image = Image { format: ImageFormat::Fat, label, timestamp: 0 };
            let image = image.build(&Tree::new()).unwrap();
            refuse_other(&seed).unwrap();
            replace(&seed, &image).unwrap();
            assert_eq!(fs_err::read(&seed).unwrap(), image.into_bytes());
        }
        assert_eq!(fs_err::metadata(&seed).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
        fs_err::os::unix::fs::symlink("seed", &link).unwrap();
        for other in [link.as_path(), folder.path(), Path::new("/dev/null")] {
            assert_eq!(refuse_other(other).unwrap_err().exit_code(), 6);
        }
    }
}
