//! The console device (§5.3) with several ports: one may be a console (`hvc0`), and the others are
//! channels with names, over which programs in the guest and on the host talk
//! (`/dev/virtio-ports/org.qemu.guest_agent.0`).
//!
//! ```text
//!   receiveq ◄── Port ◄── client of the UNIX socket      control receiveq ◄── ports, names, sizes,
//!   transmitq ──►     ──►                                                     who has come and gone
//!                                                        control transmitq ──► ready, open, closed
//! ```
//!
//! Nothing is kept between the two ends: input is read when somebody in the guest has opened the port
//! and there is room for it, output is taken when the client takes it. A client that ends its input
//! still gets its output.

mod end;
mod port;

use std::io::{Read, Write};
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::epoll::EventSet;

use super::{DeviceConfig, Error, Session, VirtioDevice, Wake};
use port::{Port, receive_queue, transmit_queue};

pub use end::{HostEnd, Size};

/// Features (§5.3.3).
const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;

/// The virtqueues of control messages.
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
const QUEUE_SIZE: u16 = 64;

/// The most channels besides the console: each takes two interrupt vectors of 64.
pub const CHANNELS_MAX: usize = 15;

/// The configuration structure (§5.3.4): columns, rows, number of ports, emergency write.
const CONFIG_SIZE: usize = 12;
const PORTS: usize = 4;

/// Events of control messages (§5.3.6.2).
const DEVICE_READY: u16 = 0;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
/// Bytes of a control message without what may follow it.
const MESSAGE: usize = 8;

/// Session tokens: four for each port.
const LISTENER: u32 = 0;
const CLIENT: u32 = 1;
const RESIZED: u32 = 2;
const TOKENS: u32 = 4;

/// How long a host without descriptors is left alone before the next client is tried.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// A channel of the console device.
#[derive(Debug, Clone)]
pub struct Channel {
    /// What it is called in the guest, such as `org.qemu.guest_agent.0`.
    pub name: String,
    /// Where it ends on the host.
    pub end: HostEnd,
}

/// The console device.
#[derive(Debug)]
pub struct Console {
    console: Option<HostEnd>,
    channels: Vec<Channel>,
    config: DeviceConfig,
    queue_sizes: Vec<u16>,
}

impl Console {
    /// A device with a console or without, and with at most [`CHANNELS_MAX`] channels; others are left
    /// out.
    pub fn new(console: Option<HostEnd>, mut channels: Vec<Channel>) -> Self {
        channels.truncate(CHANNELS_MAX);
        // The first port is the console's, there or not: a driver that knows one port takes it for one.
        let ports = 1 + channels.len();
        let mut config = vec![0; CONFIG_SIZE];
        config[PORTS] = u8::try_from(ports).expect("at most CHANNELS_MAX + 1");
        let queue_sizes = vec![QUEUE_SIZE; 2 * ports + 2];
        Self { console, channels, config: DeviceConfig::new(config), queue_sizes }
    }

    fn ports(&self) -> Vec<Port> {
        let console = self.console.iter().map(|end| Port::new(0, None, end.clone()));
        let channels = (1..).zip(&self.channels);
        let channels = channels
            .map(|(id, channel)| Port::new(id, Some(channel.name.clone()), channel.end.clone()));
        console.chain(channels).collect()
    }

    /// Writes the console's size to where a driver of one port reads it.
    fn show_size(&self) {
        if let Some(size) = self.console.as_ref().and_then(HostEnd::size) {
            let bytes = [size.columns.to_le_bytes(), size.rows.to_le_bytes()].concat();
            self.config.update(|config| config[..PORTS].copy_from_slice(&bytes));
        }
    }

    fn serve(&self, ports: &mut [Port], session: &mut Session) -> Result<(), Error> {
        let multiport = session.features() & F_MULTIPORT != 0;
        if !multiport {
            ports.iter_mut().filter(|port| port.id() == 0).for_each(Port::open_at_once);
        }
        self.show_size();
        for (token, port) in (0..).step_by(TOKENS as usize).zip(ports.iter()) {
            session.watch(port.end().resized(), token + RESIZED, EventSet::IN)?;
        }
        let mut wakes = Vec::new();
        let mut retry = None;
        while session.wait(retry, &mut wakes)? {
            let mut out_of_descriptors = false;
            for wake in &wakes {
                match *wake {
                    Wake::Queue(CONTROL_TRANSMIT) => listen(ports, session)?,
                    Wake::Queue(index) => {
                        for port in ports.iter_mut() {
                            if index == receive_queue(port.id()) {
                                port.room_for_input(session)?;
                            } else if index == transmit_queue(port.id()) {
                                port.pump_out(session)?;
                            }
                        }
                    }
                    Wake::Ready { token, events } => {
                        let Some(port) = ports.get_mut((token / TOKENS) as usize) else { continue };
                        match token % TOKENS {
                            LISTENER => out_of_descriptors |= !port.accept(),
                            CLIENT => port.client_ready(events, session)?,
                            _ => {
                                // Resets the event. Fails only where it was reset already.
                                let _ = port.end().resized().read();
                                port.tell_size();
                                self.show_size();
                            }
                        }
                    }
                }
            }
            retry = out_of_descriptors.then_some(ACCEPT_RETRY);
            for (token, port) in (0..).step_by(TOKENS as usize).zip(ports.iter_mut()) {
                port.watch(session, [token + LISTENER, token + CLIENT])?;
                if out_of_descriptors {
                    port.stop_listening(session)?;
                }
            }
            if multiport {
                tell(ports, session)?;
            }
        }
        Ok(())
    }
}

/// Takes the driver's control messages.
fn listen(ports: &mut [Port], session: &mut Session) -> Result<(), Error> {
    session.drain(CONTROL_TRANSMIT, |_, request| {
        let mut message = [0; MESSAGE];
        if request.read_exact(&mut message).is_err() {
            return Err(Error::Malformed("a control message is cut off"));
        }
        let half = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
        let id = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        let (event, value) = (half(4), half(6));
        let port = ports.iter_mut().find(|port| u32::from(port.id()) == id);
        match (event, value, port) {
            (DEVICE_READY, 1, _) => ports.iter_mut().for_each(Port::announce),
            (PORT_READY, 1, Some(port)) => port.make_ready(),
            (PORT_OPEN, open, Some(port)) => port.set_guest_open(open != 0),
            // What a driver could not do, ports that there are not, and events of the future.
            _ => {}
        }
        Ok(0)
    })
}

/// Sends the driver what it is yet to be told, as far as it has room for it.
fn tell(ports: &mut [Port], session: &mut Session) -> Result<(), Error> {
    let memory = session.memory();
    let Some(queue) = session.queue(CONTROL_RECEIVE) else { return Ok(()) };
    for port in ports {
        while let Some(message) = port.message() {
            let Some(mut request) = queue.next(&memory)? else {
                if queue.enable_notification(&memory)? {
                    continue;
                }
                return Ok(());
            };
            if request.writable() < message.len() {
                return Err(Error::Malformed("no room for a control message"));
            }
            request.write_all(&message)?;
            queue.complete(&memory, request.head(), request.written())?;
            port.told();
        }
    }
    Ok(())
}

impl VirtioDevice for Console {
    fn kind(&self) -> u16 {
        VIRTIO_ID_CONSOLE as u16
    }

    fn features(&self) -> u64 {
        F_MULTIPORT | if self.console.is_some() { F_SIZE } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> DeviceConfig {
        self.config.clone()
    }

    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let mut ports = self.ports();
        let served = self.serve(&mut ports, session);
        ports.into_iter().for_each(Port::end_session);
        served
    }
}
