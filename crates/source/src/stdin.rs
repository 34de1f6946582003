//! Standard input: a pipe or a file without a length, a name or a second chance.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::{ErrorKind, Start};

/// What messages call it.
pub(crate) const NAME: &str = "standard input";

/// The bytes of one read at most: what a pipe holds by default.
const BLOCK: usize = 64 << 10;

/// How many blocks are read ahead of who takes them.
const AHEAD: usize = 16;

#[derive(Debug)]
pub(crate) struct Stdin {
    blocks: mpsc::Receiver<io::Result<Bytes>>,
    received: u64,
}

impl Stdin {
    /// Takes this process's standard input, which nobody else may read.
    pub(crate) fn open(start: &Start) -> Result<Self, Error> {
        if start.at > 0 {
            return Err(Error::no_ranges(NAME));
        }
        let input = rustix::io::dup(rustix::stdio::stdin());
        let input = input.map_err(|error| Error::file(Path::new(NAME), error.into()))?;
        if rustix::termios::isatty(&input) {
            let what = format!("{NAME} is a terminal; expected the bytes of a disk image");
            return Err(Error::new(ErrorKind::NotAFile, what));
        }
        Ok(Self::over(input))
    }

    fn over(input: OwnedFd) -> Self {
        let (sender, blocks) = mpsc::channel(AHEAD);
        // Not a thread of the runtime, which would wait at its end for one that waits for input.
        std::thread::spawn(move || {
            let mut file = fs_err::File::from_parts(input.into(), NAME);
            loop {
                let mut block = vec![0; BLOCK];
                let read = match file.read(&mut block) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    // The input's end is the channel's.
                    Ok(0) => return,
                    read => read,
                };
                let is_last = read.is_err();
                let block = read.map(|len| {
                    block.truncate(len);
                    Bytes::from(block)
                });
                if sender.blocking_send(block).is_err() || is_last {
                    return;
                }
            }
        });
        Self { blocks, received: 0 }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self.blocks.recv().await.transpose() {
            Ok(block) => {
                self.received += block.as_ref().map_or(0, |block| block.len() as u64);
                Ok(block)
            }
            Err(error) => Err(Error::file(Path::new(NAME), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut stdin = Stdin::over(reader);
        let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut writer = fs_err::File::from_parts(writer.into(), "pipe");
        let written = data.clone();
        let writing = std::thread::spawn(move || io::Write::write_all(&mut writer, &written));
        let mut bytes = Vec::new();
        while let Some(block) = stdin.next().await.unwrap() {
            assert!(!block.is_empty());
            bytes.extend_from_slice(&block);
        }
        writing.join().unwrap().unwrap();
        assert!(bytes == data && stdin.received() == data.len() as u64);
        assert_eq!(stdin.next().await.unwrap(), None);
    }

    #[test]
    fn what_has_gone_by_cannot_be_had_again() {
        let start = Start { at: 1, validator: None };
        assert_eq!(Stdin::open(&start).unwrap_err().kind(), ErrorKind::NoRanges);
    }
}
