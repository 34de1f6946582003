//! Our commands as QEMU's (docs/interop/qemu-qmp-ref).

use std::collections::BTreeMap;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bootyard_spec::RebootPolicy;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::LaunchPlan;
use crate::control::wire::{
    Command, Disk, Drive, ErrorBody, ErrorCode, Event, Medium, Processor, Statistics,
};
use crate::control::{Calls, EventSink, OpenMedium, Remote, unanswered};

/// What QEMU answers.
pub(super) type Answer = Result<Value, Refusal>;

/// Why QEMU did not.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    class: String,
    desc: String,
}

/// How long a BIOS may take to reset once more. It does so within a tenth of a second, or in software
/// within one.
const BIOS_RESET_MAX: Duration = Duration::from_secs(3);
/// How long after a reset none follows if the BIOS was content with it. SeaBIOS asks for its own in two
/// ways at once, and the second may count again when the first is done.
const BIOS_SETTLED: Duration = Duration::from_secs(1);

/// A running QEMU.
#[derive(Debug)]
pub(super) struct QemuRemote {
    calls: Calls<Answer>,
    events: EventSink,
    reboot_policy: RebootPolicy,
    guest_resets: (Mutex<u64>, Condvar),
    /// Whether the guest was reset while it was paused, so that the BIOS has yet to run. Held while it runs.
    reset_while_paused: Mutex<bool>,
    /// Bytes that the guest may keep at most.
    memory: u64,
    open_medium: OpenMedium,
    /// What was put into drives, by their names. Open, because open it stays locked.
    media: Mutex<BTreeMap<String, OwnedFd>>,
}

impl QemuRemote {
    pub(super) fn new(stream: UnixStream, plan: &LaunchPlan, open_medium: OpenMedium) -> Self {
        let events = EventSink::default();
        if plan.start_paused {
            // QEMU says so of every pause but the first.
            events.send(Event::Paused);
        }
        Self {
            calls: Calls::new(stream),
            events,
            reboot_policy: plan.reboot_policy,
            guest_resets: (Mutex::default(), Condvar::new()),
            reset_while_paused: Mutex::default(),
            memory: plan.memory.bytes(),
            open_medium,
            media: Mutex::default(),
        }
    }

    pub(super) fn answer(&self, id: u64, answer: Answer) {
        self.calls.answer(id, answer);
    }

    pub(super) fn close(&self) {
        self.calls.close();
    }

    fn ask(&self, command: &str, arguments: &Value) -> Result<Value, ErrorBody> {
        let question = |id| {
            let mut object = json!({ "execute": command, "id": id });
            if !arguments.is_null() {
                object["arguments"] = arguments.clone();
            }
            format!("{object}\n").into_bytes()
        };
        let answer = self.calls.call(question).map_err(unanswered)?;
        answer.map_err(|Refusal { class, desc }| {
            let code = match class.as_str() {
                "DeviceNotActive" | "CommandNotFound" => ErrorCode::NotSupported,
                _ => ErrorCode::Failed,
            };
            ErrorBody::new(code, format!("qemu: {desc}"))
        })
    }

    fn tell(&self, command: &str, arguments: &Value) -> Result<Value, ErrorBody> {
        self.ask(command, arguments).map(|_| json!({}))
    }

    /// The guest has begun again, as far as QEMU tells.
    pub(super) fn guest_was_reset(&self) {
        *self.guest_resets.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.guest_resets.1.notify_all();
    }

    /// The reset button works however the guest may restart, for which QEMU has one setting. A BIOS that
    /// finds itself run before resets once more by itself, which is no restart of the guest.
    fn reset(&self) -> Result<Value, ErrorBody> {
        if self.reboot_policy == RebootPolicy::Reboot {
            return self.tell("system_reset", &Value::Null);
        }
        let mut while_paused = self.reset_while_paused();
        let before = self.guest_resets();
        self.let_guest_reset("reset")?;
        let reset = self.tell("system_reset", &Value::Null);
        if self.ask("query-status", &Value::Null)?["running"] == json!(false) {
            *while_paused = true;
            return reset;
        }
        self.settle(before)?;
        reset
    }

    fn resume(&self) -> Result<Value, ErrorBody> {
        let mut reset_while_paused = self.reset_while_paused();
        let before = self.guest_resets();
        let resumed = self.tell("cont", &Value::Null)?;
        if mem::take(&mut *reset_while_paused) {
            self.settle(before)?;
        }
        Ok(resumed)
    }

