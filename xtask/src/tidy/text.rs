//! Rules on the text of a file: words that must not stand there, and how long things may be.

/// Longest function, in lines from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Longest test: most of it is a table of cases.
const TEST_LINES_MAX: usize = 200;

/// Longest file, in lines of code: without tests, comments and blank lines.
const FILE_LINES_MAX: usize = 800;

/// Where `unsafe` may be opted into. clippy asks for the `SAFETY` comment of each block.
const UNSAFE_CRATES: &[&str] = &["crates/vmm/"];

/// What must not be written, and what to do instead.
const BANNED: &[(&str, &str)] = &[
    ("todo!(", "write it, or leave it out"),
    ("unimplemented!(", "write it, or return an error that names what is missing"),
    ("FIXME", "fix it, or open an issue"),
    ("TODO", "do it, or open an issue"),
    ("XXX", "say what is wrong"),
    ("dbg!(", "remove it"),
    ("#[ignore", "make it run; what lacks a tool uses `testkit::skip`"),
    ("#[should_panic", "return an error, and compare it"),
    ("fn test_", "name the behaviour"),
    ("#[allow(", "use `#[expect(…, reason = \"…\")]`"),
    ("extern crate", "name it in Cargo.toml"),
    ("lazy_static", "use `std::sync::LazyLock`"),
    ("once_cell", "use `std::sync::OnceLock`"),
    ("serde_yaml", "use `serde-saphyr`"),
    ("serde_yml", "use `serde-saphyr`; RUSTSEC-2025-0068"),
    ("qcow2_rs", "use `bootyard-image`"),
    ("parallel_bzip2_decoder", "use `bzip2`; this one truncates its output"),
];

/// Folders that exist on one machine only.
const MACHINE_PATHS: &[&str] = &["/home/", "/Users/", "/work/"];

/// Whether `file` is written by us, rather than generated or a fixture, and does not itself name
/// what is banned.
pub(super) fn is_ours(file: &str) -> bool {
    let is_text = [".rs", ".md", ".toml", ".sh", ".yaml"].iter().any(|end| file.ends_with(end));
    let names_banned = ["deny.toml", "clippy.toml", "xtask/src/tidy/text.rs"].contains(&file);
    is_text && !names_banned && !file.starts_with("testdata/")
}

/// What must not stand in any of our files.
pub(super) fn banned(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for (word, instead) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
            findings.push(format!("{file}:{number}: `{word}` is banned: {instead}"));
        }
        if let Some(path) = MACHINE_PATHS.iter().find(|path| names_path(line, path)) {
            findings.push(format!("{file}:{number}: `{path}` is a path of one machine"));
        }
    }
    findings
}

/// Whether an absolute path under `path` stands in the line.
fn names_path(line: &str, path: &str) -> bool {
    let is_inner = |c: char| c.is_alphanumeric() || "~._-/*}$".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].ends_with(is_inner))
}

/// What is wrong with a Rust file besides its words.
pub(super) fn rust_findings(file: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(format!("{file}:1: expected a `//!` header that says what the file is for"));
    }
    for Function { name, line, lines, is_test } in functions(text) {
        let limit = if is_test { TEST_LINES_MAX } else { FUNCTION_LINES_MAX };
        if lines > limit {
            findings
                .push(format!("{file}:{line}: `{name}` has {lines} lines; the limit is {limit}"));
        }
    }
    let lines = code_lines(file, text);
    if lines > FILE_LINES_MAX {
        findings.push(format!("{file}: {lines} lines of code; the limit is {FILE_LINES_MAX}"));
    }
    let is_rule = file.starts_with("xtask/src/tidy/");
    if text.contains("expect(unsafe_code") && !is_rule && !may_be_unsafe(file) {
        findings.push(format!("{file}: `unsafe` has no place here; see CONTRIBUTING.md"));
    }
    findings
}

fn may_be_unsafe(file: &str) -> bool {
    UNSAFE_CRATES.iter().any(|folder| file.starts_with(folder))
}

