//! Lines of a stream, with a limit on their length.

use std::io::{self, BufRead, Read};

/// A line that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// One without its line feed.
    Whole(Vec<u8>),
    /// One that was too long, and was skipped.
    TooLong,
    /// There are no more.
    End,
}

/// Reads a line of at most `max` bytes. What stands at the end without a line feed is none: its sender was cut off.
pub(super) fn read_line(stream: &mut impl BufRead, max: usize) -> io::Result<Line> {
    let mut line = Vec::new();
    stream.by_ref().take(max as u64 + 1).read_until(b'\n', &mut line)?;
    if line.pop_if(|last| *last == b'\n').is_some() {
        return Ok(Line::Whole(line));
    }
    if line.len() <= max {
        return Ok(Line::End);
    }
    stream.skip_until(b'\n')?;
    Ok(Line::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::LINE_MAX;

    #[test]
    fn lines_have_a_limit_and_what_follows_is_read() {
        let mut text = b"{}\n\n".to_vec();
        for len in [LINE_MAX, LINE_MAX + 1, 3 * LINE_MAX] {
            text.extend(vec![b'x'; len]);
            text.push(b'\n');
        }
        text.extend(b"last\ncut off");
        let mut stream = &text[..];
        let mut lines = Vec::new();
        loop {
            match read_line(&mut stream, LINE_MAX).unwrap() {
                Line::Whole(line) => lines.push(line.len()),
                Line::TooLong => lines.push(usize::MAX),
                Line::End => break,
            }
        }
        assert_eq!(lines, [2, 0, LINE_MAX, usize::MAX, usize::MAX, 4]);
    }
}
