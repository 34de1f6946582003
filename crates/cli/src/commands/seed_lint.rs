//! `bootyard seed lint`: what is wrong with seeds, as compilers show what is wrong with programs.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bootyard_cloudinit::lint::{self, Finding, Kind, Severity};
use bootyard_cloudinit::{Datasource, FoundData, FoundImage, FoundSeed, Network, Seed};
use bootyard_spec::{Class, exit_code, shell_word};
use clap::Args;
use serde::Serialize;

use crate::error::{Failure, read_input};
use crate::output::{self, plain};
use crate::remark::{self, Remark};

/// Checks user-data in every format, vendor-data, meta-data and network configuration by cloud-init's
/// own schemas, and for what no schema sees. Errors make the exit code 2.
#[derive(Debug, Args)]
pub(crate) struct SeedLintArgs {
    /// Files, folders with the files of a seed, or seed images; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the files are: user-data, vendor-data, meta-data or network-config [default: told by the
    /// file's name, then by its content]
    #[arg(short = 't', long, visible_alias = "schema-type", value_name = "KIND")]
    kind: Option<Kind>,
    /// Let warnings fail too
    #[arg(long)]
    strict: bool,
    /// Print the findings as a JSON array
    #[arg(long)]
    json: bool,
}

/// What was found in one file.
struct Checked {
    /// The file, or the image and the file in it.
    name: String,
    findings: Vec<Finding>,
}

