//! What is said of a place in a text, as compilers say it: where, what, the line with carets, and what
//! helps.
//!
//! ```text
//! web.yaml:3:5: error[unknown-key]: …
//! 3 | pasword: x
//!   | ^^^^^^^
//!   hint: did you mean `password`?
//! ```

use std::fmt;

use crate::output::plain;

/// A remark on a text of a user's.
#[derive(Debug)]
pub(crate) struct Remark<'a> {
    /// The file, safe to print.
    pub(crate) place: String,
    /// The line and the column in characters, both from 1.
    pub(crate) line: Option<usize>,
    pub(crate) column: Option<usize>,
    /// How many characters it is about.
    pub(crate) width: usize,
    /// An error, or a warning.
    pub(crate) is_error: bool,
    /// The word by which a manual has it.
    pub(crate) code: Option<&'a str>,
    pub(crate) message: &'a str,
    /// The line itself, if it may be shown.
    pub(crate) excerpt: Option<&'a str>,
    pub(crate) hint: Option<&'a str>,
}

impl fmt::Display for Remark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (color, severity) =
            if self.is_error { ("\x1b[1;31m", "error") } else { ("\x1b[1;33m", "warning") };
        f.write_str(&self.place)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        write!(f, ": {color}{severity}")?;
        if let Some(code) = self.code {
            write!(f, "[{code}]")?;
        }
        writeln!(f, "\x1b[0m: {}", plain(self.message))?;
        if let (Some(line), Some(column), Some(excerpt)) = (self.line, self.column, self.excerpt) {
            f.write_str(&underlined(line, column, self.width, excerpt, color))?;
        }
        match self.hint {
            Some(hint) => writeln!(f, "  \x1b[1;36mhint\x1b[0m: {}", plain(hint)),
            None => Ok(()),
        }
    }
}

/// How much of a long line is shown before the caret and in all.
const BEFORE: usize = 60;
const SHOWN: usize = 100;

/// How wide a tab is shown.
const TAB: &str = "    ";

fn underlined(line: usize, column: usize, width: usize, excerpt: &str, color: &str) -> String {
    let skipped = (column - 1).saturating_sub(BEFORE);
    let wide = |text: String| plain(&text.replace('\t', TAB)).into_owned();
    let before = wide(excerpt.chars().skip(skipped).take(column - 1 - skipped).collect());
    let under = wide(excerpt.chars().skip(column - 1).take(width).collect());
    let left = SHOWN.saturating_sub(column - 1 - skipped + width);
    let after = wide(excerpt.chars().skip(column - 1 + width).take(left).collect());
    let number = line.to_string();
    let gap = " ".repeat(number.len());
    let blank = " ".repeat(unicode_width::UnicodeWidthStr::width(before.as_str()));
    let carets = unicode_width::UnicodeWidthStr::width(under.as_str()).clamp(1, SHOWN);
    let carets = "^".repeat(carets);
    let under: String = under.chars().take(SHOWN).collect();
    let cut = if skipped > 0 { "…" } else { "" };
    let pad = if skipped > 0 { " " } else { "" };
    let line = format!("{cut}{before}{under}{after}");
    let line = line.trim_end();
    format!("{number} | {line}\n{gap} | {pad}{blank}{color}{carets}\x1b[0m\n")
}

/// The last line: how much was said of how many files.
pub(crate) fn summary(files: usize, errors: usize, warnings: usize) -> String {
    let count = |number: usize, word: &str| match number {
        1 => format!("1 {word}"),
        _ => format!("{number} {word}s"),
    };
    let (errors, warnings) = (count(errors, "error"), count(warnings, "warning"));
    format!("{} checked: {errors}, {warnings}\n", count(files, "file"))
}
