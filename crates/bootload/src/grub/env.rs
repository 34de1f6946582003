//! GRUB's environment block (`grubenv`): `name=value` lines after a signature, padded with `#`.

const SIGNATURE: &str = "# GRUB Environment Block\n";

/// The variables of a block, in its order; nothing if this is no block.
pub(crate) fn parse(block: &[u8]) -> Option<Vec<(String, String)>> {
    let text = String::from_utf8_lossy(block);
    let lines = text.strip_prefix(SIGNATURE)?;
    let mut variables = Vec::new();
    // A backslash keeps the character after it, a line end too.
    let (mut line, mut escaped) = (String::new(), false);
    for c in lines.chars() {
        match c {
            '\\' if !escaped => escaped = true,
            '\n' if !escaped => {
                let line = std::mem::take(&mut line);
                if let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#'))
                {
                    variables.push((name.to_owned(), value.to_owned()));
                }
            }
            _ => {
                line.push(c);
                escaped = false;
            }
        }
    }
    Some(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_grub_editenv_writes() {
        let mut block =
            b"# GRUB Environment Block\n# a comment\nsaved_entry=0>2\nodd=a\\\\b=c\nempty=\n"
                .to_vec();
        block.resize(1024, b'#');
        let expected = [("saved_entry", "0>2"), ("odd", "a\\b=c"), ("empty", "")];
        let expected: Vec<_> =
            expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(parse(&block), Some(expected));
        assert_eq!(parse(b"saved_entry=0\n"), None);
    }
}
