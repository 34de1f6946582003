//! `bootyard push`: a disk as a container image.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use bootyard_import::{LayerCompression, PushRequest, Pushed};
use bootyard_spec::{ByteSize, Class, ImageLayout, OutputFormat, Platform, Source, StoredImage};
use bootyard_volume::Store;

use crate::args::{PushArgs, PushFormat};
use crate::commands::run::resolve_to_read;
use crate::error::Failure;
use crate::json::{FailureLine, PushedLine};
use crate::{output, settings};

pub(crate) fn run(args: &PushArgs) -> Result<ExitCode, Failure> {
    let done = push(args);
    if args.json
        && let Err(failure) = &done
    {
        let _ = output::json_line(&FailureLine::new(failure));
    }
    done
}

fn push(args: &PushArgs) -> Result<ExitCode, Failure> {
    if !matches!(args.target, Source::Registry(_) | Source::Stored(_)) {
        let what = format!("`{}` is no place for an image", args.target);
        let hint = "expected docker://HOST/NAME:TAG, oci:FOLDER:TAG or oci-archive:FILE:TAG";
        return Err(Failure::new(Class::Usage, what).with_hint(hint));
    }
    if let Source::Stored(StoredImage { layout: ImageLayout::OciArchive, path, .. }) = &args.target
        && path.exists()
    {
        let what = format!("`{}` exists already", path.display());
        let hint = "name a file that is not there yet, or a folder, which holds several images";
        return Err(Failure::new(Class::Target, what).with_hint(hint));
    }
    args.transfer.check(&args.target, None)?;
    args.image.check(&args.target)?;
    if args.image.image_path.is_some() {
        let what = "`--image-path` is for reading an image, and `push` stores the disk in `/disk`";
        return Err(Failure::new(Class::Usage, what).with_hint("leave out `--image-path`"));
    }
    let mut options = args.transfer.options()?;
    options.image = settings::image_options(&args.image);
    let store = Store::open(&settings::store_home()?);
    let (disk, access) = resolve_to_read(&store, &args.disk)?;
    let (format, usual) = match args.format {
        // What is compressed cluster by cluster gains nothing by another compression.
        PushFormat::Qcow2 => (OutputFormat::Qcow2Zstd, LayerCompression::None),
        PushFormat::Raw => (OutputFormat::Raw, LayerCompression::Gzip),
    };
    let scratch = args.scratch.clone().or_else(|| disk.parent().map(Path::to_owned));
    let request = PushRequest {
        scratch: scratch.filter(|path| *path != Path::new("")).unwrap_or_else(|| ".".into()),
        disk,
        access,
        target: args.target.clone(),
        format,
        compression: args.compression.unwrap_or(usual),
        platform: args.image.platform.clone().unwrap_or_else(Platform::host),
        env: args.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        labels: args.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
        created: settings::seed_timestamp()?,
    };
    let pushed = bootyard_import::push(&request, &options)?;
    let target = args.target.to_string();
    match args.json {
        true => output::json_line(&PushedLine::new(&target, &pushed))?,
        false => output::result(&summary(&target, &pushed))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(target: &str, pushed: &Pushed) -> String {
    let Pushed { digest, layer, layer_bytes, virtual_size } = pushed;
    let size = ByteSize::from_bytes(*virtual_size);
    format!(
        "pushed {target}\n  disk     {size}\n  layer    {layer}, {layer_bytes} bytes\n  \
         image    {digest}\n"
    )
}
