//! LZO1X, with which btrfs compresses. The format has no specification but its decoders; this one
//! follows what the kernel's documentation says of it (`Documentation/staging/lzo.rst`).

/// Unpacks one block into at most `limit` bytes; nothing if it is damaged.
pub(super) fn decompress(input: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut lzo = Lzo { input, at: 0, out: Vec::new(), limit };
    let first = usize::from(*input.first()?);
    // How many literals came last: 0 to 3 behind a match, 4 for a longer run.
    let mut state = 0;
    if first > 17 {
        lzo.at = 1;
        lzo.literals(first - 17)?;
        state = (first - 17).min(4);
    }
    loop {
        let code = lzo.byte()?;
        let (mut next, len, distance);
        match code {
            0..16 if state == 0 => {
                let run = lzo.length(code, 15)? + 3;
                lzo.literals(run)?;
                state = 4;
                continue;
            }
            0..16 => {
                let high = lzo.byte()? << 2;
                (next, len) = (code, if state == 4 { 3 } else { 2 });
                distance = (code >> 2) + high + if state == 4 { 0x801 } else { 1 };
            }
            16..32 => {
                len = lzo.length(code & 7, 7)? + 2;
                next = lzo.byte()? | lzo.byte()? << 8;
                let near = ((code & 8) << 11) + (next >> 2);
                if near == 0 {
                    return Some(lzo.out);
                }
                distance = near + 0x4000;
            }
            32..64 => {
                len = lzo.length(code & 31, 31)? + 2;
                next = lzo.byte()? | lzo.byte()? << 8;
                distance = (next >> 2) + 1;
            }
            _ => {
                let high = lzo.byte()? << 3;
                (next, len) = (code, (code >> 5) + 1);
                distance = (code >> 2 & 7) + high + 1;
            }
        }
        lzo.repeat(distance, len)?;
        next &= 3;
        lzo.literals(next)?;
        state = next;
    }
}

struct Lzo<'a> {
    input: &'a [u8],
    at: usize,
    out: Vec<u8>,
    limit: usize,
}

impl Lzo<'_> {
    fn byte(&mut self) -> Option<usize> {
        let byte = self.input.get(self.at)?;
        self.at += 1;
        Some(usize::from(*byte))
    }

    /// A length that a code's bits hold, or that follows if they are zero: 255 for each zero byte.
    fn length(&mut self, bits: usize, base: usize) -> Option<usize> {
        if bits > 0 {
            return Some(bits);
        }
        let mut len = base;
        loop {
            match self.byte()? {
                0 => len += 255,
                last => return Some(len + last),
            }
        }
    }

    fn literals(&mut self, len: usize) -> Option<()> {
        let bytes = self.input.get(self.at..self.at.checked_add(len)?)?;
        self.at += len;
        self.out.extend_from_slice(bytes);
        (self.out.len() <= self.limit).then_some(())
    }

    fn repeat(&mut self, distance: usize, len: usize) -> Option<()> {
        let from = self.out.len().checked_sub(distance)?;
        if self.out.len() + len > self.limit {
            return None;
        }
        for at in from..from + len {
            self.out.push(self.out[at]);
        }
        Some(())
    }
}
