//! Brings chunks to a size that is worth handling.

use bytes::{Bytes, BytesMut};

/// Chunks are collected up to, and cut down to, this many bytes.
pub(super) const PART: usize = 256 << 10;
/// A chunk at least this long goes through without being copied, if nothing waits before it.
const WHOLE: usize = 64 << 10;

/// Collects small chunks and cuts large ones.
#[derive(Debug, Default)]
pub(super) struct Gather {
    waiting: BytesMut,
}

impl Gather {
    /// Takes bytes off `chunk` and gives the next part. With `None`, all of `chunk` has been taken.
    pub(super) fn next(&mut self, chunk: &mut Bytes) -> Option<Bytes> {
        if self.waiting.is_empty() && chunk.len() >= WHOLE {
            return Some(chunk.split_to(chunk.len().min(PART)));
        }
        if self.waiting.capacity() == 0 && !chunk.is_empty() {
            self.waiting = BytesMut::with_capacity(PART);
        }
        let taken = chunk.split_to(chunk.len().min(PART - self.waiting.len()));
        self.waiting.extend_from_slice(&taken);
        (self.waiting.len() == PART).then(|| std::mem::take(&mut self.waiting).freeze())
    }

    /// What still waits.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.waiting);
        (!rest.is_empty()).then(|| rest.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_chunks_in_order_and_of_good_size() {
        for chunk_len in [1, 4095, 16 << 10, 64 << 10, 100_000, 3 << 20] {
            let data: Vec<u8> = (0..900_001_u32).map(|i| (i % 251) as u8).collect();
            let mut gather = Gather::default();
            let mut parts = Vec::new();
            for chunk in data.chunks(chunk_len) {
                let mut chunk = Bytes::copy_from_slice(chunk);
                while let Some(part) = gather.next(&mut chunk) {
                    parts.push(part);
                }
                assert!(chunk.is_empty());
            }
            parts.extend(gather.rest());
            assert!(parts.iter().all(|part| part.len() <= PART));
            assert!(parts.len() <= 1 + data.len() / WHOLE, "{} parts", parts.len());
            assert!(parts.concat() == data);
        }
    }
}
