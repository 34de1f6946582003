//! The journal of one import: what a later process needs to go on where this one stopped.
//!
//! ```text
//! Head    what is imported, from which version of the source, into how many bytes; written first
//! Kept    a part of the source that the decoder needs again: header, tables, what was set aside
//! Mark    everything before an offset of the source is in the target, and this is the verifier's
//!         state there; true as long as the machine stays up, since caches outlive a process
//! Durable the same, and the target was made durable before: true after a power cut too
//! ```
//! The last mark that is true counts. Nothing in here is trusted farther than that: the source must
//! still be the same version, and the verdict comes over all bytes as ever.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bootyard_image::stream::{Checkpoint, Kept, KeptBytes};
use bootyard_source::Validator;
use bootyard_spec::{ByteSize, Digest, Verifier};
use bootyard_volume::{self as volume, Journal, Record, Staged};
use bytes::Bytes;

use crate::error::Share;

const HEAD: u8 = 1;
const KEPT_DATA: u8 = 2;
const KEPT_ZERO: u8 = 3;
const MARK: u8 = 4;
const DURABLE: u8 = 5;

/// The version of these notes: others are not gone on with.
const VERSION: &str = "bootyard-import 2";
/// How far apart the verifier's states are noted.
const SNAPSHOT_STEP: u64 = 256 << 10;
/// How many of them wait at most for the decoder to come so far.
const SNAPSHOTS_MAX: usize = 4096;
/// Changes with every start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What must be the same for an import to be gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The source as the user named it, without secrets.
    pub(crate) source: String,
    /// Its version; with none, only digests can tell that it is another.
    pub(crate) validator: Option<Validator>,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// What the bytes are compared with.
    pub(crate) expected: Vec<Digest>,
    /// The size that was asked for.
    pub(crate) size: Option<ByteSize>,
    /// The length of the target in bytes.
    pub(crate) file_len: u64,
    /// Whether the target has its place for good.
    pub(crate) preallocation: bool,
    /// Whether the source was known to be a raw disk.
    pub(crate) is_raw: bool,
}

impl Identity {
    fn to_text(&self) -> String {
        let Self { source, validator, len, expected, size, file_len, preallocation, is_raw } = self;
        let size = size.map(|size| size.bytes().to_string()).unwrap_or_default();
        let validator = validator.as_ref().map(ToString::to_string).unwrap_or_default();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        let expected = expected.join(" ");
        format!(
            "{VERSION}\n{source:?}\n{validator}\n{len}\n{expected}\n{size}\n{file_len}\n\
             {preallocation}\n{is_raw}\n"
        )
    }

    /// The identity that a journal begins with, if it is one of an import of `source`.
    fn parse(text: &str, source: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != VERSION || lines.next()? != format!("{source:?}") {
            return None;
        }
        let validator = match lines.next()? {
            "" => None,
            text => Some(Validator::from_str(text).ok()?),
        };
        let len = lines.next()?.parse().ok()?;
        let expected = lines.next()?.split_whitespace().map(str::parse);
        let expected = expected.collect::<Result<_, _>>().ok()?;
        let size = match lines.next()? {
            "" => None,
            size => Some(ByteSize::from_bytes(size.parse().ok()?)),
        };
        let file_len = lines.next()?.parse().ok()?;
        let preallocation = lines.next()?.parse().ok()?;
        let is_raw = lines.next()?.parse().ok()?;
        let source = source.to_owned();
        Some(Self { source, validator, len, expected, size, file_len, preallocation, is_raw })
    }
}

/// An import that another process has begun.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) identity: Identity,
    /// The source's bytes before this offset are done with.
    pub(crate) at: u64,
    /// The verifier that has seen them.
    pub(crate) verifier: Verifier,
    pub(crate) kept: Vec<Kept>,
}

impl Left {
    /// How much of the source is done with.
    pub(crate) const fn share(&self) -> Share {
        Share { done: self.at, len: self.identity.len }
    }

    /// What the journal of `staged` says about an import of `source`, if it can be gone on with.
    pub(crate) fn find(staged: &Staged, source: &str) -> Option<Self> {
        let records = staged.left();
        let (head, rest) = records.split_first().filter(|(head, _)| head.kind == HEAD)?;
        let identity = Identity::parse(str::from_utf8(&head.payload).ok()?, source)?;
        if staged.file_len() != Some(identity.file_len) || identity.file_len == 0 {
            return None;
        }
        let boot = boot_id();
        let marks = rest.iter().filter_map(|record| match record.kind {
            DURABLE => record.payload.split_first_chunk::<16>().map(|(_, state)| state),
            MARK => record.payload.strip_prefix(&boot?),
            _ => None,
        });
        let verifiers =
            marks.filter_map(|state| Verifier::restore(identity.expected.clone(), state));
        let verifier = verifiers.max_by_key(Verifier::seen)?;
        let kept = rest.iter().filter_map(kept).collect::<Option<_>>()?;
        let at = verifier.seen();
        (at > 0 && at <= identity.len).then_some(Self { identity, at, verifier, kept })
    }
}

