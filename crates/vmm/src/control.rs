//! Reaching into a running machine from other threads. What is allowed when, [`crate::state`] says;
//! this is the layer that acts on it.
//!
//! Whoever pauses closes the gate and kicks those processors out of the guest that are in it, again and
//! again until none is. A processor that waits in a device (a console that nobody reads) is not in the
//! guest and need not come back for that: it finds the gate closed when it does.

use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::EventFd;

use crate::config::MachineConfig;
use crate::disks::Drives;
use crate::error::Error;
use crate::exit::{Exit, ExitLatch};
use crate::gate::Gate;
use crate::hv::{Crew, KICK_EVERY};
use crate::legacy::SerialPort;
use crate::sandbox::{self, Role};
use crate::scsi::Drive;
use crate::state::{By, Event, Notice, State};
use crate::statistics::{Counters, Statistics};

/// Is told what observers of a machine hear. Called on any thread and with the machine's lock held: it
/// hands the notice on and returns.
pub type Observer = Box<dyn Fn(Notice) + Send + Sync>;

/// Reaches into a running machine from other threads. Clones reach the same machine.
#[derive(Debug, Clone, Default)]
pub struct Control {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    /// The state changed.
    moved: Condvar,
    gate: Arc<Gate>,
    stopped: AtomicBool,
    reset_by_user: AtomicBool,
    restarts: AtomicU64,
    counters: Counters,
    drives: Drives,
    observer: Option<Observer>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    running: Option<Running>,
}

/// What [`Control`] reaches of a started machine.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) exit: Arc<ExitLatch>,
    pub(crate) button: EventFd,
    pub(crate) serial: Arc<SerialPort>,
    pub(crate) crew: Arc<Crew>,
}

