//! What the linter finds: plain data, to be shown by whoever has a terminal.

use std::fmt;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// cloud-init does what is said, but likely not what is meant; or soon no more.
    Warning,
    /// cloud-init does not do what is said.
    Error,
}

impl Severity {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing it is.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in lower case. Never holds a password or a key.
    pub message: String,
    /// What helps.
    pub hint: Option<String>,
    /// The line of the file, counted from 1. For what is packed within the file (`part` says what),
    /// and has no lines of its own there, the line of the part's content.
    pub line: Option<usize>,
    /// The column, counted from 1 in characters.
    pub column: Option<usize>,
    /// How many characters from there on are meant.
    pub width: usize,
    /// The key, such as `users[1].passwd`; empty if it is about the whole.
    pub path: String,
    /// The piece within the file that it is about: `part 2 (text/cloud-config)`.
    pub part: Option<String>,
    /// The line's text, with passwords and private keys left out.
    pub excerpt: Option<String>,
}

impl Finding {
    /// Where it stands, for sorting.
    pub(super) fn place(&self) -> (usize, usize, &'static str) {
        (self.line.unwrap_or(0), self.column.unwrap_or(0), self.code.name())
    }

    /// True if cloud-init applies nothing at all of a file with this in it: such a seed is not worth
    /// building.
    pub fn is_fatal(&self) -> bool {
        self.severity == Severity::Error
            && matches!(
                self.code,
                Code::Yaml
                    | Code::Tab
                    | Code::NotUtf8
                    | Code::Bom
                    | Code::MissingHeader
                    | Code::MisspeltHeader
                    | Code::NotAMapping
                    | Code::Packing
                    | Code::Template
                    | Code::CrLf
            )
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What kind of thing a finding is. The names are stable: scripts may rely on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code { $($(#[$doc])* $variant,)* }

        impl Code {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name, as it is printed.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

codes! {
    /// Begins with a byte-order mark, behind which cloud-init sees no header.
    Bom = "bom",
    /// Lines end in CR LF where that matters: in scripts.
    CrLf = "crlf",
    /// A key or value that cloud-init wants to be rid of.
    Deprecated = "deprecated",
    /// A key that stands twice; the last one counts.
    DuplicateKey = "duplicate-key",
    /// Nothing is said.
    Empty = "empty",
    /// The first line is no header that cloud-init knows, but nearly.
    MisspeltHeader = "misspelt-header",
    /// No header, so that cloud-init ignores the whole.
    MissingHeader = "missing-header",
    /// A key that has to be there is not.
    MissingKey = "missing-key",
    /// A script without an interpreter that could start it.
    NoInterpreter = "no-interpreter",
    /// The document is a list or text where it has to be a mapping, or the other way round.
    NotAMapping = "not-a-mapping",
    /// Bytes that are no UTF-8.
    NotUtf8 = "not-utf8",
    /// MIME, gzip or an archive that cannot be unpacked.
    Packing = "packing",
    /// A password that everyone can read.
    PlainPassword = "plain-password",
    /// A private key where a public one belongs.
    PrivateKey = "private-key",
    /// A tab where YAML allows none.
    Tab = "tab",
    /// Jinja without its header, or what could not be judged for it.
    Template = "template",
    /// Keys that exclude each other.
    TooManyKeys = "too-many-keys",
    /// A key that cloud-init does not know.
    UnknownKey = "unknown-key",
    /// A value that is not one of those allowed.
    WrongValue = "wrong-value",
    /// A value of another type.
    WrongType = "wrong-type",
    /// Not YAML as cloud-init reads it.
    Yaml = "yaml",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
