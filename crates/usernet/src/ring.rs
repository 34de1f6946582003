//! Bytes between two speeds: a ring that grows up to a limit, and is read into and sent out of without
//! another copy.

/// The first size of a ring that holds something.
const CAPACITY_MIN: usize = 16 << 10;

/// A queue of bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    limit: usize,
}

impl Ring {
    /// An empty ring that never holds more than `limit` bytes.
    pub(crate) const fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, len: 0, limit }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes still fit.
    pub(crate) const fn room(&self) -> usize {
        self.limit.saturating_sub(self.len)
    }

    /// How many bytes it may hold.
    pub(crate) const fn limit(&self) -> usize {
        self.limit
    }

    /// How many bytes it may hold from now on. What it holds it keeps, and memory beyond the limit that
    /// holds nothing is given back.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        if self.len <= limit && limit < self.bytes.len() {
            self.resize(limit);
        }
    }

    /// Bytes of memory that it has.
    pub(crate) const fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Gives its memory back, if it holds nothing.
    pub(crate) fn shed(&mut self) {
        if self.is_empty() {
            (self.bytes, self.start) = (Vec::new(), 0);
        }
    }

    /// Room for bytes behind the last, at least one byte unless the ring is at its limit; what was
    /// written there counts after [`Ring::commit`].
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.len == self.bytes.len() && self.len < self.limit {
            self.grow();
        }
        let capacity = self.bytes.len();
        let end = self.start + self.len;
        match end < capacity {
            true => &mut self.bytes[end..],
            false => &mut self.bytes[end - capacity..self.start],
        }
    }

    /// Counts `len` bytes of [`Ring::space`].
    pub(crate) fn commit(&mut self, len: usize) {
        self.len = (self.len + len).min(self.bytes.len());
    }

    /// Adds as much of `data` as fits; tells how much that is.
    pub(crate) fn push(&mut self, data: &[u8]) -> usize {
        let mut rest = &data[..data.len().min(self.room())];
        let taken = rest.len();
        while !rest.is_empty() {
            let space = self.space();
            let len = space.len().min(rest.len());
            space[..len].copy_from_slice(&rest[..len]);
            self.commit(len);
            rest = &rest[len..];
        }
        taken
    }

    /// The first bytes: as many as are beside one another.
    pub(crate) fn front(&self) -> &[u8] {
        let end = (self.start + self.len).min(self.bytes.len());
        &self.bytes[self.start..end]
    }

    /// Drops the first `len` bytes.
    pub(crate) fn consume(&mut self, len: usize) {
        let len = len.min(self.len);
        self.len -= len;
        self.start = match self.len {
            0 => 0,
            _ => (self.start + len) % self.bytes.len(),
        };
    }

    /// Copies bytes from `offset` on into all of `out`. There are as many.
    pub(crate) fn copy(&self, offset: usize, out: &mut [u8]) {
        let capacity = self.bytes.len().max(1);
        let first = (self.start + offset) % capacity;
        let beside = out.len().min(self.bytes.len() - first.min(self.bytes.len()));
        let (head, tail) = out.split_at_mut(beside);
        head.copy_from_slice(&self.bytes[first..first + beside]);
        let tail_len = tail.len();
        tail.copy_from_slice(&self.bytes[..tail_len]);
    }

    fn grow(&mut self) {
        self.resize((self.bytes.len() * 2).clamp(CAPACITY_MIN.min(self.limit), self.limit));
    }

    fn resize(&mut self, capacity: usize) {
        let mut bytes = vec![0; capacity];
        self.copy(0, &mut bytes[..self.len]);
        (self.bytes, self.start) = (bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_ring_is_a_queue_with_a_limit() {
        let mut ring = Ring::new(40_000);
        assert_eq!(ring.push(&[1; 50_000]), 40_000);
        assert_eq!((ring.room(), ring.space().len()), (0, 0));
        ring.consume(39_000);
        assert_eq!(ring.push(&[2; 20_000]), 20_000);
        let mut out = [0; 2000];
        ring.copy(0, &mut out);
        assert_eq!((&out[..1000], &out[1000..]), (&[1; 1000][..], &[2; 1000][..]));
        ring.set_limit(30_000);
        assert_eq!((ring.len(), ring.capacity()), (21_000, 30_000));
        ring.copy(0, &mut out);
        assert_eq!((&out[..1000], &out[1000..]), (&[1; 1000][..], &[2; 1000][..]));
        ring.set_limit(20_000);
        assert_eq!((ring.len(), ring.room(), ring.capacity()), (21_000, 0, 30_000));
        ring.consume(usize::MAX);
        assert!(ring.is_empty() && ring.front().is_empty());
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(steps in prop::collection::vec((0..60_000_usize, 0..60_000_usize), 1..30)) {
            let (mut ring, mut model) = (Ring::new(100_000), VecDeque::new());
            let mut next = 0_u8;
            for (put, take) in steps {
                let data: Vec<u8> = (0..put).map(|_| { next = next.wrapping_add(1); next }).collect();
                let taken = ring.push(&data);
                prop_assert_eq!(taken, put.min(100_000 - model.len()));
                model.extend(&data[..taken]);
                let offset = take.min(model.len());
                let mut out = vec![0; model.len() - offset];
                ring.copy(offset, &mut out);
                prop_assert!(out.iter().eq(model.range(offset..)));
                prop_assert!(model.range(..).zip(ring.front()).all(|(a, b)| a == b));
                ring.consume(take);
                model.drain(..offset);
                prop_assert_eq!(ring.len(), model.len());
            }
        }
    }
}
