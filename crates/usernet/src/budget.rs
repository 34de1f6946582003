//! The memory of all connections' bytes: each has its share of it, and what is held is counted, since
//! who came early may hold more than what is left for those who come later.

/// Most connections at a time. One beyond is refused.
pub(crate) const CONNECTIONS_MAX: usize = 4096;

/// Bytes that all connections together hold of one direction.
pub(crate) const BUFFERS_MAX: usize = 64 << 20;

/// What each connection may hold whatever the others do, so that all go on.
pub(crate) const BUFFER_MIN: usize = 4 << 10;

/// What is left to be shared.
const POOL: usize = BUFFERS_MAX - CONNECTIONS_MAX * BUFFER_MIN;

/// Bytes of memory, in use or not: for the guest, and from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) to_guest: usize,
    pub(crate) from_guest: usize,
}

/// What all connections hold.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    total: Held,
}

impl Budget {
    /// How much one of so many connections, which holds `own`, may hold.
    pub(crate) fn limit(&self, own: Held, connections: usize) -> Held {
        // A power of two, so that it does not change with every connection that comes or goes.
        let share = 1 << (POOL / connections.max(1)).max(BUFFER_MIN).ilog2();
        let limit =
            |own: usize, total: usize| share.min(own + POOL.saturating_sub(total)).max(BUFFER_MIN);
        Held {
            to_guest: limit(own.to_guest, self.total.to_guest),
            from_guest: limit(own.from_guest, self.total.from_guest),
        }
    }

    /// A connection that held `before` holds `after` now.
    pub(crate) fn count(&mut self, before: Held, after: Held) {
        self.total.to_guest = self.total.to_guest - before.to_guest + after.to_guest;
        self.total.from_guest = self.total.from_guest - before.from_guest + after.from_guest;
    }

    #[cfg(test)]
    pub(crate) fn total(&self) -> Held {
        self.total
    }
}
