//! `bootyard seed`: reads what the user named, and writes the seed in one step.

use std::path::Path;
use std::process::ExitCode;

use bootyard_cloudinit::{Seed, SshPublicKey, UserData};
use bootyard_spec::Class;

use crate::args::SeedBuildArgs;
use crate::error::{Failure, read_input};
use crate::{output, settings};

pub(crate) fn build(args: &SeedBuildArgs) -> Result<ExitCode, Failure> {
    let seed = gather(args)?;
    let image = seed.build(args.datasource, args.format, settings::seed_timestamp()?)?;
    replace(&args.output, &image)?;
    output::result(&format!("{}\n", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn gather(args: &SeedBuildArgs) -> Result<Seed, Failure> {
    let mut seed = Seed::new(args.hostname.clone());
    seed.instance_id.clone_from(&args.instance_id);
    for path in &args.ssh_keys {
        let text = read_input(path)?;
        seed.ssh_keys.extend(SshPublicKey::parse_all(&path.display().to_string(), &text)?);
    }
    for path in &args.user_data {
        seed.user_data.push(UserData::parse(&path.display().to_string(), read_input(path)?)?);
    }
    seed.network_config = args.network_config.as_deref().map(read_input).transpose()?;
    Ok(seed)
}

/// Writes `bytes` beside `path` and renames: a reader sees the old seed or the new one, never half.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let name = path
        .file_name()
        .ok_or_else(|| Failure::new(Class::Usage, format!("`{}` names no file", path.display())))?;
    let part = path.with_file_name(format!(".{}.{}", name.display(), std::process::id()));
    let written = fs_err::write(&part, bytes).and_then(|()| fs_err::rename(&part, path));
    written.map_err(|error| {
        // What is left is ours alone; that it may not be there is no news.
        let _ = fs_err::remove_file(&part);
        Failure::new(Class::Target, error)
    })
}
