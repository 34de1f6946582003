//! What is wrong with a manifest: every problem with its field, its place in the text and what helps.

use bootyard_yaml::Mark;

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The object is not taken.
    Error,
    /// The object is taken, and something in it does not do what one may think.
    Warning,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The field, as `spec.template.spec.volumes[0].name`; empty for the document as a whole.
    pub path: String,
    /// Where it stands in the text.
    pub mark: Mark,
    /// What is wrong, in upstream's words where it has some.
    pub message: String,
    /// What helps.
    pub hint: Option<String>,
    /// Its line of the text may hold a secret, and is not to be shown.
    pub is_secret: bool,
}

/// All problems of a document, in the order in which they were found.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    all: Vec<Problem>,
    /// How many of them were found while reading.
    of_reading: usize,
}

impl Problems {
    /// Adds an error.
    pub(crate) fn error(
        &mut self,
        path: &str,
        mark: Mark,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.add(Severity::Error, path, mark, message)
    }

    /// Adds a warning.
    pub(crate) fn warn(
        &mut self,
        path: &str,
        mark: Mark,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.add(Severity::Warning, path, mark, message)
    }

    fn add(
        &mut self,
        severity: Severity,
        path: &str,
        mark: Mark,
        message: impl Into<String>,
    ) -> &mut Problem {
        let (path, message) = (path.to_owned(), message.into());
        self.all.push(Problem { severity, path, mark, message, hint: None, is_secret: false });
        self.all.last_mut().expect("it was just added")
    }

    /// Whether something at or below `path` could not be read: what it seems to lack may stand there.
    pub(crate) fn blame(&self, path: &str) -> bool {
        self.all[..self.of_reading].iter().any(|problem| {
            let rest = problem.path.strip_prefix(path);
            problem.severity == Severity::Error
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// Whether the field at `path`, or one around it, is wrong already: what stands in for it says nothing.
    pub(crate) fn is_wrong(&self, path: &str) -> bool {
        self.all[..self.of_reading].iter().any(|problem| {
            let rest = path.strip_prefix(problem.path.as_str());
            let is_around =
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            problem.severity == Severity::Error && is_around
        })
    }

    /// The object is read; what comes now is about how its parts fit together.
    pub(crate) const fn end_of_reading(&mut self) {
        self.of_reading = self.all.len();
    }

    /// All of them, in the order of the text. What is wrong is not said to have no effect as well.
    pub(crate) fn into_vec(mut self) -> Vec<Problem> {
        let wrong: Vec<String> = self
            .all
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .map(|problem| problem.path.clone())
            .collect();
        self.all.retain(|problem| {
            problem.severity == Severity::Error || !wrong.contains(&problem.path)
        });
        self.all.sort_by_key(|problem| (problem.mark.line, problem.mark.column));
        self.all
    }
}

impl Problem {
    /// Says what helps.
    pub(crate) fn hint(&mut self, hint: impl Into<String>) {
        self.hint = Some(hint.into());
    }
}

/// A problem that was told, if it was not known before.
pub(crate) struct Told<'a>(pub(crate) Option<&'a mut Problem>);

impl Told<'_> {
    /// Says what helps.
    pub(crate) fn hint(self, hint: impl Into<String>) {
        if let Some(problem) = self.0 {
            problem.hint(hint);
        }
    }
}
