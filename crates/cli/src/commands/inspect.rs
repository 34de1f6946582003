//! `bootyard inspect`: shows what an image is.

use std::fmt::Write as _;
use std::process::ExitCode;

use bootyard_image::{Info, chain_name};
use bootyard_spec::ByteSize;

use crate::args::InspectArgs;
use crate::error::Failure;
use crate::json::{FailureLine, InfoLine, content_name, filesystem_volume};
use crate::{output, settings};

pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    args.transfer.check(&args.source, None)?;
    args.image.check(&args.source)?;
    let mut options = args.transfer.options()?;
    options.image = settings::image_options(&args.image);
    args.stores.apply(&args.source, &mut options)?;
    let besides = args.besides.check(&args.source)?;
    let inspected = bootyard_import::inspect_with(&args.source, &besides, &options);
    let info = match inspected.map_err(Failure::from) {
        Ok(info) => info,
        Err(failure) => {
            if args.json {
                let _ = output::json_line(&FailureLine::new(&failure));
            }
            return Err(failure);
        }
    };
    if args.json {
        output::json_line(&InfoLine::new(&args.source.to_string(), &info))?;
    } else {
        output::result(&table(&args.source.to_string(), &info))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One fact a line; what the format does not have is left out.
fn table(source: &str, info: &Info) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<14}{value}");
        }
    };
    row("source", Some(source.to_owned()));
    row("format", Some(format(info)));
    row("contents", info.content.map(|content| content_name(content).to_owned()));
    row("virtual size", info.virtual_size.map(size));
    row("allocated", info.allocated.map(size));
    row("cluster size", info.cluster_size.map(short));
    row("sector size", info.sector_size.map(|bytes| format!("{bytes} bytes")));
    row("compression", info.compression.map(str::to_owned));
    row("features", (!info.features.is_empty()).then(|| info.features.join(", ")));
    for snapshot in &info.snapshots {
        let (id, name) = (&snapshot.id, &snapshot.name);
        row("snapshot", Some(format!("{id} {name}, {}", short(snapshot.virtual_size))));
    }
    row("backing file", info.backing_file.clone());
    row("data file", info.data_file.clone());
    for extent in &info.extents {
        row("extent", Some(extent.clone()));
    }
    for note in &info.notes {
        row("note", Some(note.clone()));
    }
    let volume = |bytes| {
        let filesystem = filesystem_volume(bytes).bytes();
        format!("{filesystem} bytes with a file system, {bytes} as a block device")
    };
    row("volume size", info.virtual_size.map(volume));
    row("importable", Some(info.refused.as_ref().map_or("yes".into(), |why| format!("no: {why}"))));
    text
}

/// The containers, the format, its version and kind: `gzip → qcow2 version 3`.
fn format(info: &Info) -> String {
    let version = info.version.map(|version| format!(" version {version}")).unwrap_or_default();
    let variant = info.variant.as_ref().map(|variant| format!(" ({variant})")).unwrap_or_default();
    format!("{}{version}{variant}", chain_name(&info.chain))
}

fn short(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).to_string()
}

fn size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", short(bytes))
}
