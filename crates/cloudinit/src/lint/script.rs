//! Scripts: whether the guest's kernel can start them.

use super::finding::Code;
use super::text::{Report, Source};
use bootyard_yaml::Mark;

/// A script that is written to a file and executed as it is.
pub(super) fn check(source: &mut Source<'_>) {
    check_from(source, 1);
}

/// A boothook: the same behind its header, if it has one.
pub(super) fn check_boothook(source: &mut Source<'_>) {
    let has_header = source.text.to_ascii_lowercase().starts_with("#cloud-boothook");
    let mut lines = source.text.lines().zip(1..).skip(usize::from(has_header));
    let first = lines.find(|(line, _)| !line.trim().is_empty()).map_or(1, |(_, number)| number);
    check_from(source, first);
}

/// `first` is the line that names the interpreter.
fn check_from(source: &mut Source<'_>, first: usize) {
    let text = source.text;
    let Some(line) = text.split('\n').nth(first - 1) else { return };
    let whole = Mark { width: line.trim_end().chars().count().max(1), ..Mark::at(first, 1) };
    let Some(command) = line.strip_prefix("#!") else {
        let what =
            "expected `#!` and an interpreter, without which the kernel does not start a script";
        let report = Report::error(Code::NoInterpreter, what).at(whole);
        return source.push(report.hint("write `#!/bin/sh` as the first line of the script"));
    };
    // cloud-init converts all the lines if the first one ends so (its `dos2unix`), and else none.
    let is_converted = text.split('\n').next().is_some_and(|line| line.ends_with('\r'));
    let crlf = text.split('\n').skip(first - 1).position(|line| line.ends_with('\r'));
    let hint = "convert the line ends, for example with `dos2unix`";
    match crlf.filter(|_| !is_converted) {
        Some(0) => {
            let what = "the line ends in CR LF, with which no interpreter starts";
            return source.push(Report::error(Code::CrLf, what).at(whole).hint(hint));
        }
        Some(number) => {
            let what = "a line ends in CR LF, where the interpreter takes the CR for a character";
            let mark = Mark::at(first + number, 1);
            source.push(Report::warning(Code::CrLf, what).at(mark).hint(hint));
        }
        None => {}
    }
    if let Some(what) = interpreter(command) {
        let report = Report::error(Code::NoInterpreter, what).at(whole);
        source.push(report.hint("write it as `#!/bin/sh` or `#!/usr/bin/env python3`"));
    }
}

/// What is wrong with the rest of a `#!` line (execve(2), "Interpreter scripts").
fn interpreter(command: &str) -> Option<String> {
    let mut words = command.split_whitespace();
    let Some(path) = words.next() else {
        return Some("`#!` names no interpreter".to_owned());
    };
    if !path.starts_with('/') {
        let shown = super::schema::shortened(path);
        return Some(format!("expected the whole path of an interpreter, got `{shown}`"));
    }
    let is_env = path.ends_with("/env") && words.next().is_none();
    is_env.then(|| "`env` is given no interpreter".to_owned())
}
