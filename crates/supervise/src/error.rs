//! Why a machine could not be run at all. How a guest ended is no error of this kind.

use std::io;
use std::path::PathBuf;

use bootyard_spec::{Class, Explain};

/// A failure of the supervisor or an engine, before or beside the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `/dev/kvm` was asked for and does not work here.
    #[error("this host cannot run the kvm engine: {0}")]
    KvmUnusable(String),
    /// QEMU was asked for, or is the only way, and is not installed.
    #[error("`qemu-system-x86_64` is not installed{}", .because.as_ref().map(|why| format!(", and {why}")).unwrap_or_default())]
    NoQemu {
        /// Why the other engine is no way out, if nobody asked for QEMU.
        because: Option<String>,
    },
    /// The engine boots through firmware, and never sees boot menu and command line.
    #[error("the qemu engine starts the disk's own boot loader, for which `{flag}` is nothing")]
    BootsByFirmware {
        /// What was asked for.
        flag: &'static str,
    },
    /// QEMU has no such network.
    #[error("the qemu engine has no network with {0}")]
    CannotNetwork(&'static str),
    /// What a network needs of the host is not there.
    #[error("{what}")]
    NoNetwork {
        /// What is missing.
        what: String,
        /// What helps.
        hint: String,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU has no sockets of this kind.
    #[error("the qemu engine has no `--vsock`: QEMU leaves it to the host's kernel (vhost-vsock)")]
    NoVsock,
    /// The run strategy forbids what was asked for.
    #[error("{0}")]
    Refused(&'static str),
    /// The machine has no disk to boot.
    #[error("the machine `{0}` has no disk")]
    NoDisk(String),
    /// The disks of a machine's new life could not be made.
    #[error("the machine's disks cannot be made")]
    Disks {
        /// The class of the cause.
        class: Class,
        /// What helps.
        hint: Option<String>,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine's program could not be started.
    #[error("starting `{}` failed", .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The control socket cannot be served.
    #[error("cannot serve the control socket `{}`", .path.display())]
    ControlSocket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket of a console or channel cannot be served.
    #[error("cannot serve the socket `{}`", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Waiting for, stopping or talking to a child failed.
    #[error("{what} failed")]
    System {
        /// What was tried: "waiting for the machine".
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The failure of `what`, for `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

impl Explain for Error {
    fn class(&self) -> Class {
        match self {
            Self::BootsByFirmware { .. }
            | Self::CannotNetwork(_)
            | Self::NoNetwork { .. }
            | Self::NoVsock
            | Self::Refused(_)
            | Self::NoDisk(_)
            | Self::ControlSocket { .. }
            | Self::Socket { .. } => Class::Usage,
            Self::KvmUnusable(_) | Self::NoQemu { .. } | Self::Spawn { .. } => Class::Engine,
            Self::System { .. } => Class::Other,
            Self::Disks { class, .. } => *class,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::KvmUnusable(_) => {
                "use `--engine qemu`, which also works without KVM; `bootyard doctor` shows what \
                 this host can do"
            }
            Self::NoQemu { .. } => "install it with `apt install qemu-system-x86`",
            Self::BootsByFirmware { flag } => {
                return Some(format!("leave `{flag}` out, or use `--engine kvm`"));
            }
            Self::CannotNetwork("passt without a socket") => {
                "start passt with `passt --socket PATH`, and name it: `--net passt=PATH`"
            }
            Self::CannotNetwork(_) | Self::NoVsock => "leave it out, or use `--engine kvm`",
            Self::NoNetwork { hint, .. } => return Some(hint.clone()),
            Self::Disks { hint, .. } => return hint.clone(),
            Self::ControlSocket { .. } => "name another path with `--control`",
            Self::Socket { .. } => "name another path",
            Self::Refused(_) | Self::NoDisk(_) | Self::Spawn { .. } | Self::System { .. } => {
                return None;
            }
        };
        Some(hint.to_owned())
    }
}
