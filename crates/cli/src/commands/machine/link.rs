//! What the machine's supervisor asks of it, and is told.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bootyard_supervise::control::wire::{
    Command, Disk, Drive, ErrorBody, ErrorCode, Event, Medium, Network, Processor, ResetBy,
    Statistics, UnhandledExit,
};
use bootyard_supervise::control::{LinkEnd, serve_link};
use bootyard_vmm::sandbox::{self, Role};
use bootyard_vmm::virtio::BalloonControl;
use bootyard_vmm::{By, Control, Error, Notice, State, Stuck, scsi};
use serde_json::{Value, json};

use crate::args::MachineArgs;
use crate::error::Failure;
use bootyard_spec::Class;

/// A machine's control, and whom it tells.
pub(super) struct Linked {
    pub(super) control: Control,
    link: Arc<OnceLock<LinkEnd>>,
}

impl Linked {
    /// A control that tells nobody yet.
    pub(super) fn new() -> Self {
        let link = Arc::<OnceLock<LinkEnd>>::default();
        let end = Arc::clone(&link);
        let control = Control::observed(Box::new(move |notice| tell(&end, event(notice))));
        Self { control, link }
    }

    /// Serves the supervisor at the other end of `socket`, on threads of its own.
    /// `balloon` is the machine's, if it has one.
    pub(super) fn serve(
        &self,
        socket: UnixStream,
        args: &MachineArgs,
        balloon: Option<BalloonControl>,
    ) -> Result<(), Failure> {
        let machine = Reached {
            control: self.control.clone(),
            balloon,
            cdroms: super::drives::cdroms(args)?,
            drives: super::drives::names(args),
        };
        let threads =
            |name: &str, body| sandbox::spawn(Role::Control, name.to_owned(), body).map(drop);
        let execute = move |command, medium| machine.execute(&command, medium);
        let served = serve_link(socket, &threads, execute);
        let _ = self.link.set(served.map_err(|error| Failure::new(Class::Other, error))?);
        Ok(())
    }

    /// Takes the lines that a machine reports of its devices.
    pub(super) fn device_failures(&self) -> impl Fn(&str) + Send + Sync + use<> {
        let link = Arc::clone(&self.link);
        move |line| tell(&link, Event::DeviceFailure { message: line.to_owned() })
    }

    /// Tells where a processor stood that could not go on, if that is why the machine failed.
    pub(super) fn failed(&self, error: &Error) {
        if let Error::Stuck(stuck) = error {
            tell(&self.link, Event::UnhandledExit(unhandled_exit(stuck, error.hint())));
        }
    }
}

fn tell(link: &OnceLock<LinkEnd>, event: Event) {
    if let Some(link) = link.get() {
        link.tell(event);
    }
}

fn event(notice: Notice) -> Event {
    match notice {
        Notice::Paused => Event::Paused,
        Notice::Resumed => Event::Resumed,
        Notice::Reset(By::Guest) => Event::Reset { by: ResetBy::Guest },
        Notice::Reset(By::User) => Event::Reset { by: ResetBy::User },
    }
}

fn unhandled_exit(stuck: &Stuck, hint: Option<String>) -> UnhandledExit {
    let Stuck { cpu, reason, place } = stuck;
    UnhandledExit {
        processor: *cpu,
        reason: reason.clone(),
        rip: place.rip,
        privilege: place.privilege,
        mode: place.mode.map(|mode| mode.name().to_owned()),
        bytes: place.bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        instruction: place.instruction.map(str::to_owned),
        hint,
    }
}

/// What a supervisor reaches.
struct Reached {
    control: Control,
    cdroms: usize,
    /// What the machine calls its disks and CD-ROM drives, in the order of the command line.
    drives: Vec<String>,
    balloon: Option<BalloonControl>,
}

