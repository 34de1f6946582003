//! Snappy's framing format (google/snappy, `framing_format.txt`): what CDI's cloner sends.

use std::fmt;
use std::io::{self, Read};

use snap::Error as Fault;
use snap::read::FrameDecoder;

use super::codec::damaged;
use super::peek::Peek;
use super::refuse;
use crate::ErrorKind;

const NAME: &str = "snappy";

pub(super) struct Snappy(FrameDecoder<Peek>);

impl Snappy {
    pub(super) fn new(inner: Peek) -> Self {
        Self(FrameDecoder::new(inner))
    }
}

impl Read for Snappy {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(refusal)
    }
}

/// An error of the file passes through; those of the format are the decoder's own.
fn refusal(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return refuse(ErrorKind::Truncated, "the snappy stream is cut off");
    }
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) {
        Some(fault) => io::Error::other(damaged(NAME, &fault.to_string())),
        None => error,
    }
}

impl fmt::Debug for Snappy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snappy").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bootyard_testkit::pseudo_random;
    use snap::write::FrameEncoder;

    use crate::stream::unpack::tests::{check, disk};
    use crate::support::decode;
    use crate::{ErrorKind, Format};

    const BEGIN: &[u8] = b"\xff\x06\0\0sNaPpY";

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::new(Vec::new());
        encoder.write_all(data).unwrap();
        encoder.into_inner().unwrap()
    }

    /// Chunks of bytes as they are, by the description: type 1, the length in 24 bits, the masked
    /// CRC-32C, the bytes. One to be skipped is between them.
    fn stored(data: &[u8]) -> Vec<u8> {
        let mut file = BEGIN.to_vec();
        for part in data.chunks(65_536) {
            let len = u32::try_from(part.len() + 4).unwrap().to_le_bytes();
            let sum = crc32c::crc32c(part).rotate_right(15).wrapping_add(0xa282_ead8);
            file.extend([&[1], &len[..3], &sum.to_le_bytes(), part].concat());
            file.extend(b"\xfe\x03\0\0pad");
        }
        file
    }

    #[test]
    fn a_disk_comes_out_as_it_was() {
        let (disk, chain) = (disk(), [Format::Snappy, Format::Raw]);
        check(&packed(&disk), &disk, &chain, "packed");
        check(&stored(&disk), &disk, &chain, "stored");
        let [a, b] = [&disk[..1_500_000], &disk[1_500_000..]].map(packed);
        check(&[a, b].concat(), &disk, &chain, "one after the other");
    }

    #[test]
    fn damage_and_a_cut_are_told() {
        let mut file = stored(&pseudo_random(200_000, 1));
        let error = decode(&file[..file.len() - 10], &[65_536]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
        file[70_000] ^= 1;
        let error = decode(&file, &[65_536]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("snappy"), "{error}");
    }
}