    /// Waits until the BIOS has reset as often as it likes since there were `before` resets. From then on the
    /// guest may not restart.
    fn settle(&self, before: u64) -> Result<(), ErrorBody> {
        let (mut last, mut patience) = (before, BIOS_RESET_MAX);
        loop {
            let resets = self.guest_resets.0.lock().unwrap_or_else(PoisonError::into_inner);
            let none = |now: &mut u64| *now == last;
            let waited = self.guest_resets.1.wait_timeout_while(resets, patience, none);
            let (resets, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            if waited.timed_out() {
                break;
            }
            (last, patience) = (*resets, BIOS_SETTLED);
        }
        self.let_guest_reset("shutdown")
    }

    fn let_guest_reset(&self, action: &str) -> Result<(), ErrorBody> {
        self.ask("set-action", &json!({ "reboot": action })).map(drop)
    }

    fn reset_while_paused(&self) -> MutexGuard<'_, bool> {
        self.reset_while_paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guest_resets(&self) -> u64 {
        *self.guest_resets.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn eject(&self, Drive { drive }: &Drive) -> Result<Value, ErrorBody> {
        let mut media = self.media.lock().unwrap_or_else(PoisonError::into_inner);
        let ejected = self.tell("eject", &json!({ "id": drive }))?;
        media.remove(drive);
        Ok(ejected)
    }

    /// QEMU opens it once more, with locks of its own kind, which keep out other QEMUs only.
    fn insert(&self, Medium { drive, path }: &Medium) -> Result<Value, ErrorBody> {
        let mut media = self.media.lock().unwrap_or_else(PoisonError::into_inner);
        let medium = (self.open_medium)(path)?;
        // By its name, as every disk's.
        let is_qcow2 = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("qcow2"));
        let arguments = json!({
            "id": drive,
            "filename": path,
            "format": if is_qcow2 { "qcow2" } else { "raw" },
            "read-only-mode": "read-only",
        });
        let inserted = self.tell("blockdev-change-medium", &arguments)?;
        media.insert(drive.clone(), medium);
        Ok(inserted)
    }

    fn statistics(&self) -> Result<Statistics, ErrorBody> {
        let disks = self.ask("query-blockstats", &Value::Null)?;
        let processors = self.ask("query-cpus-fast", &Value::Null)?;
        // Fails where there is no balloon.
        let balloon = self.ask("query-balloon", &Value::Null).ok();
        let actual = balloon.and_then(|balloon| balloon["actual"].as_u64());
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        Ok(Statistics {
            balloon: actual
                .map(|bytes| ("actual_balloon_bytes".to_owned(), bytes))
                .into_iter()
                .collect(),
            processors: list(&processors).iter().map(processor).collect(),
            disks: list(&disks).iter().map(disk).collect(),
            ..Statistics::default()
        })
    }
}

impl Remote for QemuRemote {
    fn execute(&self, command: &Command) -> Result<Value, ErrorBody> {
        match command {
            Command::Pause => self.tell("stop", &Value::Null),
            Command::Resume => self.resume(),
            Command::Reset => self.reset(),
            Command::PowerButton => self.tell("system_powerdown", &Value::Null),
            Command::Nmi => self.tell("inject-nmi", &Value::Null),
            Command::Eject(drive) => self.eject(drive),
            Command::Insert(medium) => self.insert(medium),
            Command::Balloon(balloon) if balloon.bytes > self.memory => {
                let message = format!("the machine has {} bytes of memory", self.memory);
                Err(ErrorBody::new(ErrorCode::BadArguments, message))
            }
            Command::Balloon(balloon) => self.tell("balloon", &json!({ "value": balloon.bytes })),
            Command::Statistics(_) => self.statistics().map(|statistics| json!(statistics)),
            Command::Stop => self.tell("quit", &Value::Null),
            Command::Status | Command::Console(_) | Command::Events => {
                Err(ErrorBody::new(ErrorCode::NotSupported, "the supervisor does that"))
            }
        }
    }

    fn events(&self) -> &EventSink {
        &self.events
    }
}

/// An element of `query-cpus-fast`. QEMU's threads are as visible as its process.
fn processor(told: &Value) -> Processor {
    let thread = told["thread-id"].as_u64();
    let account =
        thread.and_then(|id| fs_err::read_to_string(format!("/proc/{id}/schedstat")).ok());
    let nanoseconds = account.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let seconds = nanoseconds.map(|nanoseconds| nanoseconds as f64 / 1e9);
    Processor { seconds, exits: BTreeMap::new() }
}

/// An element of `query-blockstats`.
fn disk(told: &Value) -> Disk {
    let count = |name: &str| told["stats"][name].as_u64().unwrap_or_default();
    let failed = [
        "failed_rd_operations",
        "failed_wr_operations",
        "failed_flush_operations",
        "failed_unmap_operations",
    ];
    Disk {
        name: told["device"].as_str().unwrap_or_default().to_owned(),
        read_bytes: count("rd_bytes"),
        read_requests: count("rd_operations"),
        written_bytes: count("wr_bytes"),
        write_requests: count("wr_operations"),
        flushes: count("flush_operations"),
        discards: count("unmap_operations"),
        errors: failed.iter().map(|name| count(name)).sum(),
    }
}