impl Control {
    /// A control that no machine runs under yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, and `observer` hears what happens.
    pub fn observed(observer: Observer) -> Self {
        let shared = Shared { observer: Some(observer), ..Shared::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Ends the machine at once, as if its plug were pulled. Also one that has not begun.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.with_running(|running| running.exit.post(Ok(Exit::Stopped)));
    }

    /// Presses the power button, which asks the guest to shut down. Tells whether there is a
    /// machine to hear it.
    pub fn press_power_button(&self) -> bool {
        self.with_running(|running| running.button.write(1).is_ok()).unwrap_or(false)
    }

    /// Presses the reset button: the guest starts again from nothing, whatever the configuration says of
    /// restarts that the guest wants. A machine that is paused stays so. Tells whether there is a machine
    /// to hear it.
    pub fn reset(&self) -> bool {
        self.with_running(|running| {
            self.shared.reset_by_user.store(true, Ordering::SeqCst);
            running.exit.post(Ok(Exit::Reset));
        })
        .is_some()
    }

    /// Stops the processors, and returns when none of them is in the guest: [`State::Paused`], or the
    /// other state that the machine has come to. One that has not begun begins paused.
    pub fn pause(&self) -> State {
        let mut inner = self.lock();
        self.apply(&mut inner, Event::Pause);
        while inner.state == State::Pausing {
            let busy = inner.running.as_ref().is_some_and(|running| running.crew.kick_out());
            if !busy {
                self.apply(&mut inner, Event::Parked);
                break;
            }
            let waited = self.shared.moved.wait_timeout(inner, KICK_EVERY);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.state
    }

    /// Lets the processors go on, and returns the state that the machine has come to. The guest is told
    /// that it stood still, so that its watchdogs do not bark.
    pub fn resume(&self) -> State {
        let mut inner = self.lock();
        self.apply(&mut inner, Event::Resume);
        inner.state
    }

    /// Sends the first processor a non-maskable interrupt, to which Linux answers as its
    /// `unknown_nmi_panic` says. One that is paused gets it when it goes on. Tells whether there is a
    /// machine to hear it.
    pub fn inject_nmi(&self) -> bool {
        match self.with_running(|running| Arc::clone(&running.crew)) {
            Some(crew) => {
                crew.inject_nmi();
                true
            }
            None => false,
        }
    }

    /// Where the machine is.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// What the machine has done so far.
    pub fn statistics(&self) -> Statistics {
        Statistics {
            processors: self.with_running(|running| running.crew.statistics()).unwrap_or_default(),
            disks: self.counters().read_disks(),
            networks: self.counters().read_networks(),
            restarts: self.shared.restarts.load(Ordering::Relaxed),
        }
    }

    /// The counters that the machine's devices count with.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// The drives of the machine's SCSI bus by their names, once it has started: disks, and CD-ROM drives,
    /// whose media can be changed.
    pub fn drives(&self) -> Vec<(String, Arc<Drive>)> {
        self.shared.drives.all()
    }

    pub(crate) fn make_drives(&self, config: &MachineConfig) -> Result<Vec<Arc<Drive>>, Error> {
        self.shared.drives.make(config, self)
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.shared.gate
    }

    /// A life of the guest begins. Its processors start after this.
    pub(crate) fn attach(&self, running: Running) {
        let exit = Arc::clone(&running.exit);
        let mut inner = self.lock();
        inner.running = Some(running);
        self.apply(&mut inner, Event::Started);
        drop(inner);
        if self.shared.stopped.load(Ordering::SeqCst) {
            exit.post(Ok(Exit::Stopped));
        }
    }

    /// A life of the guest is over, and another follows if `restarts`.
    pub(crate) fn detach(&self, restarts: Option<By>) {
        let mut inner = self.lock();
        inner.running = None;
        if restarts.is_some() {
            self.shared.restarts.fetch_add(1, Ordering::Relaxed);
        }
        self.apply(&mut inner, restarts.map_or(Event::End, Event::Restart));
    }

    /// Who wanted the reset that has just ended the guest's life.
    pub(crate) fn take_reset(&self) -> By {
        match self.shared.reset_by_user.swap(false, Ordering::SeqCst) {
            true => By::User,
            false => By::Guest,
        }
    }

    fn apply(&self, inner: &mut Inner, event: Event) {
        let (state, notice) = inner.state.step(event);
        if state != inner.state {
            inner.state = state;
            self.shared.gate.set_closed(state.holds());
            self.shared.moved.notify_all();
        }
        if let (Some(notice), Some(observer)) = (notice, &self.shared.observer) {
            observer(notice);
        }
    }

    fn with_running<T>(&self, act: impl FnOnce(&Running) -> T) -> Option<T> {
        self.lock().running.as_ref().map(act)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Bytes that are taken from the console's input at once.
const INPUT_CHUNK: usize = 256;

/// Starts the thread that types `input` into whichever guest runs under `control`. It ends with
/// its input, or at the first input after the last machine has gone.
pub(crate) fn start_typing(
    mut input: Box<dyn Read + Send>,
    control: &Control,
) -> Result<(), Error> {
    let shared: Weak<Shared> = Arc::downgrade(&control.shared);
    let body = move || {
        let mut buffer = [0; INPUT_CHUNK];
        loop {
            let len = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let Some(shared) = shared.upgrade() else { return };
            let serial = Control { shared }.with_running(|running| Arc::clone(&running.serial));
            // Between two lives of a guest nobody reads.
            if let Some(serial) = serial {
                serial.feed(&buffer[..len]);
            }
        }
    };
    match sandbox::spawn(Role::Control, "console-input".to_owned(), body) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Device { device: "console input", source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::hv::start_fake_processors;
    use crate::legacy::Output;

    fn running(control: &Control, processors: u32) -> Running {
        let exit = Arc::new(ExitLatch::default());
        let event = || EventFd::new(0).unwrap();
        let output: Output = Arc::new(Mutex::new(Box::new(io::sink())));
        let serial = Arc::new(SerialPort::new(event(), output, exit.clone()));
        let crew = Arc::new(Crew::new(processors, Arc::clone(control.gate())));
        Running { exit, button: event(), serial, crew }
    }

    #[test]
    fn a_control_that_was_stopped_early_stops_the_machine_that_comes() {
        let control = Control::new();
        assert!(!control.press_power_button() && !control.reset() && !control.inject_nmi());
        control.stop();
        let running = running(&control, 1);
        let exit = running.exit.clone();
        control.attach(running);
        assert!(control.press_power_button());
        assert_eq!(exit.take().transpose().unwrap(), Some(Exit::Stopped));
    }

    /// A machine of two processors that only count, under a control that tells what it hears.
    struct Fake {
        control: Control,
        heard: mpsc::Receiver<Notice>,
        rounds: Arc<AtomicU64>,
    }

    impl Fake {
        fn new() -> Self {
            let (tell, heard) = mpsc::channel();
            let control = Control::observed(Box::new(move |notice| tell.send(notice).unwrap()));
            Self { control, heard, rounds: Arc::default() }
        }

        /// Runs lives until one ends otherwise than by a reset.
        fn start(&self) -> std::thread::JoinHandle<Exit> {
            let (control, rounds) = (self.control.clone(), Arc::clone(&self.rounds));
            std::thread::spawn(move || {
                loop {
                    let running = running(&control, 2);
                    let (exit, crew) = (running.exit.clone(), running.crew.clone());
                    control.attach(running);
                    let threads = start_fake_processors(&crew, &exit, &rounds);
                    exit.wait();
                    drop(threads);
                    let end = exit.take().unwrap().unwrap();
                    if end != Exit::Reset {
                        control.detach(None);
                        return end;
                    }
                    control.detach(Some(control.take_reset()));
                }
            })
        }

        fn rounds(&self) -> u64 {
            self.rounds.load(Ordering::SeqCst)
        }

        fn wait_for_rounds(&self) {
            let before = self.rounds();
            while self.rounds() == before {
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        fn stands_still(&self) -> bool {
            let before = self.rounds();
            std::thread::sleep(Duration::from_millis(30));
            self.rounds() == before
        }
    }

    #[test]
    fn a_paused_machine_stands_still_until_it_is_resumed() {
        let fake = Fake::new();
        let machine = fake.start();
        for _ in 0..20 {
            fake.wait_for_rounds();
            assert_eq!(fake.control.pause(), State::Paused);
            assert_eq!(fake.control.pause(), State::Paused);
            let before = fake.rounds();
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(fake.rounds(), before);
            assert_eq!(fake.control.resume(), State::Running);
            assert_eq!(fake.control.resume(), State::Running);
        }
        fake.control.stop();
        assert_eq!(machine.join().unwrap(), Exit::Stopped);
        assert_eq!(fake.control.state(), State::Ended);
        let heard: Vec<Notice> = fake.heard.try_iter().collect();
        assert_eq!(heard, [Notice::Paused, Notice::Resumed].repeat(20));
    }

    #[test]
    fn a_machine_that_is_reset_while_paused_stays_paused() {
        let fake = Fake::new();
        assert_eq!(fake.control.pause(), State::Starting { paused: true });
        let machine = fake.start();
        for _ in 0..5 {
            assert_eq!(fake.heard.recv().unwrap(), Notice::Paused);
            assert!(fake.stands_still() && fake.rounds() == 0);
            assert!(fake.control.reset());
            assert_eq!(fake.heard.recv().unwrap(), Notice::Reset(By::User));
        }
        fake.control.resume();
        fake.wait_for_rounds();
        fake.control.pause();
        fake.control.stop();
        assert_eq!(machine.join().unwrap(), Exit::Stopped);
        assert_eq!(fake.control.statistics().restarts, 5);
    }

    #[test]
    fn a_pause_during_restarts_holds_whichever_life_comes() {
        let fake = Fake::new();
        let machine = fake.start();
        for _ in 0..50 {
            fake.control.reset();
            fake.control.pause();
            assert!(fake.control.state().holds());
            let before = fake.rounds();
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(fake.rounds(), before);
            fake.control.resume();
        }
        fake.control.stop();
        assert_eq!(machine.join().unwrap(), Exit::Stopped);
    }

    #[test]
    fn an_nmi_reaches_a_processor_that_never_leaves_by_itself_and_waits_for_one_that_is_paused() {
        let fake = Fake::new();
        let machine = fake.start();
        fake.wait_for_rounds();
        assert!(fake.control.inject_nmi());
        let taken =
            |control: &Control| !control.with_running(|running| running.crew.is_nmi_due()).unwrap();
        let wait = |control: &Control| {
            while !taken(control) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        wait(&fake.control);
        fake.control.pause();
        assert!(fake.control.inject_nmi());
        assert!(fake.stands_still() && !taken(&fake.control));
        fake.control.resume();
        wait(&fake.control);
        fake.control.stop();
        machine.join().unwrap();
    }
}
