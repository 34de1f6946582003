//! Which version of a program is installed.
#![expect(clippy::disallowed_methods, reason = "the program is asked")]

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// The first line that `program --version` prints.
pub fn version_of(program: &Path) -> io::Result<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("`--version` ended with {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_version() {
        assert!(version_of(Path::new("/bin/sed")).unwrap().contains("sed"));
        assert!(version_of(Path::new("/bin/false")).is_err());
        assert!(version_of(Path::new("/no/such/program")).is_err());
    }
}
