//! Words for commands that a hint shows, to be copied into a shell.

use std::ffi::OsStr;

/// The word, quoted where a shell would not take it as it is; one that begins with a hyphen is made
/// a path, so that no command takes it for a flag.
pub fn shell_word(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    let here = if word.starts_with('-') { "./" } else { "" };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return format!("{here}{word}");
    }
    format!("'{here}{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_the_word() {
        for (word, expected) in [
            ("/srv/disk-1.raw", "/srv/disk-1.raw"),
            ("", "''"),
            ("my disk", "'my disk'"),
            ("it's", r"'it'\''s'"),
            ("$(rm x);`y`*~", "'$(rm x);`y`*~'"),
            ("-rf", "./-rf"),
            ("-r f", "'./-r f'"),
            ("größe", "'größe'"),
        ] {
            assert_eq!(shell_word(word), expected);
        }
    }
}
