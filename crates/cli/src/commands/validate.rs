//! `bootyard validate` and `bootyard explain`: what is wrong with manifests, and what their fields are
//! for.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bootyard_manifest::{Manifest, Problem, Severity, manifests};
use bootyard_spec::{Class, exit_code};
use clap::Args;
use serde::Serialize;

use crate::error::{Failure, read_input};
use crate::output::{self, plain};
use crate::remark::{self, Remark};

/// Checks what a cluster's API server, KubeVirt and CDI would refuse, and tells all of it at once, in
/// their words where they have some. Errors make the exit code 2.
#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// Files of manifests in YAML or JSON, or folders of them; `-` reads standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    filenames: Vec<PathBuf>,
    /// Let warnings fail too
    #[arg(long)]
    strict: bool,
    /// Print the problems as a JSON array
    #[arg(long)]
    json: bool,
}

/// Shows what a field is for, and which fields it has.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The field, such as `vm.spec.runStrategy`; one of a VirtualMachine if no kind stands first
    #[arg(value_name = "FIELD", default_value = "", hide_default_value = true)]
    field: String,
}

/// What is known of one file.
struct Checked {
    name: String,
    text: String,
    manifests: Vec<Manifest>,
    /// Why there are none.
    unreadable: Option<Problem>,
}

impl Checked {
    fn problems(&self) -> impl Iterator<Item = &Problem> {
        let of_objects = self.manifests.iter().flat_map(|manifest| &manifest.problems);
        self.unreadable.iter().chain(of_objects)
    }

    fn count(&self, severity: Severity) -> usize {
        self.problems().filter(|problem| problem.severity == severity).count()
    }
}

pub(crate) fn run(args: &ValidateArgs) -> Result<ExitCode, Failure> {
    let mut checked = Vec::new();
    for path in &args.filenames {
        for file in files(path)? {
            checked.push(check(&file)?);
        }
    }
    let count = |severity| checked.iter().map(|file| file.count(severity)).sum::<usize>();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if args.json {
        let lines: Vec<ProblemLine<'_>> = checked.iter().flat_map(lines).collect();
        output::json_line(&lines)?;
    } else {
        output::styled_result(&checked.iter().map(shown).collect::<String>())?;
    }
    output::error(&remark::summary(checked.len(), errors, warnings));
    let failed = errors > 0 || (args.strict && warnings > 0);
    Ok(if failed { ExitCode::from(exit_code(Class::Usage)) } else { ExitCode::SUCCESS })
}

pub(crate) fn explain(args: &ExplainArgs) -> Result<ExitCode, Failure> {
    let text = bootyard_manifest::explain(&args.field).map_err(|error| {
        let hint = error.hint().map(str::to_owned);
        let failure = Failure::new(Class::Usage, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    })?;
    output::result(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The file, or the manifests of a folder in the order of their names, as `kubectl` takes them.
fn files(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let usage = |error: std::io::Error| Failure::new(Class::Usage, error);
    let mut files = Vec::new();
    for entry in fs_err::read_dir(path).map_err(usage)? {
        let path = entry.map_err(usage)?.path();
        let is_manifest =
            path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|e| end == *e));
        if is_manifest && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        let what = format!("no manifest is in `{}`", path.display());
        return Err(Failure::new(Class::Usage, what)
            .with_hint("expected files whose names end in .yaml, .yml or .json"));
    }
    Ok(files)
}

fn check(path: &Path) -> Result<Checked, Failure> {
    let bytes = read_input(path)?;
    let name = match path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => path.display().to_string(),
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (manifests, unreadable) = match manifests(&bytes) {
        Ok(manifests) => (manifests, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    Ok(Checked { name, text, manifests, unreadable })
}

/// All problems.
fn shown(checked: &Checked) -> String {
    let lines: Vec<&str> = checked.text.lines().collect();
    let remark = |problem: &Problem| {
        let message = match problem.path.is_empty() {
            true => problem.message.clone(),
            false => format!("{}: {}", problem.path, problem.message),
        };
        let remark = Remark {
            place: plain(&checked.name).into_owned(),
            line: Some(problem.mark.line),
            column: Some(problem.mark.column),
            width: problem.mark.width,
            is_error: problem.severity == Severity::Error,
            code: None,
            message: &message,
            excerpt: lines.get(problem.mark.line - 1).filter(|_| !problem.is_secret).copied(),
            hint: problem.hint.as_deref(),
        };
        remark.to_string()
    };
    checked.problems().map(remark).collect()
}

/// A problem as `validate --json` prints it.
#[derive(Debug, Serialize)]
struct ProblemLine<'a> {
    file: &'a str,
    kind: Option<&'a str>,
    name: Option<&'a str>,
    severity: &'static str,
    field: &'a str,
    line: usize,
    column: usize,
    message: &'a str,
    hint: Option<&'a str>,
}

fn lines(checked: &Checked) -> Vec<ProblemLine<'_>> {
    let unreadable = checked.unreadable.iter().map(|problem| (None, problem));
    let of_objects = checked.manifests.iter().flat_map(|manifest| {
        manifest.problems.iter().map(move |problem| (Some(manifest), problem))
    });
    let all = unreadable.chain(of_objects);
    all.map(|(manifest, problem)| ProblemLine::new(checked, manifest, problem)).collect()
}

impl<'a> ProblemLine<'a> {
    fn new(file: &'a Checked, manifest: Option<&'a Manifest>, problem: &'a Problem) -> Self {
        Self {
            file: &file.name,
            kind: manifest.map(|manifest| &*manifest.kind),
            name: manifest.map(|manifest| &*manifest.name),
            severity: match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            field: &problem.path,
            line: problem.mark.line,
            column: problem.mark.column,
            message: &problem.message,
            hint: problem.hint.as_deref(),
        }
    }
}
