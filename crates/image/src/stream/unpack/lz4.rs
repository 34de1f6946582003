//! LZ4 frames (LZ4 Frame Format 1.6.4), one after the other, some of them to be skipped.

use std::fmt;
use std::io::{self, BufRead, Read};

use lz4_flex::frame::{Error as Fault, FrameDecoder};

use super::codec::{damaged, trailing};
use super::peek::Peek;
use super::refuse;
use super::zstd::is_skippable;
use crate::{Error, ErrorKind};

const NAME: &str = "lz4";
/// A frame's first bytes ("General Structure of LZ4 Frame format"),
const MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// and those of the format before it ("Legacy frame").
const LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

pub(super) struct Lz4(State);

enum State {
    Between(Noted),
    Within(FrameDecoder<Noted>),
    /// An error has left nothing to go on with.
    Failed,
}

/// Notes whether someone wanted to read beyond the end. The decoder does not tell the end of the
/// file from that of a frame.
struct Noted {
    inner: Peek,
    beyond: bool,
}

impl Read for Noted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        self.beyond |= len == 0 && !buf.is_empty();
        Ok(len)
    }
}

impl Lz4 {
    pub(super) const fn new(inner: Peek) -> Self {
        Self(State::Between(Noted { inner, beyond: false }))
    }
}

impl Read for Lz4 {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.0, State::Failed) {
                State::Failed => return Err(io::Error::other("reading has already failed")),
                State::Within(mut decoder) => match decoder.read(buf) {
                    Ok(0) if decoder.get_ref().beyond => return Err(cut_off()),
                    Ok(0) => self.0 = State::Between(decoder.into_inner()),
                    Ok(len) => {
                        self.0 = State::Within(decoder);
                        return Ok(len);
                    }
                    Err(error) => return Err(refusal(error)),
                },
                State::Between(mut noted) => {
                    let head = noted.inner.head(8)?;
                    if head.is_empty() {
                        self.0 = State::Between(noted);
                        return Ok(0);
                    }
                    if let Some(len) = skippable(head)? {
                        skip(&mut noted.inner, len)?;
                        self.0 = State::Between(noted);
                    } else {
                        begin(head)?;
                        self.0 = State::Within(FrameDecoder::new(noted));
                    }
                }
            }
        }
    }
}

/// The length of a frame to be skipped, with its header.
fn skippable(head: &[u8]) -> io::Result<Option<u64>> {
    if !is_skippable(head) {
        return Ok(None);
    }
    let [_, _, _, _, len @ ..] = head else { return Err(cut_off()) };
    let len: [u8; 4] = len.try_into().map_err(|_| cut_off())?;
    Ok(Some(8 + u64::from(u32::from_le_bytes(len))))
}

fn begin(head: &[u8]) -> io::Result<()> {
    if head.starts_with(&LEGACY_MAGIC) {
        return Err(refuse(ErrorKind::Unsupported, "legacy lz4 frames are not supported"));
    }
    if head.starts_with(&MAGIC) { Ok(()) } else { Err(io::Error::other(trailing(NAME))) }
}

fn skip(inner: &mut Peek, mut len: u64) -> io::Result<()> {
    while len > 0 {
        let part = inner.fill_buf()?.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        if part == 0 {
            return Err(cut_off());
        }
        inner.consume(part);
        len -= part as u64;
    }
    Ok(())
}

fn cut_off() -> io::Error {
    refuse(ErrorKind::Truncated, "the lz4 stream is cut off")
}

/// An error of the file passes through; those of the format are the decoder's own.
fn refusal(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return cut_off();
    }
    let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>()) else {
        return error;
    };
    let refusal = match fault {
        Fault::DictionaryNotSupported => {
            let what = "the lz4 frame needs a dictionary, which is not part of it";
            Error::new(ErrorKind::NeedsOtherFile, what)
        }
        Fault::UnsupportedBlocksize(_) | Fault::UnsupportedVersion(_) | Fault::ReservedBitsSet => {
            Error::new(
                ErrorKind::Unsupported,
                format!("the lz4 frame is of an unknown kind: {fault:?}"),
            )
        }
        fault => damaged(NAME, &format!("{fault:?}")),
    };
    io::Error::other(refusal)
}

impl fmt::Debug for Lz4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lz4").finish_non_exhaustive()
    }
}
