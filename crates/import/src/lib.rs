//! The conductor: brings a disk from a source into a volume in one verified pass.
//!
//! [`plan()`] decides what is done, as a pure function; [`run()`] does it ([`rehearse()`] only looks): it streams the source
//! through digest and decoder into a staged target, and publishes that once the verdict is good.
//! [`inspect()`] tells what an image is without importing it.
//!
//! The only crate that knows both transports and formats. It shows nothing: [`Events`] and the
//! [`Report`] go to whoever does.

mod archive;
mod cache;
mod cancel;
mod checksum;
mod container_disk;
mod error;
mod event;
mod export;
mod inspect;
mod joined;
mod layers;
mod log;
mod opened;
mod output;
mod plan;
mod progress;
mod push;
mod rehearse;
mod run;
mod transfer;
mod trust;

pub use archive::{ArchiveReport, ArchiveRequest, unpack};
pub use cancel::Cancel;
pub use checksum::published_checksum;
pub use container_disk::{ContainerDisk, container_disk};
pub use error::{BrokenOff, Error, ImageError, Share};
pub use event::{Event, Events, Moved, Phase};
pub use export::{
    ExportFormat, ExportRequest, ExportTarget, Exported, ParseExportFormatError, export,
};
pub use inspect::inspect;
pub use joined::{Besides, inspect_with, run_with};
pub use layers::ImageReport;
pub use plan::{Plan, Probe, Resume, Strategy, plan};
pub use progress::Progress;
pub use push::{LayerCompression, ParseLayerCompressionError, PushRequest, Pushed, push};
pub use rehearse::rehearse;
pub use run::{Report, run};
