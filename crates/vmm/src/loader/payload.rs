//! Unpacks the kernel inside a `bzImage`.
//!
//! The build may append the unpacked size to the packed bytes; a decoder stops at its own end and
//! leaves those four bytes alone.

use super::{LoadError, array};

/// The most that a kernel unpacks to, in a machine of whatever memory. Distribution kernels come to
/// 80 MiB.
pub(super) const UNPACKED_MAX: usize = 512 << 20;
/// Block size of the LZ4 legacy frame format, which is what the `lz4 -l` of the kernel's build
/// writes (LZ4 frame format 1.6.4, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const LZ4_LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const ZSTD: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// How much of a stream is unpacked at once.
const CHUNK: usize = 1 << 20;

/// Takes what is unpacked, piece by piece from the first byte on.
pub(super) type Take<'t> = dyn FnMut(&[u8]) -> Result<(), LoadError> + 't;

/// Unpacks `packed`, by its magic, to at most `limit` bytes. All pieces but the
/// last have 1 MiB at least.
pub(super) fn unpack(packed: &[u8], limit: usize, take: &mut Take<'_>) -> Result<(), LoadError> {
    if packed.starts_with(&LZ4_LEGACY) {
        return lz4(&packed[LZ4_LEGACY.len()..], limit, take);
    }
    if packed.starts_with(&ZSTD) {
        return zstd(packed, limit, take);
    }
    if packed.starts_with(&GZIP) {
        return gzip(packed, limit, take);
    }
    Err(failed("unknown", format!("it begins with {:02x?}", &packed[..packed.len().min(6)])))
}

fn failed(codec: &'static str, why: impl Into<String>) -> LoadError {
    LoadError::Payload { codec, why: why.into() }
}

fn too_long(codec: &'static str, limit: usize) -> LoadError {
    failed(codec, format!("it unpacks to more than {limit} bytes"))
}

fn lz4(mut rest: &[u8], limit: usize, take: &mut Take<'_>) -> Result<(), LoadError> {
    let (mut total, mut unpacked, mut ended) = (0, vec![0; LZ4_BLOCK], false);
    // A rest that is no longer than a length is the appended size, or nothing.
    while rest.len() > size_of::<u32>() {
        // Else many tiny blocks that give nothing would keep us busy for hours.
        if ended {
            return Err(failed("lz4", "a block before the last one unpacks to less than 8 MiB"));
        }
        let len = array(rest, 0).map_or(0, u32::from_le_bytes) as usize;
        let block = rest[size_of::<u32>()..].get(..len);
        let block = block.ok_or_else(|| failed("lz4", "a block ends beyond the payload"))?;
        rest = &rest[size_of::<u32>() + len..];
        let got = lz4_flex::block::decompress_into(block, &mut unpacked)
            .map_err(|error| failed("lz4", error.to_string()))?;
        total += got;
        if total > limit {
            return Err(too_long("lz4", limit));
        }
        take(&unpacked[..got])?;
        ended = got < LZ4_BLOCK;
    }
    Ok(())
}

fn zstd(packed: &[u8], limit: usize, take: &mut Take<'_>) -> Result<(), LoadError> {
    use std::io::Read as _;

    let broken = |error: std::io::Error| failed("zstd", error.to_string());
    let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(broken)?;
    let mut decoder = decoder.single_frame();
    let (mut total, mut chunk) = (0, Vec::with_capacity(CHUNK));
    loop {
        chunk.clear();
        let got = (&mut decoder).take(CHUNK as u64).read_to_end(&mut chunk).map_err(broken)?;
        total += got;
        if total > limit {
            return Err(too_long("zstd", limit));
        }
        if got == 0 {
            return Ok(());
        }
        take(&chunk)?;
    }
}

fn gzip(packed: &[u8], limit: usize, take: &mut Take<'_>) -> Result<(), LoadError> {
    // The last four bytes are the unpacked size (RFC 1952 §2.3.1).
    let len = packed.last_chunk().map_or(0, |size| u32::from_le_bytes(*size)) as usize;
    if len > limit {
        return Err(too_long("gzip", limit));
    }
    let mut out = vec![0; len];
    let got = libdeflater::Decompressor::new()
        .gzip_decompress(packed, &mut out)
        .map_err(|error| failed("gzip", error.to_string()))?;
    take(&out[..got])
}