impl Reached {
    /// Does what `command` says; `image` is what is to be inserted.
    fn execute(&self, command: &Command, image: Option<OwnedFd>) -> Result<Value, ErrorBody> {
        match command {
            Command::Eject(Drive { drive }) => {
                self.cdrom(drive)?.eject(false).map_err(|error| went_wrong(&error))?;
                Ok(json!({}))
            }
            Command::Insert(Medium { drive, path }) => {
                let drive = self.cdrom(drive)?;
                let missing =
                    || ErrorBody::new(ErrorCode::Failed, "no image came with the request");
                let image = image.ok_or_else(missing)?;
                let medium = super::drives::read_medium(path.clone(), image);
                let medium = medium.map_err(Failure::into_body)?;
                drive.insert(medium).map_err(|error| went_wrong(&error))?;
                Ok(json!({}))
            }
            Command::Statistics(_) => Ok(json!(self.statistics())),
            command => execute(&self.control, self.balloon.as_ref(), command),
        }
    }

    /// The drive `cdrom0`, `cdrom1` and so on. They are the last ones on the bus.
    fn cdrom(&self, name: &str) -> Result<Arc<scsi::Drive>, ErrorBody> {
        let drives = self.control.drives();
        let first = drives.len().saturating_sub(self.cdroms);
        let number = name.strip_prefix("cdrom").and_then(|number| number.parse::<usize>().ok());
        let found = number.and_then(|number| drives[first..].get(number));
        found.map(|(_, drive)| Arc::clone(drive)).ok_or_else(|| {
            let message = match self.cdroms {
                0 => format!("there is no drive `{name}`; the machine has no CD-ROM drives"),
                1 => format!("there is no drive `{name}`; the machine has `cdrom0`"),
                count => {
                    format!("there is no drive `{name}`; they are `cdrom0` to `cdrom{}`", count - 1)
                }
            };
            ErrorBody::new(ErrorCode::NotSupported, message)
        })
    }
}

impl Reached {
    /// What the machine has done. Its drives have the names that they have on every engine.
    fn statistics(&self) -> Statistics {
        let balloon = self.balloon.as_ref().map(balloon_figures).unwrap_or_default();
        let mut told = statistics(&self.control.statistics());
        for disk in &mut told.disks {
            if let Some(index) = self.drives.iter().position(|name| *name == disk.name) {
                disk.name = format!("disk{index}");
            }
        }
        Statistics { balloon, ..told }
    }
}

fn went_wrong(error: &dyn std::error::Error) -> ErrorBody {
    ErrorBody::new(ErrorCode::Failed, error.to_string())
}

fn execute(
    control: &Control,
    balloon: Option<&BalloonControl>,
    command: &Command,
) -> Result<Value, ErrorBody> {
    let done = match command {
        Command::Pause => control.pause() != State::Ended,
        Command::Resume => control.resume() != State::Ended,
        Command::Reset => control.reset(),
        Command::PowerButton => control.press_power_button(),
        Command::Nmi => control.inject_nmi(),
        Command::Balloon(wish) if let Some(balloon) = balloon => {
            return set_balloon(balloon, wish.bytes);
        }
        Command::Stop => {
            control.stop();
            true
        }
        Command::Balloon(_) | Command::Eject(_) | Command::Insert(_) => {
            let what = "the machine has no such device";
            return Err(ErrorBody::new(ErrorCode::NotSupported, what));
        }
        Command::Status | Command::Statistics(_) | Command::Console(_) | Command::Events => {
            return Err(ErrorBody::new(ErrorCode::NotSupported, "the supervisor does that"));
        }
    };
    match done {
        true => Ok(json!({})),
        false => {
            Err(ErrorBody::new(ErrorCode::NotRunning, "the guest is just being started again"))
        }
    }
}

/// Wishes that the guest makes do with `bytes` of its memory.
fn set_balloon(balloon: &BalloonControl, bytes: u64) -> Result<Value, ErrorBody> {
    match balloon.memory().checked_sub(bytes) {
        Some(rest) => {
            balloon.set_target(rest);
            Ok(json!({}))
        }
        None => {
            let what = format!("the machine has {} bytes of memory", balloon.memory());
            Err(ErrorBody::new(ErrorCode::BadArguments, what))
        }
    }
}

/// How long a guest has to tell of its memory. One that is paused tells what it told last.
const BALLOON_PATIENCE: Duration = Duration::from_millis(100);

