//! `bootyard seed diff`: what a guest would see differently on two seeds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use bootyard_cloudinit::{FoundImage, FoundSeed};
use bootyard_spec::Class;
use clap::Args;
use serde::Serialize;
use similar::TextDiff;

use crate::commands::seed_show::found;
use crate::error::Failure;
use crate::json::FailureLine;
use crate::output::{self, plain_line, plain_lines};

/// How long equal lines of one file are searched for; after that more may count as changed than need.
const SEARCH_MAX: Duration = Duration::from_secs(2);

/// Exit codes, as diff(1) has them: 0 if the guest sees the same, 1 if not, others for errors.
///
/// Where the files are on the image, and which file system that has, a guest does not mind. The lines
/// that differ are printed, with secrets that are in them.
#[derive(Debug, Args)]
pub(crate) struct SeedDiffArgs {
    /// Image, as raw disk, qcow2 or another format; volume:NAME, or - for standard input
    pub(crate) a: String,
    /// The other one
    pub(crate) b: String,
    /// Name the files that differ, without their lines
    #[arg(short = 'q', long)]
    pub(crate) brief: bool,
    /// Print one JSON object, without the files' lines
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &SeedDiffArgs) -> Result<ExitCode, Failure> {
    // 1 tells that they differ, and nothing else.
    let mend = |failure: Failure| match failure.is(Class::Other) {
        true => failure.with_class(Class::Target),
        false => failure,
    };
    let compared = compare(args).map_err(mend);
    if args.json
        && let Err(failure) = &compared
    {
        let _ = output::json_line(&FailureLine::new(failure));
    }
    compared
}

