//! Decompression of single blocks of known size. Not for streams.

use std::fmt;

use libdeflater::{DecompressionError, Decompressor};
use zstd::zstd_safe::{self, DCtx};

use crate::{Error, ErrorKind};

/// How a block is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// A raw deflate stream (RFC 1951).
    Deflate,
    /// The same in a zlib stream (RFC 1950), whose checksum is verified.
    Zlib,
    /// Zstandard frames (RFC 8878).
    Zstd,
}

/// Why a block could not be decompressed, as the end of a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Damaged(Codec),
    Short { got: usize },
    Long,
}

/// Decompressors that are made once and used for many blocks.
pub(crate) struct Unpacker {
    deflate: Decompressor,
    zstd: DCtx<'static>,
}

impl Unpacker {
    pub(crate) fn new() -> Self {
        Self { deflate: Decompressor::new(), zstd: DCtx::create() }
    }

    /// Fills `out` from the block at the start of `packed`, which may have other bytes behind it.
    pub(crate) fn unpack(
        &mut self,
        codec: Codec,
        packed: &[u8],
        out: &mut [u8],
    ) -> Result<(), Fault> {
        let fault = |error| match error {
            DecompressionError::InsufficientSpace => Fault::Long,
            DecompressionError::BadData => Fault::Damaged(codec),
        };
        let got = match codec {
            Codec::Deflate => self.deflate.deflate_decompress(packed, out).map_err(fault)?,
            Codec::Zlib => self.deflate.zlib_decompress(packed, out).map_err(fault)?,
            Codec::Zstd => self.unzstd(packed, out)?,
        };
        if got == out.len() { Ok(()) } else { Err(Fault::Short { got }) }
    }

    /// The one-shot decoder wants frames without anything behind them, so each is measured first.
    /// It writes into `out` alone: a frame's window size costs no memory.
    fn unzstd(&mut self, packed: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        let damaged = |_| Fault::Damaged(Codec::Zstd);
        let (mut from, mut to) = (0, 0);
        while to < out.len() && from < packed.len() {
            let len = zstd_safe::find_frame_compressed_size(&packed[from..]).map_err(damaged)?;
            let frame = packed.get(from..from + len).ok_or(Fault::Damaged(Codec::Zstd))?;
            to += self.zstd.decompress(&mut out[to..], frame).map_err(damaged)?;
            from += len;
        }
        Ok(to)
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

impl Fault {
    /// The failure to decompress the cluster at `at`, of which the file's end may have `cut` off a
    /// part.
    pub(crate) fn in_cluster(self, at: u64, cut: bool) -> Error {
        match cut {
            true => Error::new(ErrorKind::Truncated, "the file ends in a compressed cluster"),
            false => Error::new(ErrorKind::Corrupt, format!("the compressed cluster {self}")),
        }
        .at(at)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(Codec::Deflate) => f.write_str("is not a valid deflate stream"),
            Self::Damaged(Codec::Zlib) => f.write_str("is not a valid zlib stream"),
            Self::Damaged(Codec::Zstd) => f.write_str("is not a valid zstd frame"),
            Self::Short { got } => write!(f, "ends after {got} bytes of its contents"),
            Self::Long => f.write_str("holds more than a cluster"),
        }
    }
}

#[cfg(test)]
mod tests {
    use libdeflater::{CompressionLvl, Compressor};

    use super::*;

    fn pack(codec: Codec, data: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Zstd => zstd::bulk::compress(data, 1).unwrap(),
            Codec::Deflate | Codec::Zlib => {
                let mut compressor = Compressor::new(CompressionLvl::default());
                let mut packed = vec![0; compressor.zlib_compress_bound(data.len())];
                let len = match codec {
                    Codec::Zlib => compressor.zlib_compress(data, &mut packed).unwrap(),
                    _ => compressor.deflate_compress(data, &mut packed).unwrap(),
                };
                packed.truncate(len);
                packed
            }
        }
    }

    #[test]
    fn blocks_must_fill_their_place_and_may_be_followed_by_others() {
        let data: Vec<u8> = (0..4096_u32).map(|i| ((i * i) >> 7) as u8).collect();
        let mut unpacker = Unpacker::new();
        for codec in [Codec::Deflate, Codec::Zlib, Codec::Zstd] {
            let mut packed = pack(codec, &data);
            let cut = packed.len() / 2;
            packed.extend([0x5a; 300]);
            let mut out = vec![0; 4096];
            unpacker.unpack(codec, &packed, &mut out).unwrap();
            assert_eq!(out, data);

            let mut unpack = |packed: &[u8], len| unpacker.unpack(codec, packed, &mut vec![0; len]);
            assert!(unpack(&packed, 4095).is_err(), "too long");
            assert_eq!(unpack(&packed[..cut], 4096), Err(Fault::Damaged(codec)));
            assert!(unpack(&[0x5a; 4096], 4096).is_err());
            assert!(unpack(&[], 4096).is_err());
        }
        assert_eq!(
            unpacker.unpack(Codec::Deflate, &pack(Codec::Deflate, &data), &mut [0; 5000]),
            Err(Fault::Short { got: 4096 })
        );
    }
}