/// The part of the source that a record is; `None` for another kind of record, `Some(None)` for one
/// that makes no sense.
fn kept(record: &Record) -> Option<Option<Kept>> {
    let parse = || {
        let (at, rest) = record.payload.split_first_chunk()?;
        let bytes = match record.kind {
            KEPT_DATA => KeptBytes::Data(Bytes::copy_from_slice(rest)),
            _ => KeptBytes::Zero(u64::from_le_bytes(rest.try_into().ok()?)),
        };
        let kept = Kept { at: u64::from_le_bytes(*at), bytes };
        kept.at.checked_add(kept.len()).map(|_| kept)
    };
    matches!(record.kind, KEPT_DATA | KEPT_ZERO).then(parse)
}

/// A number of the machine's present run; `None` where it cannot be told.
fn boot_id() -> Option<[u8; 16]> {
    let text = fs_err::read_to_string(BOOT_ID).ok()?;
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    let mut id = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(id)
}

/// Writes the journal of a running import. Clones write the same one.
#[derive(Debug, Clone)]
pub(crate) struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    journal: Mutex<Journal>,
    /// The verifier's states by the number of bytes that it had seen, oldest first.
    snapshots: Mutex<VecDeque<(u64, Vec<u8>)>>,
    /// The last mark that is not durable, without the boot's number.
    marked: Mutex<Option<Vec<u8>>>,
    /// What it is about.
    settled: Mutex<u64>,
    /// Something that was stored has not become durable: nobody knows what of it is still there.
    lost: AtomicBool,
    boot: [u8; 16],
}

impl Log {
    /// The journal of an import that begins. `None` where the target cannot have one.
    pub(crate) fn begin(
        staged: &Staged,
        identity: &Identity,
    ) -> Result<Option<Self>, volume::Error> {
        let Some(log) = Self::open(staged, &[])? else { return Ok(None) };
        lock(&log.0.journal).append(HEAD, identity.to_text().as_bytes())?;
        Ok(Some(log))
    }

    /// The journal of an import that is gone on with.
    pub(crate) fn go_on(staged: &Staged, left: &Left) -> Result<Option<Self>, volume::Error> {
        let log = Self::open(staged, staged.left())?;
        if let Some(log) = &log {
            lock(&log.0.snapshots).push_back((left.at, left.verifier.save()));
            *lock(&log.0.settled) = left.at;
        }
        Ok(log)
    }

    /// How many bytes of the source the next process need not fetch again.
    pub(crate) fn settled(&self) -> u64 {
        if self.0.lost.load(Ordering::Relaxed) { 0 } else { *lock(&self.0.settled) }
    }

    fn open(staged: &Staged, records: &[Record]) -> Result<Option<Self>, volume::Error> {
        let Some(journal) = staged.journal(records)? else { return Ok(None) };
        Ok(Some(Self(Arc::new(Inner {
            journal: Mutex::new(journal),
            snapshots: Mutex::default(),
            marked: Mutex::default(),
            settled: Mutex::default(),
            lost: AtomicBool::new(false),
            boot: boot_id().unwrap_or_default(),
        }))))
    }

    /// Notes the state of the verifier, every now and then.
    pub(crate) fn note_verifier(&self, verifier: &Verifier) {
        let mut snapshots = lock(&self.0.snapshots);
        let last = snapshots.back().map_or(0, |(seen, _)| *seen);
        if verifier.seen() < last + SNAPSHOT_STEP {
            return;
        }
        if snapshots.len() >= SNAPSHOTS_MAX {
            // The decoder does not settle. If it ever does, some part more is fetched again.
            let mut keep = false;
            snapshots.retain(|_| {
                keep = !keep;
                keep
            });
        }
        snapshots.push_back((verifier.seen(), verifier.save()));
    }

    /// Writes down how far the decoder has come.
    pub(crate) fn note_decoder(&self, checkpoint: Checkpoint) -> Result<(), volume::Error> {
        let mut journal = lock(&self.0.journal);
        for Kept { at, bytes } in checkpoint.kept {
            let (kind, bytes) = match bytes {
                KeptBytes::Data(bytes) => (KEPT_DATA, bytes),
                KeptBytes::Zero(len) => (KEPT_ZERO, Bytes::copy_from_slice(&len.to_le_bytes())),
            };
            journal.append(kind, &[&at.to_le_bytes()[..], &bytes].concat())?;
        }
        let Some((seen, state)) = checkpoint.settled.and_then(|settled| self.state_at(settled))
        else {
            return Ok(());
        };
        *lock(&self.0.settled) = seen;
        journal.append(MARK, &[&self.0.boot[..], &state].concat())?;
        *lock(&self.0.marked) = Some(state);
        Ok(())
    }

    /// Makes what is stored up to the last mark durable by `sync`, and then the mark.
    pub(crate) fn make_durable(
        &self,
        sync: impl FnOnce() -> Result<(), volume::Error>,
    ) -> Result<(), volume::Error> {
        let marked = lock(&self.0.marked).take();
        let lost = |_: &volume::Error| self.0.lost.store(true, Ordering::Relaxed);
        sync().inspect_err(lost)?;
        let Some(state) = marked else { return Ok(()) };
        let mut journal = lock(&self.0.journal);
        journal.append(DURABLE, &[&self.0.boot[..], &state].concat())?;
        journal.sync().inspect_err(lost)
    }

    /// The last state of the verifier at or before `settled`; the older ones are forgotten.
    fn state_at(&self, settled: u64) -> Option<(u64, Vec<u8>)> {
        let mut snapshots = lock(&self.0.snapshots);
        let mut state = None;
        while let Some(found) = snapshots.pop_front_if(|(seen, _)| *seen <= settled) {
            state = Some(found);
        }
        state
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