#[derive(Debug, PartialEq, Eq)]
struct Function<'a> {
    name: &'a str,
    /// Where it begins, counted from 1.
    line: usize,
    lines: usize,
    is_test: bool,
}

/// The functions of formatted code. Each ends at the first closing brace that stands as far to the
/// left as its `fn`.
fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let header = lines[index..].iter().find(|line| line.ends_with(['{', '}', ';']));
        if header.is_none_or(|line| !line.ends_with('{')) {
            continue;
        }
        let indent = &line[..line.len() - line.trim_start().len()];
        let end = lines[index..].iter().position(|line| line.strip_prefix(indent) == Some("}"));
        let above = lines[..index].iter().rev().map(|line| line.trim());
        let is_test =
            above.take_while(|line| line.starts_with("#[")).any(|line| line.ends_with("test]"));
        functions.extend(end.map(|end| Function {
            name,
            line: index + 1,
            lines: end + 1,
            is_test,
        }));
    }
    functions
}

/// The function that a line begins to define.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let is_definition = before.split_whitespace().all(|word| {
        word.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(&word)
    });
    let end = after.find(['(', '<'])?;
    is_definition.then_some(&after[..end])
}

/// Lines that are neither blank, comment nor test.
fn code_lines(file: &str, text: &str) -> usize {
    if file.ends_with("/tests.rs") || file.contains("/tests/") || file.starts_with("tests/") {
        return 0;
    }
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    code.lines().filter(is_code).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_words_are_found_with_their_line() {
        let findings = banned("a.rs", "fn f() {\n    todo!()\n}\n");
        assert_eq!(findings, ["a.rs:2: `todo!(` is banned: write it, or leave it out"]);
    }

    #[test]
    fn only_absolute_paths_of_a_machine_are_banned() {
        for (line, is_banned) in [
            ("see /home/me/file", true),
            ("\"/work/x\"", true),
            ("docs/work/x", false),
            ("https://host.example/home/", false),
            ("$ROOT/home/debian", false),
        ] {
            assert_eq!(!banned("a.md", line).is_empty(), is_banned, "{line}");
        }
    }

    #[test]
    fn functions_end_at_their_own_brace() {
        let text = "\
pub(crate) fn one(
    a: u8,
) -> u8 {
    if a > 0 {
        1
    } else {
        2
    }
}
trait T {
    fn declared(&self);
    const fn two() {}
    async fn three<T>() {
        fn inner() {
        }
    }
}
// a comment on fn four() {
";
        let found: Vec<_> = functions(text).iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("one", 1, 9), ("three", 13, 4), ("inner", 14, 2)]);
    }

    #[test]
    fn long_functions_and_files_are_findings() {
        let body = "    x();\n".repeat(FUNCTION_LINES_MAX - 2);
        let fits = format!("//! X.\nfn f() {{\n{body}}}\n");
        assert_eq!(rust_findings("a.rs", &fits), Vec::<String>::new());
        let long = format!("//! X.\nfn f() {{\n    x();\n{body}}}\n");
        assert_eq!(rust_findings("a.rs", &long), ["a.rs:2: `f` has 71 lines; the limit is 70"]);
        let test = long.replace("fn f", "#[test]\nfn f");
        assert_eq!(rust_findings("a.rs", &test), Vec::<String>::new());

        let code = "const A: u8 = 1;\n".repeat(FILE_LINES_MAX);
        let tests = "\n#[cfg(test)]\nmod tests {\n    more();\n}\n";
        let fits = format!("//! X.\n\n// Comment.\n{code}{tests}");
        assert_eq!(rust_findings("a.rs", &fits), Vec::<String>::new());
        assert_eq!(rust_findings("a.rs", &format!("//! X.\nx();\n{code}")).len(), 1);
    }

    #[test]
    fn unsafe_code_lives_in_its_crates() {
        let text = "//! X.\n#![expect(unsafe_code, reason = \"ioctl\")]\n";
        assert_eq!(rust_findings("crates/vmm/src/a.rs", text), Vec::<String>::new());
        assert_eq!(rust_findings("crates/image/src/a.rs", text).len(), 1);
    }
}
