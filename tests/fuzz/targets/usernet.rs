//! The user-mode network between a guest and a host that both do what bytes say.
//!
//! | Byte | What follows it                                        | What it does                       |
//! |------|--------------------------------------------------------|------------------------------------|
//! | 0    | length, bytes                                          | the guest sends them as a frame    |
//! | 1    | ports, flags, offsets of the numbers, window, length   | … a segment that nearly fits       |
//! | 2    | ports, length, bytes                                   | … a datagram                       |
//! | 3    | length, bytes                                          | … a message of ICMP                |
//! | 4    | socket, what for                                       | tells of a socket's edges          |
//! | 5    | how much is sent and received from now on              | changes the host's mind            |
//! | 6    | milliseconds                                           | lets time pass                     |
//! | 7    | port, peer                                             | somebody connects                  |
//! | 8    | room                                                   | takes a frame out                  |
#![no_main]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bootyard_usernet::{Close, Config, Host, Inbound, Ready, SocketId, Stack};

/// The longest script that is followed.
const STEPS_MAX: usize = 400;
const GUEST: [u8; 4] = [10, 0, 2, 2];
const GATEWAY: [u8; 4] = [10, 0, 2, 1];
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// Sockets that take and give as much as they are told.
#[derive(Default)]
struct Fickle {
    sends: u8,
    receives: u8,
    open: i64,
}

fn outcome(mood: u8, len: usize) -> io::Result<usize> {
    match mood {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        1 => Err(io::ErrorKind::ConnectionReset.into()),
        2 => Ok(0),
        mood => Ok(len.min(usize::from(mood) * 97)),
    }
}

impl Host for Fickle {
    fn open_tcp(&mut self, _: SocketId, to: SocketAddr) -> io::Result<()> {
        assert!(!to.ip().is_multicast(), "nobody listens there");
        self.open += 1;
        Ok(())
    }

    fn open_udp(&mut self, _: SocketId, _: SocketAddr) -> io::Result<()> {
        self.open += 1;
        Ok(())
    }

    fn open_ping(&mut self, _: SocketId, _: IpAddr) -> io::Result<()> {
        self.open += 1;
        Ok(())
    }

    fn send(&mut self, _: SocketId, data: &[u8]) -> io::Result<usize> {
        // Sockets that take nothing say that they would block.
        outcome(self.sends.max(u8::from(self.sends == 2) * 3), data.len())
    }

    fn receive(&mut self, _: SocketId, buf: &mut [u8]) -> io::Result<usize> {
        let received = outcome(self.receives, buf.len());
        if self.receives > 2 {
            // Each call gives less, until there is nothing.
            self.receives = (self.receives - 1).max(3);
            if self.receives == 3 {
                self.receives = 0;
            }
        }
        received
    }

    fn shut_down(&mut self, _: SocketId) {}

    fn close(&mut self, _: SocketId, _: Close) {
        self.open -= 1;
    }
}

struct Script<'i>(&'i [u8]);

