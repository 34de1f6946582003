//! How a fuzzer's input stands for an image file.
//!
//! Images are mostly zeros at places that matter, which a fuzzer would waste its time on. So an
//! input is a list: the file's length (4 bytes, little-endian), then runs, each an offset (4 bytes),
//! a length (2 bytes) and that many bytes. Whatever does not fit is cut off; every input is valid.

/// Files are at most this long.
pub const LEN_MAX: usize = 8 << 20;
/// Runs of an encoded file begin and end on blocks of this many bytes.
const BLOCK: usize = 64;

/// The file that `input` stands for.
pub fn decode(input: &[u8]) -> Vec<u8> {
    let Some((len, mut rest)) = input.split_first_chunk() else { return Vec::new() };
    let mut file = vec![0; (u32::from_le_bytes(*len) as usize).min(LEN_MAX)];
    while let Some((head, tail)) = rest.split_first_chunk::<6>() {
        let [a, b, c, d, low, high] = *head;
        let offset = u32::from_le_bytes([a, b, c, d]) as usize;
        let len = usize::from(u16::from_le_bytes([low, high])).min(tail.len());
        let (bytes, next) = tail.split_at(len);
        if let Some(place) = file.get_mut(offset..) {
            let fits = place.len().min(len);
            place[..fits].copy_from_slice(&bytes[..fits]);
        }
        rest = next;
    }
    file
}

/// The input that stands for `file`, whose rest beyond [`LEN_MAX`] is left out.
pub fn encode(file: &[u8]) -> Vec<u8> {
    let file = &file[..file.len().min(LEN_MAX)];
    let mut input = (file.len() as u32).to_le_bytes().to_vec();
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let mut blocks = file.chunks(BLOCK).enumerate().peekable();
    while let Some((first, block)) = blocks.next() {
        if is_zero(block) {
            continue;
        }
        let begin = first * BLOCK;
        let mut end = begin + block.len();
        while let Some((_, block)) = blocks
            .next_if(|(_, block)| !is_zero(block) && end - begin < usize::from(u16::MAX) - BLOCK)
        {
            end += block.len();
        }
        input.extend((begin as u32).to_le_bytes());
        input.extend(((end - begin) as u16).to_le_bytes());
        input.extend(&file[begin..end]);
    }
    input
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_file_is_decoded_to_itself() {
        for len in [0, 1, 63, 64, 1000, 300_000] {
            let file: Vec<u8> = (0..len)
                .map(|i: usize| if (i / 1000).is_multiple_of(3) { 0 } else { i as u8 })
                .collect();
            assert!(decode(&encode(&file)) == file, "{len}");
        }
        let file = vec![7; 200_000];
        assert!(decode(&encode(&file)) == file);
    }

    #[test]
    fn any_input_is_a_file() {
        for len in 0..40 {
            decode(&vec![0xff; len]);
        }
        assert_eq!(decode(&[2, 0, 0, 0, 1, 0, 0, 0, 9, 0, 5, 6]), [0, 5]);
    }
}