pub(crate) fn run(args: &SeedLintArgs) -> Result<ExitCode, Failure> {
    if args.files.iter().filter(|path| path.as_os_str() == "-").count() > 1 {
        let what = "`-` is given more than once: expected one reader of standard input";
        return Err(Failure::new(Class::Usage, what));
    }
    let mut checked = Vec::new();
    let mut unread = 0;
    for path in &args.files {
        match check(path, args.kind) {
            Ok(found) => checked.extend(found),
            // The others are checked all the same.
            Err(failure) => {
                output::error(&failure.render());
                unread += 1;
            }
        }
    }
    let count = |severity| {
        let all = checked.iter().flat_map(|checked| &checked.findings);
        all.filter(|finding| finding.severity == severity).count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if args.json {
        output::json_line(&lines(&checked))?;
    } else {
        output::styled_result(&checked.iter().map(shown).collect::<String>())?;
    }
    output::error(&remark::summary(checked.len(), errors, warnings));
    let failed = errors + unread > 0 || (args.strict && warnings > 0);
    Ok(if failed { ExitCode::from(exit_code(Class::Usage)) } else { ExitCode::SUCCESS })
}

/// Checks one file, folder or image.
fn check(path: &Path, kind: Option<Kind>) -> Result<Vec<Checked>, Failure> {
    let name = path.display().to_string();
    let is_one = path == Path::new("-") || !(path.is_dir() || is_image(path)?);
    if let Some(kind) = kind.filter(|_| !is_one) {
        let what = format!("`{name}` holds several files: `--kind {}` is of one", kind.name());
        let hint = "leave out `--kind`: the names of the files tell";
        return Err(Failure::new(Class::Usage, what).with_hint(hint));
    }
    if path.is_dir() {
        return check_folder(path);
    }
    if !is_one {
        let mut file = fs_err::File::open(path).map_err(|e| Failure::new(Class::Usage, e))?;
        let image = FoundImage::read(&mut file).map_err(|error| error.in_input(&name))?;
        let checked = check_image(&name, &image);
        if checked.is_empty() {
            let what = format!("no seed with something to check is on `{name}`");
            let hint = format!("see what is there with `bootyard seed show {}`", shell_word(&name));
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
        return Ok(checked);
    }
    let content = read_input(path)?;
    let file_name = path.file_name().map(|name| name.display().to_string()).unwrap_or_default();
    let kind = kind.unwrap_or_else(|| Kind::guess(&file_name, &content));
    let mut findings = lint::check(kind, &content);
    if matches!(kind, Kind::UserData | Kind::VendorData) {
        let together = lint::check_together(&[(&name, &content)]);
        findings.extend(together.into_iter().map(|(_, finding)| finding));
    }
    Ok(vec![Checked { name, findings }])
}

/// A folder as NoCloud's `seedfrom` takes it: files under the names that they have in a seed.
fn check_folder(path: &Path) -> Result<Vec<Checked>, Failure> {
    let mut checked = Vec::new();
    for kind in Kind::ALL {
        let file = path.join(kind.name());
        if file.is_file() {
            checked.extend(check(&file, Some(kind))?);
        }
    }
    if checked.is_empty() {
        let what = format!("no file of a seed is in `{}`", path.display());
        let hint = "expected user-data, meta-data, vendor-data or network-config";
        return Err(Failure::new(Class::Usage, what).with_hint(hint));
    }
    Ok(checked)
}

/// No text has a NUL among its first bytes, and every ISO 9660 and FAT has.
fn is_image(path: &Path) -> Result<bool, Failure> {
    let failed = |error| Failure::new(Class::Usage, error);
    let mut start = Vec::new();
    let file = fs_err::File::open(path).map_err(failed)?;
    file.take(512).read_to_end(&mut start).map_err(|error| Failure::new(Class::Usage, error))?;
    let is_gzip = start.starts_with(&[0x1f, 0x8b]);
    Ok(start.len() == 512 && start.contains(&0) && !is_gzip && !lint::is_utf16(&start))
}

/// What cloud-init takes from an image; of a config drive, what is cloud-init's own there.
fn check_image(name: &str, image: &FoundImage) -> Vec<Checked> {
    let Some(seed) = FoundSeed::of(image) else { return Vec::new() };
    let data = |found: &Option<FoundData>| found.as_ref().map(|data| data.content.clone());
    let file = |kind: Kind| match seed.datasource {
        Datasource::NoCloud => image.file(kind.name()).map(<[u8]>::to_vec),
        Datasource::ConfigDrive => None,
    };
    let pieces = [
        (Kind::UserData, data(&seed.user_data)),
        (Kind::VendorData, data(&seed.vendor_data)),
        (Kind::MetaData, file(Kind::MetaData)),
        (Kind::NetworkConfig, file(Kind::NetworkConfig)),
    ];
    let checked = pieces.into_iter().filter_map(|(kind, content)| {
        // NoCloud wants a file that may say nothing.
        let content = content.filter(|content| !content.is_empty())?;
        let name = format!("{name}:{}", kind.name());
        Some(Checked { name, findings: lint::check(kind, &content) })
    });
    checked.collect()
}

/// Says what is wrong with a seed that is about to be written. Refuses one of which cloud-init would
/// apply nothing; what else is wrong, the guest boots with. What comes out of a secret is not shown.
pub(crate) fn before_build(
    seed: &Seed,
    datasource: Datasource,
    is_secret: impl Fn(Kind) -> bool,
) -> Result<(), Failure> {
    let check = |kind, content: &[u8]| {
        let mut findings = lint::check(kind, content);
        if is_secret(kind) {
            findings.iter_mut().for_each(without_content);
        }
        findings
    };
    let pieces = seed.user_data.iter().map(|piece| (piece, Kind::UserData));
    let pieces = pieces.chain(seed.vendor_data.iter().map(|piece| (piece, Kind::VendorData)));
    let mut checked: Vec<Checked> = pieces
        .map(|(piece, kind)| Checked {
            name: piece.input().to_owned(),
            findings: check(kind, piece.content()),
        })
        .collect();
    let before = checked.len() - seed.vendor_data.len();
    for (pieces, from) in [(&seed.user_data, 0), (&seed.vendor_data, before)] {
        let named: Vec<_> = pieces.iter().map(|piece| (piece.input(), piece.content())).collect();
        for (number, finding) in lint::check_together(&named) {
            checked[from + number].findings.push(finding);
        }
    }
    // A config drive takes OpenStack's own form instead.
    if let (Some(Network::Text(text)), Datasource::NoCloud) = (&seed.network, datasource) {
        let findings = check(Kind::NetworkConfig, text);
        checked.push(Checked { name: Kind::NetworkConfig.name().to_owned(), findings });
    }
    let is_fatal = |checked: &&Checked| checked.findings.iter().any(Finding::is_fatal);
    let fatal = checked.iter().find(is_fatal).map(|checked| checked.name.clone());
    output::error(&checked.into_iter().map(remarks).collect::<String>());
    match fatal {
        None => Ok(()),
        Some(name) => {
            let what = format!("cloud-init would apply nothing of `{name}`");
            let hint = "mend what is said above, or take the seed all the same with `--no-lint`";
            Err(Failure::new(Class::Usage, what).with_hint(hint))
        }
    }
}

/// Keeps of a finding what it is and where. A key may be a value that stands at the wrong place.
fn without_content(finding: &mut Finding) {
    finding.excerpt = None;
    finding.hint = None;
    finding.path.clear();
    finding.message = "what stands there is secret, and not shown".to_owned();
}

/// Says what is wrong with a seed image that a guest is about to boot with; that it cannot be read is
/// the guest's to say.
pub(crate) fn before_run(path: &Path) {
    let Ok(mut file) = fs_err::File::open(path) else { return };
    let Ok(image) = FoundImage::read(&mut file) else { return };
    let checked = check_image(&path.display().to_string(), &image);
    output::error(&checked.into_iter().map(remarks).collect::<String>());
}

/// Findings as remarks on the way: only what is fatal is called an error there.
fn remarks(mut checked: Checked) -> String {
    for finding in checked.findings.iter_mut().filter(|finding| !finding.is_fatal()) {
        finding.severity = Severity::Warning;
    }
    shown(&checked)
}

fn shown(checked: &Checked) -> String {
    checked.findings.iter().map(|finding| show(&checked.name, finding)).collect()
}

fn show(name: &str, finding: &Finding) -> String {
    let mut place = plain(name).into_owned();
    if let Some(part) = &finding.part {
        let _ = write!(place, ":{}", plain(part));
    }
    let remark = Remark {
        place,
        line: finding.line,
        column: finding.column,
        width: finding.width,
        is_error: finding.severity == Severity::Error,
        code: Some(finding.code.name()),
        message: &finding.message,
        excerpt: finding.excerpt.as_deref(),
        hint: finding.hint.as_deref(),
    };
    remark.to_string()
}

/// One finding of `seed lint --json`.
#[derive(Debug, Serialize)]
struct FindingLine<'a> {
    file: &'a str,
    /// The piece of a MIME document, archive or gzip that it is in.
    part: Option<&'a str>,
    /// Counted from 1, as is the column, in characters.
    line: Option<usize>,
    column: Option<usize>,
    severity: &'static str,
    code: &'static str,
    /// The key, such as `users[1].passwd`.
    path: Option<&'a str>,
    message: &'a str,
    hint: Option<&'a str>,
    /// True if cloud-init applies nothing of the file.
    fatal: bool,
}

fn lines(checked: &[Checked]) -> Vec<FindingLine<'_>> {
    let all = checked.iter().flat_map(|file| file.findings.iter().map(|found| (&file.name, found)));
    all.map(|(file, finding)| FindingLine {
        file,
        part: finding.part.as_deref(),
        line: finding.line,
        column: finding.column,
        severity: finding.severity.name(),
        code: finding.code.name(),
        path: Some(finding.path.as_str()).filter(|path| !path.is_empty()),
        message: &finding.message,
        hint: finding.hint.as_deref(),
        fatal: finding.is_fatal(),
    })
    .collect()
}
