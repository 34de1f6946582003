//! Hostile files: each must come to what its maker expects, by random access and as a stream.
#![expect(clippy::disallowed_methods, reason = "how long a file takes is what is tested")]

use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bootyard_testkit::{Expect, HostileFile, hostile_files};
use bytes::Bytes;
use fs_err::File;

use crate::raw::FileAt;
use crate::stream::{Decoder, Head};
use crate::support::{SIZE_MAX, decode, options};
use crate::{Body, Disk, Error, ErrorKind, Piece, ReadAt, Sink, conformance, inspect, open};

/// How long one file may take, either way.
const TIME_MAX: Duration = Duration::from_secs(5);
/// Of a file that claims to hold more data than this, no more is read.
const DATA_MAX: u64 = 64 << 20;
/// Nothing is read from a file in larger parts than this.
const READ_MAX: usize = 32 << 20;

/// What became of a file.
enum Outcome {
    /// All of it was read, or [`DATA_MAX`] bytes.
    Read,
    Refused(Error),
}

/// Checks the files that match the glob `only`: see [`hostile_files`]. Those in `unstreamable` are
/// laid out so that no stream of them can be decoded, and must be refused as streams.
///
/// # Panics
///
/// At the end, with a list of what went wrong.
pub(crate) fn check(only: &str, unstreamable: &[&str]) {
    check_where(only, |name| !unstreamable.iter().any(|end| name.ends_with(end)), true);
}

/// The same for files that are only read as streams.
pub(crate) fn check_streams(only: &str) {
    check_where(only, |_| true, false);
}

fn check_where(only: &str, streamable: impl Fn(&str) -> bool, random: bool) {
    let Some(made) = hostile_files(only) else { return };
    let mut faults = Vec::new();
    for file in &made.files {
        let refused = !streamable(&file.name);
        let as_stream = if refused { Expect::Reject } else { file.expect };
        let read_as_stream = if random { read_as_stream } else { read_to_volume };
        let at_random = if random { file.expect } else { Expect::Reject };
        for (way, read, expect) in [
            ("by random access", read_at_random as fn(&Path) -> Outcome, at_random),
            ("as a stream", read_as_stream, as_stream),
        ] {
            if let Err(fault) = judge(&file.path, read, expect) {
                faults.push(format!("{} {way}: {fault}\n    it is: {}", file.name, file.reason));
            }
        }
        if random
            && file.expect == Expect::Accept
            && let Err(fault) = guarded(|| conforms(file, !refused))
        {
            faults.push(format!("{}: {fault}", file.name));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Runs `read` on the file and compares what became of it with what should.
fn judge(path: &Path, read: fn(&Path) -> Outcome, expect: Expect) -> Result<(), String> {
    let begin = Instant::now();
    let outcome = guarded(|| read(path))?;
    let time = begin.elapsed();
    if time > TIME_MAX {
        return Err(format!("took {time:?}"));
    }
    match (expect, outcome) {
        (Expect::Reject, Outcome::Read) => Err("was read".to_owned()),
        (Expect::Accept, Outcome::Refused(error)) => Err(format!("was refused: {error}")),
        (_, Outcome::Refused(error)) if !tells(&error) => {
            Err(format!("was refused without a cause and a place: {error:?}"))
        }
        _ => Ok(()),
    }
}

/// True if the error says what is wrong with the file, and where.
fn tells(error: &Error) -> bool {
    let of_the_file =
        !matches!(error.kind(), ErrorKind::OutOfRange | ErrorKind::Read | ErrorKind::Write);
    of_the_file && error.offset().is_some()
}

/// Turns a panic into a fault.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("panicked: {}", text.unwrap_or_default())
    })
}

fn outcome(result: Result<(), Error>) -> Outcome {
    result.map_or_else(Outcome::Refused, |()| Outcome::Read)
}

/// A file that notices if much is asked for at once.
struct Watched(FileAt);

impl Watched {
    fn open(path: &Path) -> Self {
        Self(FileAt::new(File::open(path).unwrap().into()).unwrap())
    }
}

impl ReadAt for Watched {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buf.len() <= READ_MAX, "{} bytes are read at once", buf.len());
        self.0.read_exact_at(buf, offset)
    }
}

fn read_at_random(path: &Path) -> Outcome {
    // Describing may fail as well as not; it must only end.
    drop(inspect(&Watched::open(path)));
    outcome(open(Watched::open(path)).and_then(|disk| read_pieces(&*disk)))
}

/// Reads the disk's data, and the first bytes of its zeros.
fn read_pieces(disk: &dyn Disk) -> Result<(), Error> {
    let begin = Instant::now();
    let mut buf = vec![0; 1 << 20];
    let mut budget = DATA_MAX;
    for piece in disk.pieces() {
        let (offset, extent) = piece?;
        let len = if extent.zero { extent.len.min(4096) } else { extent.len.min(budget) };
        for at in (0..len).step_by(buf.len()) {
            let part = buf.len().min((len - at) as usize);
            disk.read_at(&mut buf[..part], offset + at)?;
        }
        budget -= if extent.zero { 0 } else { len };
        if budget == 0 || begin.elapsed() > TIME_MAX {
            break;
        }
    }
    Ok(())
}

/// Counts data until there is too much of it, or the disk becomes too long.
struct Count {
    data: AtomicU64,
    size_max: u64,
    full: AtomicBool,
}

impl Sink for Count {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        let (data, len) = match piece.body {
            Body::Data(data) => (data.len() as u64, data.len() as u64),
            Body::Zero(len) => (0, len),
        };
        if self.data.fetch_add(data, Ordering::Relaxed) > DATA_MAX
            || piece.offset + len > self.size_max
        {
            self.full.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

fn read_as_stream(path: &Path) -> Outcome {
    read_to(path, u64::MAX)
}

/// Zeros that never end come to an end where the volume does.
fn read_to_volume(path: &Path) -> Outcome {
    read_to(path, SIZE_MAX)
}

fn read_to(path: &Path, size_max: u64) -> Outcome {
    let (data, full) = (AtomicU64::new(0), AtomicBool::new(false));
    let sink = Arc::new(Count { data, size_max, full });
    match stream(path, sink.clone()) {
        Err(error) if error.kind() == ErrorKind::Write && sink.full.load(Ordering::Relaxed) => {
            Outcome::Read
        }
        result => outcome(result),
    }
}

fn stream(path: &Path, sink: Arc<dyn Sink>) -> Result<(), Error> {
    let mut file = File::open(path).unwrap();
    let mut next = move || {
        let mut chunk = vec![0; 64 << 10];
        let len = file.read(&mut chunk).unwrap();
        chunk.truncate(len);
        (len > 0).then(|| Bytes::from(chunk))
    };
    let mut head = Head::new();
    while let Some(chunk) = next() {
        if head.push(chunk)?.is_some() {
            break;
        }
    }
    let mut decoder = Decoder::new(head, sink, options(2))?;
    while let Some(chunk) = next() {
        decoder.push(chunk)?;
    }
    decoder.finish().map(drop)
}

/// A valid file keeps the rules of a disk, and its stream holds the same.
fn conforms(file: &HostileFile, streamable: bool) {
    let disk = open(Watched::open(&file.path)).unwrap();
    if disk.virtual_size() > SIZE_MAX {
        return;
    }
    conformance::check(&*disk, disk.virtual_size());
    if streamable {
        let (streamed, _) = decode(&fs_err::read(&file.path).unwrap(), &[65_536]).unwrap();
        assert!(streamed == conformance::read_all(&*disk), "the stream holds something else");
    }
}