/// What is known of the guest's memory, by name. The size of the balloon is told as KubeVirt tells it:
/// the memory that the guest has left.
fn balloon_figures(balloon: &BalloonControl) -> BTreeMap<String, u64> {
    let told = balloon.figures(BALLOON_PATIENCE).unwrap_or_default();
    let ours = [
        ("actual_balloon_bytes", balloon.memory().saturating_sub(balloon.actual())),
        ("released_bytes", balloon.released_bytes()),
    ];
    told.iter().chain(ours).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn statistics(machine: &bootyard_vmm::statistics::Statistics) -> Statistics {
    let processors = machine.processors.iter().map(|processor| Processor {
        seconds: processor.time.map(|time| time.as_secs_f64()),
        exits: processor.exits.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
    });
    let disks = machine.disks.iter().map(|(name, disk)| Disk {
        name: name.clone(),
        read_bytes: disk.read_bytes,
        read_requests: disk.read_requests,
        written_bytes: disk.written_bytes,
        write_requests: disk.write_requests,
        flushes: disk.flushes,
        discards: disk.discards,
        errors: disk.errors,
    });
    let networks = machine.networks.iter().map(|(name, network)| Network {
        name: name.clone(),
        received_bytes: network.received_bytes,
        received_packets: network.received_packets,
        received_dropped: network.received_dropped,
        receive_errors: network.receive_errors,
        transmitted_bytes: network.transmitted_bytes,
        transmitted_packets: network.transmitted_packets,
        transmitted_dropped: network.transmitted_dropped,
        transmit_errors: network.transmit_errors,
    });
    Statistics {
        restarts: Some(machine.restarts),
        processors: processors.collect(),
        disks: disks.collect(),
        networks: networks.collect(),
        ..Statistics::default()
    }
}

#[cfg(test)]
mod tests {
    use bootyard_vmm::{CpuMode, Place};

    use super::*;

    #[test]
    fn what_stopped_a_processor_is_told_whole() {
        let place = Place {
            rip: Some(0xfff0),
            privilege: Some(3),
            mode: Some(CpuMode::Long),
            bytes: vec![0x0f, 0x0b],
            instruction: Some("ud"),
        };
        let stuck = Stuck { cpu: 1, reason: "why".to_owned(), place };
        let told = serde_json::to_value(unhandled_exit(&stuck, Some("hint".to_owned()))).unwrap();
        assert_eq!(
            told,
            json!({
                "processor": 1, "reason": "why", "rip": 0xfff0, "privilege": 3,
                "mode": "64-bit mode", "bytes": "0f0b", "instruction": "ud", "hint": "hint",
            })
        );
    }

    #[test]
    fn only_drives_that_are_there_are_opened() {
        let eject = |cdroms| {
            let (control, drives) = (Control::new(), Vec::new());
            let reached = Reached { control, balloon: None, cdroms, drives };
            let command = Command::Eject(Drive { drive: "cd".to_owned() });
            reached.execute(&command, None).unwrap_err().message
        };
        assert_eq!(eject(0), "there is no drive `cd`; the machine has no CD-ROM drives");
        assert_eq!(eject(1), "there is no drive `cd`; the machine has `cdrom0`");
        assert_eq!(eject(2), "there is no drive `cd`; they are `cdrom0` to `cdrom1`");
    }

    #[test]
    fn a_machine_that_has_not_begun_can_be_paused_and_no_more() {
        let control = Control::new();
        assert_eq!(execute(&control, None, &Command::Pause), Ok(json!({})));
        for command in [Command::Reset, Command::Nmi, Command::PowerButton] {
            assert_eq!(execute(&control, None, &command).unwrap_err().code, ErrorCode::NotRunning);
        }
        let drives = vec!["/a".to_owned(), "/b".to_owned()];
        control.counters().disk("/b").read_bytes.add(512);
        let reached = Reached { control, balloon: None, cdroms: 0, drives };
        let told = reached.execute(&Command::Statistics(None), None).unwrap();
        assert_eq!(told["disks"][0]["name"], "disk1");
        assert_eq!(told["disks"][0]["read_bytes"], 512);
    }
}
