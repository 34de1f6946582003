//! `bootyard seed`: reads what the user named, and writes the seed in one step.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use bootyard_cloudinit::{Seed, SshPublicKey, UserData};
use bootyard_spec::Class;
use fs_err::os::unix::fs::OpenOptionsExt;

use crate::args::SeedBuildArgs;
use crate::error::{Failure, read_input};
use crate::{output, settings};

pub(crate) fn build(args: &SeedBuildArgs) -> Result<ExitCode, Failure> {
    refuse_other(&args.output)?;
    let seed = gather(args)?;
    let image = seed.build(args.datasource, args.format, settings::seed_timestamp()?)?;
    replace(&args.output, &image)?;
    output::result(&format!("{}\n", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn gather(args: &SeedBuildArgs) -> Result<Seed, Failure> {
    let inputs = args.ssh_keys.iter().chain(&args.user_data).chain(&args.network_config);
    if inputs.filter(|path| path.as_os_str() == "-").count() > 1 {
        let what = "`-` is given more than once: expected one reader of standard input";
        return Err(Failure::new(Class::Usage, what));
    }
    let mut seed = Seed::new(args.hostname.clone());
    seed.instance_id.clone_from(&args.instance_id);
    for path in &args.ssh_keys {
        let text = read_input(path)?;
        seed.ssh_keys.extend(SshPublicKey::parse_all(&path.display().to_string(), &text)?);
    }
    for path in &args.user_data {
        seed.user_data.push(UserData::parse(&path.display().to_string(), read_input(path)?)?);
    }
    seed.network_config = args.network_config.as_deref().map(network_config).transpose()?;
    Ok(seed)
}

/// Reads a network configuration, which is text in each of its versions.
fn network_config(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = read_input(path)?;
    let got = match std::str::from_utf8(&bytes) {
        Ok(text) if !text.trim().is_empty() => return Ok(bytes),
        Ok(_) => "nothing",
        Err(_) => "bytes that are not UTF-8",
    };
    let what = format!("network configuration `{}`: expected YAML, got {got}", path.display());
    Err(Failure::new(Class::Usage, what))
}

/// Refuses to replace what is no seed: a device, a folder, or whatever a link leads to.
fn refuse_other(path: &Path) -> Result<(), Failure> {
    match fs_err::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            let what = format!("output `{}` is not a regular file", path.display());
            Err(Failure::new(Class::Target, what).with_hint("name another file"))
        }
        _ => Ok(()),
    }
}

/// Writes `bytes` beside `path` and renames: a reader sees the old seed or the new one, never half.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let name = path
        .file_name()
        .ok_or_else(|| Failure::new(Class::Usage, format!("`{}` names no file", path.display())))?;
    let part = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = |error| Failure::new(Class::Target, error);
    let folder = fs_err::File::open(folder).map_err(failed)?;
    // A seed may hold password hashes and keys: it is for its owner alone.
    let mut options = fs_err::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&part).map_err(failed)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.and_then(|()| fs_err::rename(&part, path)).map_err(|error: io::Error| {
        // It is ours: it was made here. That it cannot be removed is no worse than the error.
        let _ = fs_err::remove_file(&part);
        failed(error)
    })?;
    folder.sync_all().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: SeedBuildArgs,
    }

    fn gathered(flags: &[&str]) -> Result<Seed, Failure> {
        let line = ["seed", "--hostname", "h", "-o", "seed.iso"];
        gather(&Line::parse_from(line.iter().chain(flags)).args)
    }

    #[test]
    fn inputs_that_make_no_seed_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("net");
        let name = file.to_str().unwrap();
        let network = ["--network-config", name];
        for (content, flags, message) in [
            (&b""[..], &["--user-data", "-", "--ssh-key", "-"][..], "`-` is given more than once"),
            (b" \n", &network, "expected YAML, got nothing"),
            (b"\xff", &network, "expected YAML, got bytes that are not UTF-8"),
        ] {
            fs_err::write(&file, content).unwrap();
            let failure = gathered(flags).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.message().contains(message), "{}", failure.message());
        }
    }

    #[test]
    fn only_a_regular_file_is_replaced_and_the_seed_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let (seed, link) = (folder.path().join("seed"), folder.path().join("link"));
        for bytes in [b"one", b"two"] {
            refuse_other(&seed).unwrap();
            replace(&seed, bytes).unwrap();
            assert_eq!(fs_err::read(&seed).unwrap(), bytes);
        }
        assert_eq!(fs_err::metadata(&seed).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
        fs_err::os::unix::fs::symlink("seed", &link).unwrap();
        for other in [link.as_path(), folder.path(), Path::new("/dev/null")] {
            assert_eq!(refuse_other(other).unwrap_err().exit_code(), 6);
        }
    }
}
