//! A compressed file that holds no disk: what is in it, as bytes.

use std::fmt;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::peek::{Gauge, Peek};
use super::{DEPTH_MAX, own, refuse, unpack};
use crate::sniff::HEAD_LEN;
use crate::{Error, ErrorKind, Format, chain_name, sniff};

/// Reads what is in a file after all compression is taken off: gzip, xz, zstd, bzip2, lz4, lzma, snappy, also
/// round each other. An archive is not looked into, and what is not compressed comes as it is.
///
/// At the end, `Ok(0)`, all checksums were found right. A failure holds an [`Error`], which says what
/// is wrong with the file, and where; but one of the file's own reader is passed through.
pub struct Decompressed {
    reader: Peek,
    chain: Vec<Format>,
    gauge: Arc<Gauge>,
}

impl Decompressed {
    /// Looks at the first bytes of `file`. `threads` is how many may decompress.
    pub fn new(file: impl Read + Send + 'static, threads: NonZeroUsize) -> Result<Self, Error> {
        let gauge = Arc::new(Gauge::new(u64::MAX));
        let reader = Peek::outermost(Box::new(file), gauge.clone());
        let mut opened = Self { reader, chain: Vec::new(), gauge };
        loop {
            let head = opened.reader.head(HEAD_LEN);
            let format = sniff(head.map_err(|error| own(error, opened.gauge.position()))?);
            if !is_compression(format) {
                return Ok(opened);
            }
            opened.chain.push(format);
            opened = opened.unpack(format, threads)?;
        }
    }

    /// The compressions, from the outermost on.
    pub fn compressions(&self) -> &[Format] {
        &self.chain
    }

    fn unpack(self, format: Format, threads: NonZeroUsize) -> Result<Self, Error> {
        let Self { reader, chain, gauge } = self;
        let unpacked = if chain.len() > DEPTH_MAX {
            let what = format!(
                "expected at most {DEPTH_MAX} compressions round each other, got {}",
                chain_name(&chain)
            );
            Err(refuse(ErrorKind::Unsupported, what))
        } else {
            unpack(format, reader, &gauge, threads)
        };
        let (reader, _) = unpacked.map_err(|error| own(error, gauge.position()))?;
        Ok(Self { reader, chain, gauge })
    }
}

const fn is_compression(format: Format) -> bool {
    use Format::{Bzip2, Gzip, Lz4, Lzma, Snappy, Xz, Zstd};
    matches!(format, Gzip | Xz | Lzma | Zstd | Bzip2 | Lz4 | Snappy)
}

impl Read for Decompressed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf).map_err(|error| match error.downcast::<Error>() {
            Ok(refusal) => io::Error::other(own(io::Error::other(refusal), self.gauge.position())),
            Err(error) => error,
        })
    }
}

impl fmt::Debug for Decompressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressed").field("chain", &self.chain).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::unpack::tests::{archive, disk, filter, tool};

    const THREADS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

    fn read(file: Vec<u8>) -> Result<(Vec<u8>, Vec<Format>), Error> {
        let mut opened = Decompressed::new(io::Cursor::new(file), THREADS)?;
        let mut all = Vec::new();
        match opened.read_to_end(&mut all) {
            Ok(_) => Ok((all, opened.compressions().to_vec())),
            Err(error) => Err(error.downcast().unwrap()),
        }
    }

    #[test]
    fn an_archive_comes_out_as_it_is() {
        let tar = archive(&[("a", &disk()), ("b", b"text")], "tar -cf archive a b");
        assert_eq!(read(tar.clone()).unwrap(), (tar.clone(), vec![]));
        assert_eq!(read(Vec::new()).unwrap(), (vec![], vec![]));
        for (command, format) in [
            ("gzip -1", Format::Gzip),
            ("xz -0 -T2", Format::Xz),
            ("zstd -1", Format::Zstd),
            ("bzip2 -1", Format::Bzip2),
            ("lz4 -1", Format::Lz4),
        ] {
            if !tool(command) {
                continue;
            }
            let file = filter(command, &tar);
            assert_eq!(read(file.clone()).unwrap(), (tar.clone(), vec![format]), "{command}");
            let error = read(file[..file.len() - 1].to_vec()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{command}");
            assert!(error.offset().is_some(), "{error:?}");
            let twice = filter("gzip -1", &file);
            assert_eq!(read(twice).unwrap().1, [Format::Gzip, format]);
        }
    }

    #[test]
    fn depth_has_a_limit() {
        if !tool("gzip") {
            return;
        }
        let file = (0..5).fold(b"text".to_vec(), |file, _| filter("gzip -1", &file));
        let error = read(file).unwrap_err();
        assert!(error.to_string().starts_with("expected at most 4 compressions"), "{error}");
    }
}