impl<'i> Script<'i> {
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn take(&mut self, len: usize) -> &'i [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A frame of the guest: over IPv4 to the gateway or beyond, or over IPv6.
fn frame(way: u8, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9];
    if way & 1 == 0 {
        frame.extend([8, 0]);
        let len = (20 + body.len()) as u16;
        let mut header = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, protocol, 0, 0];
        header.extend(GUEST);
        header.extend(if way & 2 == 0 { GATEWAY } else { [198, 51, 100, way] });
        let sum = header.chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(p[1])).sum::<u32>();
        let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
    } else {
        let protocol = if protocol == ICMP { ICMP6 } else { protocol };
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((body.len() as u16).to_be_bytes());
        frame.extend([protocol, 255, 0xfd, 0x10, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        frame.extend([0xfd, 0x10, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, way >> 1 | 1]);
    }
    frame.extend(body);
    frame
}

/// What the guest has heard of the stack's last segment: the number that it expects next.
fn expected(frame: &[u8]) -> Option<u32> {
    let at = match frame.get(12..14)? {
        [8, 0] if frame.get(23) == Some(&TCP) => 34,
        [0x86, 0xdd] if frame.get(20) == Some(&TCP) => 54,
        _ => return None,
    };
    let number = u32::from_be_bytes(frame.get(at + 4..at + 8)?.try_into().ok()?);
    let header = usize::from(frame.get(at + 12)? >> 4) * 4;
    let flags = frame.get(at + 13)?;
    let len = frame.len() - at - header + usize::from(flags & 1) + usize::from(flags >> 1 & 1);
    Some(number.wrapping_add(len as u32))
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let mut script = Script(input);
    let features = script.byte();
    let config = Config {
        resolvers: vec!["127.0.0.1:53".parse().expect("an address")],
        partial_checksums: features & 1 != 0,
        large_segments: features & 2 != 0,
        large_segments6: features & 4 != 0,
        mtu: if features & 8 == 0 { 1500 } else { 65520 },
        ..Config::new([2, 0, 0, 0, 0, 9])
    };
    let (mut stack, mut host) = (Stack::new(config), Fickle::default());
    let (mut now, mut sequence, mut acknowledged) = (Duration::ZERO, 1000_u32, 0_u32);
    let mut accepted = 0;
    let mut buf = vec![0; 66_000];
    for _ in 0..STEPS_MAX {
        if script.0.is_empty() {
            break;
        }
        match script.byte() % 9 {
            0 => {
                let len = script.byte();
                stack.guest_frame(script.take(len.into()), &mut host, now);
            }
            1 => {
                let (way, port, flags) = (script.byte(), script.byte() % 4, script.byte());
                let (ahead, behind) = (script.byte() as i8, script.byte() as i8);
                let (window, len) = (script.byte(), usize::from(script.byte()) * 16);
                let mut body = vec![0x9c, 0x40 | port, 0, 80 + (way >> 4)];
                body.extend(sequence.wrapping_add_signed(ahead.into()).to_be_bytes());
                body.extend(acknowledged.wrapping_add_signed(behind.into()).to_be_bytes());
                let is_syn = flags & 2 != 0;
                body.extend([
                    if is_syn { 0x70 } else { 0x50 },
                    flags & 0x17,
                    window,
                    0,
                    0,
                    0,
                    0,
                    0,
                ]);
                if is_syn {
                    body.extend([2, 4, 5, 0xb4, 3, 3, window & 15, 0]);
                }
                body.resize(body.len() + len, way);
                stack.guest_frame(&frame(way, TCP, &body), &mut host, now);
                if ahead == 0 {
                    let ends = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                    sequence = sequence.wrapping_add(len as u32 + ends);
                }
            }
            2 => {
                let (way, port, to, len) =
                    (script.byte(), script.byte(), script.byte(), script.byte());
                let payload = script.take(len.into());
                let to = [53, 67, 547, 123, 4000][usize::from(to) % 5] as u16;
                let mut body = vec![0x9c, port];
                body.extend(to.to_be_bytes());
                body.extend((8 + payload.len() as u16).to_be_bytes());
                body.extend([0, 0]);
                body.extend(payload);
                stack.guest_frame(&frame(way, UDP, &body), &mut host, now);
            }
            3 => {
                let (way, len) = (script.byte(), script.byte());
                stack.guest_frame(&frame(way, ICMP, script.take(len.into())), &mut host, now);
            }
            4 => {
                let (id, what) = (script.byte(), script.byte());
                let ready = Ready {
                    readable: what & 1 != 0,
                    writable: what & 2 != 0,
                    failed: what & 12 == 12,
                };
                stack.socket_event(SocketId(id.into()), ready, &mut host);
            }
            5 => (host.sends, host.receives) = (script.byte(), script.byte()),
            6 => {
                now += Duration::from_millis(u64::from(script.byte()) * 64);
                stack.tick(&mut host, now);
                assert!(stack.deadline().is_none_or(|at| at > now), "time stands still");
            }
            7 => {
                let (port, peer) = (script.byte(), script.byte());
                let kind = if port & 1 == 0 { Inbound::Tcp } else { Inbound::Udp };
                accepted += 2;
                let from = SocketAddr::from(([192, 0, 2, 1], 1000 + u16::from(peer % 3)));
                if stack.inbound(kind, SocketId(accepted), from, port.into(), now) {
                    host.open += 1;
                }
            }
            _ => {
                let room = [0, 60, 600, 1514, 66_000][usize::from(script.byte()) % 5];
                if let Some(frame) = stack.frame(&mut buf[..room], &mut host, now) {
                    assert!(frame.len <= room, "a frame that is larger than its room");
                    acknowledged = expected(&buf[..frame.len]).unwrap_or(acknowledged);
                }
            }
        }
        assert!(host.open >= 0, "a socket was closed twice");
    }
});
