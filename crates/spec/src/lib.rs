//! The words of the domain, as plain data: what is imported, into what, how large, how verified,
//! which machine runs it and under which strategy.
//!
//! Every other crate speaks in these types. They are checked when they are made, so that holding
//! one means that it is valid. Nothing here reads a file, the network, the clock or the
//! environment, and nothing here is a wire format: manifests, JSON output and command-line flags
//! are turned into these types at the edge.

mod attachment;
mod boot;
mod digest;
mod explain;
mod hardware;
mod hint;
mod name;
mod network;
mod platform;
mod request;
mod secret;
mod services;
mod size;
mod source;
mod storage;
mod url;
mod vm;
mod words;

pub use attachment::{
    DiskAttachment, DiskBus, DiskCache, DiskDevice, DiskSerial, ParseAttachmentError,
};
pub use boot::{BootSpec, KernelBoot};
pub use digest::{Algorithm, Digest, ParseDigestError, Verified, Verifier, VerifyError};
pub use explain::{Class, Explain, exit_code};
pub use hardware::{
    CpuModel, CpuTopology, Firmware, HugePageSize, ParseHardwareError, ParseTopologyError,
    SmbiosField, SmbiosText, Uuid,
};
pub use hint::shell_word;
pub use name::{ParseNameError, VolumeName};
pub use network::{Binding, MacAddress, Masquerade, ParseNetworkError, PortForward, VmNetwork};
pub use platform::{ParsePlatformError, Platform};
pub use request::{CacheSpec, ImportRequest, OutputFormat, ParseOutputFormatError, Target};
pub use secret::{Credentials, Secret};
pub use services::{GUEST_AGENT, GuestChannel, GuestServices, GuestVsock, ParseServiceError};
pub use size::{ByteSize, ParseSizeError};
pub use source::{ImageLayout, ObjectName, ParseSourceError, Source, StoredImage};
pub use storage::{
    AccessMode, AccessModes, Claim, ClaimDefaults, ClaimPropertySet, CloneStrategy,
    FilesystemOverhead, ParseOverheadError, ParseWordError, StorageClass, StorageClassName,
    StorageDriver, StorageProfile, VolumeMode,
};
pub use url::{ParseUrlError, SafeUrl};
pub use vm::{
    DiskLife, EngineChoice, GuestEnd, ParseEngineError, ParseRebootPolicyError,
    ParseRunStrategyError, RebootPolicy, RunStrategy, VmDisk, VmSpec,
};
pub use words::{near_word, word_distance};
