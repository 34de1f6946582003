//! Going on in the midst of a stream, in a process to come.
//!
//! A decoder that has stored everything before some offset can be made again there, if it is told
//! what it has learned on the way. That is little: the header, the tables, and what was set aside.
//! [`Decoder::checkpoint`](super::Decoder::checkpoint) gives both out as they come to be, the caller
//! writes them down, and [`Decoder::resume`](super::Decoder::resume) takes them back: it runs through
//! the tables again and leaves out the data, which is stored.
//!
//! ```text
//!  stream   ▕ header ▕ table ▕ data … ▕ table ▕ data … ▕ data that is in hand ▕ not come yet
//!  kept     ▕████████▕███████▕        ▕███████▕        ▕
//!                                             settled ─┘ where a new decoder goes on
//! ```

use bytes::Bytes;

use crate::zero;

/// How many bytes are kept in all. Tables for some 96 GiB of a disk in clusters of 64 KiB, and what a
/// process that goes on can hold twice in memory; a stream that has set more
/// aside is not settled any further.
pub const KEPT_MAX: u64 = 24 << 20;

/// A part of the stream that a decoder which goes on in its midst needs again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where it stands, in bytes from the stream's start.
    pub at: u64,
    /// What stands there.
    pub bytes: KeptBytes,
}

/// The bytes of a [`Kept`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeptBytes {
    /// These.
    Data(Bytes),
    /// This many zeros.
    Zero(u64),
}

/// How far a decoder has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Everything before this offset is stored, or has been kept: a decoder can be made to go on
    /// here, or anywhere before. `None` if that has not moved since the last time, or cannot be
    /// said of this stream.
    pub settled: Option<u64>,
    /// What has to be kept besides what earlier checkpoints gave.
    pub kept: Vec<Kept>,
}

impl Kept {
    /// How many bytes it has.
    pub const fn len(&self) -> u64 {
        match &self.bytes {
            KeptBytes::Data(bytes) => bytes.len() as u64,
            KeptBytes::Zero(len) => *len,
        }
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Notes what has to be kept.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    on: bool,
    list: Vec<Kept>,
    total: u64,
}

impl Recorder {
    pub(crate) fn new(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    /// Keeps `bytes`, which stand at `at`, whole.
    pub(crate) fn keep(&mut self, at: u64, bytes: &[u8]) {
        if self.records(bytes.len()) {
            // A copy, since a slice would keep the whole chunk that it is of.
            self.list.push(Kept { at, bytes: KeptBytes::Data(Bytes::copy_from_slice(bytes)) });
        }
    }

    /// Keeps `bytes`, which stand at `at`; of zeros only how many.
    pub(crate) fn keep_runs(&mut self, at: u64, bytes: &[u8]) {
        if !self.on {
            return;
        }
        let runs = zero::runs(bytes, at, |run, zero| {
            let begin = at + run.start as u64;
            if !zero {
                self.keep(begin, &bytes[run]);
            } else if self.records(0) {
                self.list.push(Kept { at: begin, bytes: KeptBytes::Zero(run.len() as u64) });
            }
            Ok::<_, std::convert::Infallible>(())
        });
        let Ok(()) = runs;
    }

    /// Whether everything that has to be kept is.
    pub(crate) const fn is_complete(&self) -> bool {
        self.on && self.total <= KEPT_MAX
    }

    /// What was kept since the last call.
    pub(crate) fn take(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.list)
    }

