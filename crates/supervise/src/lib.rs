//! Keeps a virtual machine in the state that its run strategy asks for.
//!
//! ```text
//!  VmSpec ─► LaunchPlan ─► Engine (kvm | qemu) ─► child process ─► GuestEnd
//!    └─► strategy: (state, event, now) → (state, actions) ◄────────────┘
//! ```
//!
//! What to do is decided by pure functions: [`strategy`] when to start and stop, [`choose_engine`]
//! on what, the engines' argument lists how. [`run`] is the thin layer that acts on it. An engine
//! is always a child process, so that a guest that breaks its machine breaks nothing else. This
//! crate knows nothing of how the machine works inside, and leaves the terminal to its caller.
#![forbid(unsafe_code)]

mod cancel;
mod choose;
mod console;
pub mod control;
mod engine;
mod error;
pub mod lifeline;
pub mod machine_exit;
mod plan;
mod run;
mod serial_log;
pub mod strategy;
mod verbs;
mod version;

pub use cancel::Cancel;
pub use choose::{Choice, HostFacts, KvmFact, choose_engine};
pub use console::Console;
pub use engine::{
    Ended, Engine, Failure, KvmEngine, QemuEngine, Running, Serial, Woken, check_networks_for_qemu,
};
pub use error::Error;
pub use plan::{
    DiskFormat, DiskUsage, LaunchPlan, PlanBacking, PlanDisk, parse_backing_argument,
    parse_disk_argument,
};
pub use run::{Observer, Outcome, run};
pub use serial_log::{LogLimits, SerialLog};
pub use verbs::{Answer, Compat, Instance, Refusal, Request, Verb};
pub use version::version_of;
