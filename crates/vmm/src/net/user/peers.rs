//! Who sends to a forwarded UDP port, and which flow is theirs.

use std::collections::HashMap;
use std::net::SocketAddr;

use bootyard_usernet::SocketId;

/// How many peers are remembered before those are looked for whose flow has ended.
const REMEMBERED_MIN: usize = 256;

/// The flows of one forward.
#[derive(Debug, Default)]
pub(super) struct Peers {
    flows: HashMap<SocketAddr, SocketId>,
    sweep_at: usize,
}

impl Peers {
    pub(super) fn get(&self, peer: SocketAddr) -> Option<SocketId> {
        self.flows.get(&peer).copied()
    }

    /// Remembers a flow. There are never more than twice as many as are open.
    pub(super) fn insert(
        &mut self,
        peer: SocketAddr,
        id: SocketId,
        is_open: impl Fn(SocketId) -> bool,
    ) {
        self.flows.insert(peer, id);
        if self.flows.len() > self.sweep_at.max(REMEMBERED_MIN) {
            self.flows.retain(|_, id| is_open(*id));
            self.sweep_at = self.flows.len() * 2;
        }
    }
}
