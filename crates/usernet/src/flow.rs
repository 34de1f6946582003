//! Flows of datagrams: UDP between two ends, and echo requests to one host with their replies.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::wire::ETHERNET_HEADER_LEN;

use crate::frame::{Frame, Link, ip_payload_at, udp_payload_at};
use crate::icmp::{self, Echo};
use crate::{Config, Host, SocketId};

/// How long a flow is kept in which nothing happens (RFC 4787 §4.3 wants two minutes at least), and
/// one that asks a name server or for an echo.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(180);
pub(crate) const IDLE_MAX_SHORT: Duration = Duration::from_secs(30);

/// How many datagrams in a row may be none for the guest before others have their turn.
const ATTEMPTS_MAX: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Udp,
    /// The port of `guest` is the identifier of its requests.
    Ping,
}

/// Datagrams between the guest and one other end.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) id: SocketId,
    pub(crate) kind: Kind,
    /// The guest's end, and the other as the guest sees it.
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) is_readable: bool,
    pub(crate) used_at: Duration,
    /// `used_at` when it was last sorted in among the others.
    pub(crate) sorted_at: Duration,
    pub(crate) idle_max: Duration,
}

impl Flow {
    /// Receives the next datagram for the guest straight into a frame. What is too large for the guest
    /// is dropped, as on any link.
    pub(crate) fn emit(
        &mut self,
        config: &Config,
        link: &Link,
        buf: &mut [u8],
        host: &mut dyn Host,
        now: Duration,
    ) -> Option<Frame> {
        let payload_at = match self.kind {
            Kind::Udp => udp_payload_at(self.guest.ip()),
            Kind::Ping => ip_payload_at(self.guest.ip()),
        };
        let end = buf.len().min(usize::from(config.mtu) + ETHERNET_HEADER_LEN);
        for _ in 0..ATTEMPTS_MAX {
            if !self.is_readable {
                return None;
            }
            let space = buf.get_mut(payload_at..end)?;
            let room = space.len();
            match host.receive(self.id, space) {
                Ok(len) if len <= room => {
                    self.used_at = now;
                    if let Some(frame) = self.frame(config, link, buf, payload_at, len) {
                        return Some(frame);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
                // A refusal of an earlier datagram: there may be others behind it.
                Ok(_) | Err(_) => {}
            }
        }
        self.is_readable = false;
        None
    }

    fn frame(
        &self,
        config: &Config,
        link: &Link,
        buf: &mut [u8],
        payload_at: usize,
        len: usize,
    ) -> Option<Frame> {
        match self.kind {
            Kind::Udp => {
                Some(link.udp(buf, self.remote, self.guest, len, config.partial_checksums))
            }
            Kind::Ping => {
                let ends = (self.remote.ip(), self.guest.ip());
                let (sequence, data) = icmp::reply(ends.1, &buf[payload_at..payload_at + len])?;
                let echo = Echo { ident: self.guest.port(), sequence, data };
                let frame = icmp::reply_frame(link, ends, &echo);
                buf.get_mut(..frame.len())?.copy_from_slice(&frame);
                Some(Frame::whole(frame.len()))
            }
        }
    }
}
