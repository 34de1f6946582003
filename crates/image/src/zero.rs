//! Finds the zeros in data, so that nobody stores them.

use std::ops::Range;

/// Zeros are looked for in blocks of this many bytes, aligned on the disk: the block size of the
/// usual file systems, below which a hole saves nothing.
pub(crate) const BLOCK: usize = 4096;

/// Calls `run` for each run of blocks in `data` that are alike, with `true` for zeros. `data`
/// stands at `offset` of its disk. Stops at the first error.
pub(crate) fn runs<E>(
    data: &[u8],
    offset: u64,
    mut run: impl FnMut(Range<usize>, bool) -> Result<(), E>,
) -> Result<(), E> {
    let mut begin = 0;
    let mut kind = None;
    let mut at = 0;
    while at < data.len() {
        let end = data.len().min(at + BLOCK - (offset + at as u64) as usize % BLOCK);
        let zero = is_zero(&data[at..end]);
        match kind {
            Some(kind) if kind != zero => {
                run(begin..at, kind)?;
                begin = at;
            }
            _ => {}
        }
        kind = Some(zero);
        at = end;
    }
    match kind {
        Some(kind) => run(begin..data.len(), kind),
        None => Ok(()),
    }
}

/// True if every byte is zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    /// What a vectorised OR folds before it looks.
    const STRIDE: usize = 256;
    data.chunks(STRIDE).all(|chunk| chunk.iter().fold(0, |acc, byte| acc | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_break_on_blocks_of_the_disk() {
        let mut data = vec![0; 5 * BLOCK];
        data[2 * BLOCK] = 1;
        let found = |data: &[u8], offset: u64| {
            let mut found = Vec::new();
            runs::<()>(data, offset, |range, zero| {
                found.push((range.start, range.end, zero));
                Ok(())
            })
            .unwrap();
            found
        };
        assert_eq!(found(&data, 0), [(0, 8192, true), (8192, 12288, false), (12288, 20480, true)]);
        assert_eq!(
            found(&data, 4096 + 96),
            [(0, 8096, true), (8096, 12192, false), (12192, 20480, true)]
        );
        assert_eq!(found(&[], 7), []);
        assert_eq!(found(&[0; 3], 1), [(0, 3, true)]);
    }
}
