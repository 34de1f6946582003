//! What the doctor says of one thing.

use std::fmt;

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It works.
    Ok,
    /// It works, but not as well as it might.
    Limited,
    /// It is not there.
    Missing,
}

impl State {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// One finding, and what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) name: &'static str,
    pub(super) state: State,
    pub(super) detail: String,
    pub(super) remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Ok, detail: detail.into(), remedy: None }
    }

    pub(super) fn limited(name: &'static str, detail: impl Into<String>) -> Self {
        Self { state: State::Limited, ..Self::ok(name, detail) }
    }

    pub(super) fn missing(name: &'static str, detail: impl Into<String>) -> Self {
        Self { state: State::Missing, ..Self::ok(name, detail) }
    }

    pub(super) fn with_remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// A line, and one more for the remedy.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<11}{:<9}{}", self.name, self.state.name(), self.detail)?;
        match &self.remedy {
            Some(remedy) => writeln!(f, "{:<20}hint: {remedy}", ""),
            None => Ok(()),
        }
    }
}