    fn records(&mut self, len: usize) -> bool {
        // A note of zeros takes some memory too.
        self.total += len as u64 + 16;
        self.is_complete()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;
    use std::thread::sleep;
    use std::time::Duration;

    use bootyard_testkit::{pseudo_random, qemu_img, require_tool, run};

    use super::*;
    use crate::stream::{Decoder, Head, Options};
    use crate::support::{Memory, options, read};

    const MIB: usize = 1 << 20;
    const CHUNK: usize = 100_000;
    /// What a router refers back to, and a little more.
    const RECENT: u64 = (2 << 20) + (1 << 18);

    /// What the process that died has left.
    struct Left {
        sink: Arc<Memory>,
        kept: Vec<Kept>,
        settled: Option<u64>,
    }

    fn with_checkpoints() -> Options {
        Options { checkpoints: true, ..options(2) }
    }

    /// Decodes the first `cut` bytes, waits until the workers are done, and stops.
    fn begin(file: &Bytes, cut: usize) -> Left {
        let sink = Arc::new(Memory::default());
        let mut head = Head::new();
        let mut at = 0;
        while head.push(file.slice(at..cut.min(at + CHUNK))).unwrap().is_none() {
            at += CHUNK;
        }
        let mut at = cut.min(at + CHUNK);
        let mut decoder = Decoder::new(head, sink.clone(), with_checkpoints()).unwrap();
        let mut left = Left { sink, kept: Vec::new(), settled: None };
        let mut note = |decoder: &mut Decoder| {
            let Checkpoint { settled, kept } = decoder.checkpoint();
            left.kept.extend(kept);
            left.settled = settled.or(left.settled);
            left.settled
        };
        while at < cut {
            let end = cut.min(at + CHUNK);
            decoder.push(file.slice(at..end)).unwrap();
            note(&mut decoder);
            at = end;
        }
        for _ in 0..100 {
            if note(&mut decoder).is_some_and(|at| at + RECENT >= cut as u64) {
                break;
            }
            sleep(Duration::from_millis(2));
        }
        left
    }

    fn go_on(file: &Bytes, left: Left, at: u64) -> Vec<u8> {
        let mut decoder =
            Decoder::resume(left.kept, at, left.sink.clone(), with_checkpoints()).unwrap();
        for chunk in file[at as usize..].chunks(CHUNK) {
            decoder.push(Bytes::copy_from_slice(chunk)).unwrap();
        }
        let summary = decoder.finish().unwrap();
        left.sink.bytes(summary.virtual_size)
    }

    #[expect(clippy::disallowed_methods, reason = "asks qemu-io to write")]
    /// A disk of 24 MiB with text, noise and holes, in each of the formats that streams have.
    fn images() -> Vec<(&'static str, Bytes)> {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = vec![0; 24 * MIB];
        for (index, block) in disk.chunks_mut(192 << 10).enumerate() {
            match index % 5 {
                0 => {}
                1 => block.fill(index as u8),
                _ => block.copy_from_slice(&pseudo_random(block.len(), index as u64)),
            }
        }
        let raw = folder.path().join("raw");
        fs_err::write(&raw, &disk).unwrap();
        let mut images = vec![("raw", Bytes::from(disk))];
        for (name, format, options) in [
            ("qcow2", "qcow2", &[][..]),
            ("qcow2 of small clusters", "qcow2", &["-o", "cluster_size=4k"]),
            ("compressed qcow2", "qcow2", &["-c"]),
            ("vmdk", "vmdk", &[]),
            ("vdi", "vdi", &[]),
            ("vhd", "vpc", &["-o", "force_size"]),
            ("vhdx", "vhdx", &[]),
            ("qed", "qed", &[]),
        ] {
            let made = folder.path().join("made");
            let (from, to) = (raw.to_str().unwrap(), made.to_str().unwrap());
            let arguments = [&["convert", "-f", "raw", "-O", format], options, &[from, to]];
            qemu_img(arguments.concat());
            images.push((name, fs_err::read(&made).unwrap().into()));
        }
        // The table of the disk comes after all of its data, which has to be set aside.
        let late = folder.path().join("late.qcow2");
        let late = late.to_str().unwrap();
        qemu_img(["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), late]);
        qemu_img(["snapshot", "-c", "before", late]);
        run(Command::new("qemu-io").args(["-c", "write -P 7 5M 64k", late]));
        images.push(("qcow2 after a snapshot", fs_err::read(late).unwrap().into()));
        images
    }

    #[test]
    fn a_decoder_goes_on_where_another_one_stopped() {
        if !require_tool("qemu-io") {
            return;
        }
        for (name, file) in images() {
            let expected = read(&file).unwrap();
            for percent in [12, 37, 61, 100] {
                let cut = file.len() * percent / 100;
                let left = begin(&file, cut);
                let settled = left.settled.unwrap_or(0);
                // What is lost is less than a step, the recent bytes, and what is being gathered.
                let lost = cut as u64 - settled;
                assert!(lost < 4 * MIB as u64, "{name} at {cut}: {lost} bytes lost");
                let data = |kept: &Kept| matches!(kept.bytes, KeptBytes::Data(_));
                let kept = left.kept.iter().filter(|kept| data(kept));
                let kept: u64 = kept.map(Kept::len).sum();
                let late = name == "qcow2 after a snapshot";
                assert!(late || kept < 4 * MIB as u64, "{name}: {kept} bytes kept");
                // Or anywhere before that.
                let at = if percent == 61 { settled - 77_777 } else { settled };
                assert!(go_on(&file, left, at) == expected, "{name} at {at} of {}", file.len());
            }
        }
    }

    #[test]
    fn what_was_not_kept_is_missed() {
        if !require_tool("qemu-img") {
            return;
        }
        let (name, file) = images().swap_remove(2);
        let mut left = begin(&file, 12 * MIB);
        let settled = left.settled.unwrap();
        left.kept.truncate(1);
        let error = Decoder::resume(left.kept, settled, left.sink.clone(), with_checkpoints());
        assert!(error.unwrap_err().to_string().contains("was not kept"), "{name}");
        let none = Decoder::resume(Vec::new(), settled, left.sink, with_checkpoints());
        assert!(none.is_err());
    }
}
