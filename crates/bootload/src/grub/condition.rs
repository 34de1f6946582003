//! The `[ … ]` command: strings, numbers and files.

use super::Line;
use crate::{Error, ErrorKind};

/// Parentheses and negations within each other.
const DEPTH_MAX: usize = 16;

/// True if the words between `[` and `]` hold. `size` tells the size of a file or directory.
pub(crate) fn holds(
    words: &[String],
    size: &dyn Fn(&str) -> Result<Option<u64>, Error>,
    at: &Line,
) -> Result<bool, Error> {
    let words = words.iter().map(String::as_str).collect();
    let mut test = Test { words, next: 0, depth: 0, size, at };
    let value = test.any()?;
    match test.words.get(test.next) {
        None => Ok(value),
        Some(word) => Err(at.error(format_args!("expected `]`, got `{word}`"))),
    }
}

struct Test<'a> {
    words: Vec<&'a str>,
    next: usize,
    depth: usize,
    size: &'a dyn Fn(&str) -> Result<Option<u64>, Error>,
    at: &'a Line,
}

impl Test<'_> {
    fn any(&mut self) -> Result<bool, Error> {
        let mut value = self.all()?;
        while self.eat("-o") {
            value |= self.all()?;
        }
        Ok(value)
    }

    fn all(&mut self) -> Result<bool, Error> {
        let mut value = self.one()?;
        while self.eat("-a") {
            value &= self.one()?;
        }
        Ok(value)
    }

    fn one(&mut self) -> Result<bool, Error> {
        let rest = self.words.get(self.next..).unwrap_or_default();
        if let [left, operator, right, ..] = *rest
            && let Some(value) = compare(left, operator, right)
        {
            self.next += 3;
            return Ok(value);
        }
        match *rest {
            [] => Ok(false),
            ["!", _, ..] => Ok(!self.nested(1, Self::one)?),
            ["(", _, ..] => {
                let value = self.nested(1, Self::any)?;
                if !self.eat(")") {
                    return Err(self.at.error("expected `)`"));
                }
                Ok(value)
            }
            [operator @ ("-n" | "-z" | "-e" | "-f" | "-d" | "-s"), word, ..] => {
                self.next += 2;
                match operator {
                    "-n" => Ok(!word.is_empty()),
                    "-z" => Ok(word.is_empty()),
                    "-s" => Ok((self.size)(word)?.is_some_and(|size| size > 0)),
                    _ => Ok((self.size)(word)?.is_some()),
                }
            }
            [word, ..] => {
                self.next += 1;
                Ok(!word.is_empty())
            }
        }
    }

    fn nested(
        &mut self,
        skip: usize,
        inner: fn(&mut Self) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        self.next += skip;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.at.error_of(ErrorKind::TooLarge, "the condition is nested too deep"));
        }
        let value = inner(self);
        self.depth -= 1;
        value
    }

    fn eat(&mut self, word: &str) -> bool {
        let found = self.words.get(self.next) == Some(&word);
        self.next += usize::from(found);
        found
    }
}

/// Compares two words, or nothing if `operator` is none.
fn compare(left: &str, operator: &str, right: &str) -> Option<bool> {
    // GRUB reads as many digits as there are.
    let number = |text: &str| {
        let len = text.bytes().take_while(u8::is_ascii_digit).count();
        text[..len].parse::<u64>().unwrap_or(0)
    };
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        ">" => left > right,
        "-eq" => number(left) == number(right),
        "-ne" => number(left) != number(right),
        "-lt" => number(left) < number(right),
        "-le" => number(left) <= number(right),
        "-gt" => number(left) > number(right),
        "-ge" => number(left) >= number(right),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[track_caller]
    fn check(words: &str, expected: bool) {
        let words: Vec<String> =
            words.split(' ').map(|word| word.trim_matches('_').to_owned()).collect();
        let size = |path: &str| {
            Ok(match path {
                "/full" => Some(9),
                "/empty" => Some(0),
                _ => None,
            })
        };
        let at = Line { file: Rc::from("/grub.cfg"), number: 1 };
        assert_eq!(holds(&words, &size, &at).unwrap(), expected, "{words:?}");
    }

    #[test]
    fn conditions_hold_as_in_grub() {
        for (words, expected) in [
            ("a = a", true),
            ("a = b", false),
            ("a != b", true),
            ("x = xy", false),
            ("9 -lt 10", true),
            ("10 -le 9", false),
            ("word", true),
            ("_", false),
            ("-n _", false),
            ("-z _", true),
            ("-n word", true),
            ("-s /full", true),
            ("-s /empty", false),
            ("-e /empty", true),
            ("-f /missing", false),
            ("! -e /missing", true),
            ("-z _ -a -f /full", true),
            ("-z word -o -f /full", true),
            ("a = b -a a = a -o b = b", true),
            ("! ( a = b -o a = c )", true),
        ] {
            check(words, expected);
        }
    }

    #[test]
    fn deep_nesting_ends() {
        let words = vec!["!".to_owned(); 1000];
        let at = Line { file: Rc::from("/grub.cfg"), number: 7 };
        let error = holds(&words, &|_| Ok(None), &at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}
