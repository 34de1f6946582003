//! What `boot-entries --json` prints.

use bootyard_bootload::{Entry, Listing};
use serde::Serialize;

/// What a disk offers to boot, in the order in which it counts.
#[derive(Debug, Serialize)]
pub(crate) struct BootEntriesLine<'a> {
    image: &'a str,
    entries: Vec<EntryLine<'a>>,
    /// What was found besides, in words.
    findings: &'a [String],
}

#[derive(Debug, Serialize)]
struct EntryLine<'a> {
    title: &'a str,
    id: Option<&'a str>,
    default: bool,
    /// `grub`, `bls`, `uki` or `extlinux`.
    method: String,
    /// 0 is a disk without partitions.
    partition: u32,
    config: &'a str,
    kernel: Option<&'a str>,
    initrds: &'a [String],
    cmdline: &'a str,
    console_on_serial: bool,
    /// Why it does not boot; null if it does.
    problem: Option<&'a str>,
}

impl<'a> BootEntriesLine<'a> {
    pub(crate) fn new(image: &'a str, listing: &'a Listing) -> Self {
        let entries = listing.entries.iter().map(EntryLine::new).collect();
        Self { image, entries, findings: &listing.findings }
    }
}

impl<'a> EntryLine<'a> {
    fn new(entry: &'a Entry) -> Self {
        Self {
            title: &entry.title,
            id: entry.id.as_deref(),
            default: entry.default,
            method: entry.method.to_string(),
            partition: entry.partition,
            config: &entry.config,
            kernel: entry.kernel.as_deref(),
            initrds: &entry.initrds,
            cmdline: &entry.cmdline,
            console_on_serial: entry.console_on_serial,
            problem: entry.problem.as_deref(),
        }
    }
}
