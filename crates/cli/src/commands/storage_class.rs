//! `bootyard storage-class`: where volumes are made, and what they are then.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bootyard_manifest::StorageDocument;
use bootyard_spec::{
    AccessMode, ByteSize, ClaimPropertySet, Class, FilesystemOverhead, StorageClass,
    StorageClassName, StorageDriver, VolumeMode,
};
use bootyard_volume::Store;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use crate::error::{Failure, read_input};
use crate::table::table;
use crate::{output, settings};

#[derive(Debug, Subcommand)]
pub(crate) enum StorageClassCommand {
    /// List storage classes
    Ls(LsArgs),
    /// Add a storage class
    Add(Box<AddArgs>),
    /// Remove a storage class that has no volumes
    Rm(NameArgs),
    /// Make a storage class the one of volumes that name none
    SetDefault(NameArgs),
    /// Take a cluster's StorageProfiles and its ConfigMap `kubevirt-storage-class-defaults`
    Apply(ApplyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    name: StorageClassName,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// YAML file as `kubectl get -o yaml` prints it; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    name: StorageClassName,
    /// Where its volumes are: directory, devices, loop or lvm-thin
    #[arg(long)]
    driver: DriverName,
    /// Folder of the volumes (directory, loop)
    #[arg(long, value_name = "FOLDER")]
    path: Option<PathBuf>,
    /// Block device for one volume (devices); may be repeated
    #[arg(long = "device", value_name = "BLOCKDEV")]
    devices: Vec<PathBuf>,
    /// Thin pool (lvm-thin)
    #[arg(long, value_name = "GROUP/POOL")]
    pool: Option<String>,
    /// Sectors of the block devices (loop)
    #[arg(long, value_name = "BYTES", value_parser = ["512", "4096"])]
    sector_size: Option<String>,
    /// Who may use a volume at a time: RWO, RWX, ROX; may be repeated [default: RWO]
    #[arg(long = "access-mode", value_name = "MODE", value_delimiter = ',')]
    access_modes: Vec<AccessMode>,
    /// What a file system takes for itself
    #[arg(long, value_name = "PART", default_value = "0.06")]
    filesystem_overhead: FilesystemOverhead,
    /// Take all of a volume's space at once
    #[arg(long)]
    preallocation: bool,
    /// No volume that is asked for is smaller
    #[arg(long, value_name = "QTY")]
    minimum_size: Option<ByteSize>,
    /// Make it the class of volumes that name none
    #[arg(long)]
    default: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverName {
    Directory,
    Devices,
    Loop,
    LvmThin,
}

pub(crate) fn run(command: StorageClassCommand) -> Result<ExitCode, Failure> {
    let store = Store::open(&settings::store_home()?);
    match command {
        StorageClassCommand::Ls(args) => list(&store, &args)?,
        StorageClassCommand::Add(args) => store.add_class(&class(*args)?)?,
        StorageClassCommand::Rm(args) => store.remove_class(&args.name)?,
        StorageClassCommand::SetDefault(args) => store.set_default_class(&args.name)?,
        StorageClassCommand::Apply(args) => apply(&store, &args.file)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A class as `ls --json` prints it.
#[derive(Debug, Serialize)]
struct ClassLine<'a> {
    name: &'a str,
    is_default: bool,
    driver: &'static str,
    place: String,
    volume_mode: &'static str,
    access_modes: Vec<&'static str>,
    filesystem_overhead: f64,
    preallocation: bool,
    minimum_size_bytes: Option<u64>,
    clone_strategy: Option<&'static str>,
}

fn list(store: &Store, args: &LsArgs) -> Result<(), Failure> {
    let header = ["NAME", "DRIVER", "MODE", "ACCESS", "PLACE"].map(str::to_owned);
    let mut rows = vec![header.to_vec()];
    for class in store.classes()? {
        let (volume_mode, access_modes) = store.modes_of(&class)?;
        let place = place(&class.driver);
        if args.json {
            output::json_line(&ClassLine {
                name: class.name.as_str(),
                is_default: class.is_default,
                driver: class.driver.name(),
                place,
                volume_mode: volume_mode.name(),
                access_modes: access_modes.as_slice().iter().map(|mode| mode.name()).collect(),
                filesystem_overhead: class.filesystem_overhead.fraction(),
                preallocation: class.preallocation,
                minimum_size_bytes: class.minimum_size.map(ByteSize::bytes),
                clone_strategy: class.clone_strategy.map(|strategy| strategy.name()),
            })?;
            continue;
        }
        let default = if class.is_default { " (default)" } else { "" };
        rows.push(vec![
            format!("{}{default}", class.name),
            class.driver.name().to_owned(),
            volume_mode.to_string(),
            access_modes.to_string(),
            place,
        ]);
    }
    if args.json { Ok(()) } else { output::result(&table(&rows)) }
}

fn place(driver: &StorageDriver) -> String {
    match driver {
        StorageDriver::Directory(folder) | StorageDriver::Loop { folder, .. } => {
            folder.display().to_string()
        }
        StorageDriver::Devices(devices) => {
            let devices: Vec<_> = devices.iter().map(|path| path.display().to_string()).collect();
            devices.join(" ")
        }
        StorageDriver::LvmThin { group, pool } => format!("{group}/{pool}"),
    }
}

fn class(args: AddArgs) -> Result<StorageClass, Failure> {
    let driver = driver(&args)?;
    let sets = match args.access_modes.as_slice() {
        [] => Vec::new(),
        modes => {
            let volume_mode: Option<VolumeMode> = Some(driver.volume_mode());
            let access_modes = modes.iter().copied().collect();
            vec![ClaimPropertySet { access_modes, volume_mode }]
        }
    };
    Ok(StorageClass {
        claim_property_sets: sets,
        filesystem_overhead: args.filesystem_overhead,
        preallocation: args.preallocation,
        is_default: args.default,
        minimum_size: args.minimum_size,
        ..StorageClass::new(args.name, driver)
    })
}

fn driver(args: &AddArgs) -> Result<StorageDriver, Failure> {
    let usage = |what: &str| Failure::new(Class::Usage, what.to_owned());
    let (path, devices, pool) =
        (args.path.is_some(), !args.devices.is_empty(), args.pool.is_some());
    let given = (path, devices, pool, args.sector_size.is_some());
    // Another directory tomorrow must not be another class.
    let absolute =
        |path: &Path| std::path::absolute(path).map_err(|error| Failure::new(Class::Usage, error));
    match (args.driver, &args.path, given) {
        (DriverName::Directory, Some(path), (_, false, false, false)) => {
            Ok(StorageDriver::Directory(absolute(path)?))
        }
        (DriverName::Loop, Some(path), (_, false, false, _)) => {
            let is_large = args.sector_size.as_deref() == Some("4096");
            let sector_size = if is_large { 4096 } else { 512 };
            Ok(StorageDriver::Loop { folder: absolute(path)?, sector_size })
        }
        (DriverName::Devices, _, (false, true, false, false)) => {
            let devices = args.devices.iter().map(|device| absolute(device));
            Ok(StorageDriver::Devices(devices.collect::<Result<_, _>>()?))
        }
        (DriverName::LvmThin, _, (false, false, true, false)) => {
            let parts = args.pool.as_deref().and_then(|pool| pool.split_once('/'));
            let named = parts.filter(|(group, pool)| !group.is_empty() && !pool.is_empty());
            let (group, pool) = named.ok_or_else(|| usage("expected `--pool GROUP/POOL`"))?;
            Ok(StorageDriver::LvmThin { group: group.to_owned(), pool: pool.to_owned() })
        }
        (DriverName::Directory, ..) => Err(usage("driver `directory` takes `--path` alone")),
        (DriverName::Loop, ..) => Err(usage("driver `loop` takes `--path` and `--sector-size`")),
        (DriverName::Devices, ..) => Err(usage("driver `devices` takes `--device` alone")),
        (DriverName::LvmThin, ..) => Err(usage("driver `lvm-thin` takes `--pool` alone")),
    }
}

fn apply(store: &Store, file: &Path) -> Result<(), Failure> {
    let bytes = read_input(file)?;
    let documents = bootyard_manifest::storage(&bytes).map_err(|error| {
        let what = format!("`{}`: {error}", file.display());
        let hint = "expected StorageProfiles of cdi.kubevirt.io/v1beta1, or a ConfigMap, as \
                    `kubectl get -o yaml` prints them";
        Failure::new(Class::Usage, what).with_hint(hint)
    })?;
    let known = store.classes()?;
    for document in documents {
        let (what, named): (String, Vec<StorageClassName>) = match &document {
            StorageDocument::Profile(profile) => {
                store.apply_profile(profile)?;
                (format!("storage profile {}", profile.class), vec![profile.class.clone()])
            }
            StorageDocument::Defaults(defaults) => {
                store.apply_defaults(defaults)?;
                (
                    "defaults of storage classes".to_owned(),
                    defaults.classes.keys().cloned().collect(),
                )
            }
        };
        let unknown = named.iter().filter(|name| known.iter().all(|class| class.name != **name));
        let unknown: Vec<String> = unknown.map(ToString::to_string).collect();
        let later = match unknown.as_slice() {
            [] => String::new(),
            names => format!(" ({} not here yet)", names.join(", ")),
        };
        output::result(&format!("applied {what}{later}\n"))?;
    }
    Ok(())
}
