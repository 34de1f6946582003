//! `bootyard boot-entries`: what a disk would boot, and what of it would not.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use bootyard_bootload::{Entry, Listing, list};
use bootyard_image::Disk;
use bootyard_spec::Class;
use bootyard_volume::Store;
use clap::Args;

use crate::commands::{run::resolve, seed_show};
use crate::error::Failure;
use crate::json::{BootEntriesLine, FailureLine};
use crate::{host, output, settings};

/// The KVM machine has no firmware: it reads the disk's boot menu itself, GRUB's, systemd-boot's or
/// extlinux's, and boots the entry marked with *; `run --entry` boots another one.
#[derive(Debug, Args)]
pub(crate) struct BootEntriesArgs {
    /// Image, as raw disk, qcow2 or another format; or volume:NAME
    image: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &BootEntriesArgs) -> Result<ExitCode, Failure> {
    let shown = show(args);
    if args.json
        && let Err(failure) = &shown
    {
        let _ = output::json_line(&FailureLine::new(failure));
    }
    shown
}

fn show(args: &BootEntriesArgs) -> Result<ExitCode, Failure> {
    let disk = open(&args.image)?;
    let listing = list(&disk).map_err(|error| Failure::new(Class::Boot, error))?;
    if listing.entries.is_empty() {
        let what = format!("nothing to boot was found on `{}`", args.image);
        let what = format!("{what} ({})", listing.findings.join("; "));
        return Err(Failure::new(Class::Boot, what).with_hint(
            "`bootyard run --engine qemu` boots through firmware as a PC would; `run --kernel` \
             starts a kernel of yours",
        ));
    }
    if args.json {
        output::json_line(&BootEntriesLine::new(&args.image, &listing))?;
    } else {
        output::result(&text(&listing))?;
    }
    let default = listing.entries.iter().find(|entry| entry.default);
    if default.is_some_and(|entry| entry.problem.is_none() && !entry.console_on_serial) {
        output::error(
            "hint: the default entry does not speak on the serial port; `run --append \
             console=ttyS0` shows its kernel's messages\n",
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn open(image: &str) -> Result<Arc<dyn Disk>, Failure> {
    let Some(name) = image.strip_prefix("volume:") else {
        let disk = seed_show::open(Path::new(image))?;
        let disk = disk.map_err(|error| Failure::new(Class::Image, error).about(image))?;
        return Ok(Arc::from(disk));
    };
    let path = resolve(&Store::open(&settings::store_home()?), name)?;
    Ok(Arc::from(host::look_at(&path)?))
}

/// An entry in some lines, the default marked; then what else there is.
fn text(listing: &Listing) -> String {
    let mut text = String::new();
    for entry in &listing.entries {
        let mark = if entry.default { '*' } else { ' ' };
        let _ = writeln!(text, "{mark} {}", entry.title);
        for (name, value) in facts(entry) {
            let _ = writeln!(text, "    {name:<9}{value}");
        }
    }
    if !listing.findings.is_empty() {
        text.push_str("besides:\n");
    }
    for finding in &listing.findings {
        let _ = writeln!(text, "    {finding}");
    }
    text
}

fn facts(entry: &Entry) -> Vec<(&'static str, String)> {
    let partition = match entry.partition {
        0 => "the whole disk".to_owned(),
        number => format!("partition {number}"),
    };
    let mut facts = vec![("from", format!("{} `{}`, {partition}", entry.method, entry.config))];
    facts.extend(entry.id.clone().map(|id| ("id", id)));
    facts.extend(entry.kernel.clone().map(|kernel| ("kernel", kernel)));
    facts.extend(entry.initrds.iter().map(|initrd| ("initrd", initrd.clone())));
    let cmdline = Some(entry.cmdline.clone()).filter(|cmdline| !cmdline.is_empty());
    facts.extend(cmdline.map(|cmdline| ("cmdline", cmdline)));
    facts.extend(entry.problem.clone().map(|problem| ("problem", problem)));
    facts
}