fn compare(args: &SeedDiffArgs) -> Result<ExitCode, Failure> {
    if args.a == "-" && args.b == "-" {
        let what = "`-` is given twice: expected one reader of standard input";
        return Err(Failure::new(Class::Usage, what));
    }
    let (a, b) = (found(&args.a)?, found(&args.b)?);
    let difference = Difference::new(&a, &b);
    if args.json {
        output::json_line(&difference)?;
    } else {
        output::result(&difference.text(args, &a, &b))?;
    }
    Ok(if difference.same { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What differs.
#[derive(Debug, Serialize)]
struct Difference {
    same: bool,
    /// What the guest is told about itself.
    fields: Vec<Field>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    changed: Vec<String>,
    /// Whether cloud-init runs again in a guest that has run with `a`; null if that can't be told.
    runs_again: Option<bool>,
}

/// A fact that differs; null where one of them does not say it.
#[derive(Debug, Serialize)]
struct Field {
    name: &'static str,
    a: Option<String>,
    b: Option<String>,
}

impl Difference {
    fn new(a: &FoundImage, b: &FoundImage) -> Self {
        let [files_a, files_b] = by_name(a, b);
        let only = |files: &Files<'_>, others: &Files<'_>| -> Vec<String> {
            let only = files.iter().filter(|(name, _)| !others.contains_key(*name));
            only.map(|(_, (path, _))| path.clone()).collect()
        };
        let (only_in_a, only_in_b) = (only(&files_a, &files_b), only(&files_b, &files_a));
        let changed = changed(&files_a, &files_b).map(|(path, ..)| path.to_owned()).collect();
        let seeds = (FoundSeed::of(a), FoundSeed::of(b));
        let mut fields = fields(seeds.0.as_ref(), seeds.1.as_ref());
        if seeds.0.is_none() && seeds.1.is_none() && a.label != b.label {
            fields.push(Field { name: "label", a: a.label.clone(), b: b.label.clone() });
        }
        let same =
            [&only_in_a, &only_in_b, &changed].iter().all(|paths: &&Vec<String>| paths.is_empty())
                && fields.is_empty();
        let id = |seed: Option<FoundSeed>| seed.and_then(|seed| seed.instance_id);
        let ids = id(seeds.0).zip(id(seeds.1));
        let runs_again = ids.map(|(a, b)| a != b);
        Self { same, fields, only_in_a, only_in_b, changed, runs_again }
    }

    fn text(&self, args: &SeedDiffArgs, a: &FoundImage, b: &FoundImage) -> String {
        let mut text = String::new();
        for Field { name, a, b } in &self.fields {
            let shown = |value: &Option<String>| plain_line(value.as_deref().unwrap_or("none"));
            let _ = writeln!(text, "{name}: {} → {}", shown(a), shown(b));
        }
        for (image, paths) in [(&args.a, &self.only_in_a), (&args.b, &self.only_in_b)] {
            for path in paths {
                let _ = writeln!(text, "only on {image}: {}", plain_line(path));
            }
        }
        let [files_a, files_b] = by_name(a, b);
        for (path, a, b) in changed(&files_a, &files_b) {
            let path = plain_line(path);
            match (args.brief, std::str::from_utf8(a), std::str::from_utf8(b)) {
                (false, Ok(a), Ok(b)) => {
                    let names = [&args.a, &args.b].map(|image| format!("{image}/{path}"));
                    let diff = TextDiff::configure().timeout(SEARCH_MAX).diff_lines(a, b);
                    let diff = diff.unified_diff().header(&names[0], &names[1]).to_string();
                    text += &plain_lines(&diff);
                }
                (true, ..) => {
                    let _ = writeln!(text, "differs: {path}");
                }
                _ => {
                    let (a, b) = (a.len(), b.len());
                    let _ = writeln!(text, "differs: {path}, which is no text: {a} and {b} bytes");
                }
            }
        }
        match self.runs_again {
            Some(true) => text += "cloud-init will run again: the instance-id is another one\n",
            Some(false) if !self.same => {
                text += "the instance-id is the same: a guest that has run takes over only what runs \
                         at every boot\n";
            }
            _ => {}
        }
        text
    }
}

/// Files by the name under which a guest looks for them, with their path and content.
type Files<'a> = BTreeMap<String, (String, &'a [u8])>;

/// The files of both images. If one is FAT, which does not mind the case of names, that of neither
/// counts.
fn by_name<'a>(a: &'a FoundImage, b: &'a FoundImage) -> [Files<'a>; 2] {
    let is_fat = |image: &FoundImage| image.file_system.type_name() == "vfat";
    let folds = is_fat(a) || is_fat(b);
    [a, b].map(|image| {
        let name = |path: &str| if folds { path.to_lowercase() } else { path.to_owned() };
        image.files.files().map(|(path, content)| (name(&path), (path, content))).collect()
    })
}

/// Path and both contents of each file that is on both images and differs.
fn changed<'a>(
    a: &'a Files<'_>,
    b: &'a Files<'_>,
) -> impl Iterator<Item = (&'a str, &'a [u8], &'a [u8])> {
    let pairs = a.iter().filter_map(|(name, (path, a))| Some((&**path, *a, b.get(name)?.1)));
    pairs.filter(|(_, a, b)| a != b)
}

/// The facts that differ.
fn fields(a: Option<&FoundSeed>, b: Option<&FoundSeed>) -> Vec<Field> {
    let facts = |seed: Option<&FoundSeed>| -> [(&'static str, Option<String>); 4] {
        let keys = seed.map(|seed| seed.ssh_keys.iter().map(|key| key.fingerprint()));
        let keys = keys.map(|keys| keys.collect::<Vec<_>>().join(", "));
        [
            ("data source", seed.map(|seed| seed.datasource.name().to_owned())),
            ("instance-id", seed.and_then(|seed| seed.instance_id.clone())),
            ("host name", seed.and_then(|seed| seed.hostname.clone())),
            ("ssh keys", keys.filter(|keys| !keys.is_empty())),
        ]
    };
    let pairs = facts(a).into_iter().zip(facts(b));
    pairs
        .filter(|((_, a), (_, b))| a != b)
        .map(|((name, a), (_, b))| Field { name, a, b })
        .collect()
}
