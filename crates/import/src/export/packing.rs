//! How a block of a raw disk is packed: complete in itself, so that packed blocks behind each other are
//! one packed disk.

use std::io::{self, Write};

use liblzma::write::XzEncoder;

/// gzip's level: that of `gzip` and `pigz`.
const GZIP_LEVEL: i32 = 6;
/// xz's: the dictionary of level 3 is as long as a block.
const XZ_LEVEL: u32 = 3;

/// What a block becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// What it was.
    None,
    /// A member (RFC 1952 §2.2).
    Gzip,
    /// A frame with a checksum (RFC 8878 §3.1).
    Zstd,
    /// A stream (the .xz file format, §2).
    Xz,
}

impl Packing {
    /// How many bytes of the disk are packed together: more for those that look back farther.
    pub(super) const fn block(self) -> usize {
        match self {
            Self::None | Self::Gzip => 1 << 20,
            Self::Zstd => 2 << 20,
            Self::Xz => 4 << 20,
        }
    }

    /// Packs a block.
    pub(super) fn pack(self, block: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(block),
            Self::Gzip => {
                let level = libdeflater::CompressionLvl::new(GZIP_LEVEL);
                let mut packer = libdeflater::Compressor::new(level.map_err(|_| bad_level())?);
                let mut packed = vec![0; packer.gzip_compress_bound(block.len())];
                let len = packer.gzip_compress(&block, &mut packed).map_err(io::Error::other)?;
                packed.truncate(len);
                Ok(packed)
            }
            Self::Zstd => {
                let mut packer = zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL)?;
                packer.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
                packer.compress(&block)
            }
            Self::Xz => {
                let mut packer = XzEncoder::new(Vec::new(), XZ_LEVEL);
                packer.write_all(&block)?;
                packer.finish()
            }
        }
    }
}

fn bad_level() -> io::Error {
    io::Error::other("libdeflate does not know its own level")
}
