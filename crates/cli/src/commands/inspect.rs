//! `bootyard inspect`: shows what an image is.

use std::fmt::Write as _;
use std::process::ExitCode;

use bootyard_image::Info;
use bootyard_source::Options;
use bootyard_spec::ByteSize;

use crate::args::InspectArgs;
use crate::error::Failure;
use crate::json::{FailureLine, InfoLine};
use crate::output;

pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode, Failure> {
    let inspected = bootyard_import::inspect(&args.source, &Options::default());
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
    let size = |bytes: u64| format!("{} ({bytes} bytes)", ByteSize::from_bytes(bytes));
    let version = info.version.map(|version| format!(" version {version}"));
    let rows = [
        ("source", Some(source.to_owned())),
        ("format", Some(format!("{}{}", info.format.name(), version.unwrap_or_default()))),
        ("virtual size", info.virtual_size.map(size)),
        ("cluster size", info.cluster_size.map(|bytes| ByteSize::from_bytes(bytes).to_string())),
        ("compression", info.compression.map(str::to_owned)),
        ("features", (!info.features.is_empty()).then(|| info.features.join(", "))),
        ("snapshots", (!info.snapshots.is_empty()).then(|| info.snapshots.len().to_string())),
        ("backing file", info.backing_file.clone()),
        ("data file", info.data_file.clone()),
        (
            "importable",
            Some(info.refused.as_ref().map_or("yes".into(), |why| format!("no: {why}"))),
        ),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<14}{value}");
        }
    }
    text
}
