//! What the fuzz targets share: a file is opened at random access and decoded as a stream; both may
//! refuse it, neither may panic, hang or take much memory, and where both read it they must agree.

pub mod boot;
pub mod machine;
pub mod sparse;
pub mod sums;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use bootyard_cloudinit::lint::{self, Kind};
use bootyard_cloudinit::{
    Datasource, FoundImage, FoundSeed, ImageFormat, MetaData, Network, Seed, SshPublicKey, User,
    UserData,
};
use bootyard_image::stream::{Decoder, Head, Options, Storage};
use bootyard_image::{Body, Disk, Piece, ReadAt, Sink, WriteAt, WriteDisk, inspect, open, qcow2};
use bytes::Bytes;

/// How much of a disk's data is looked at.
const DATA_MAX: u64 = 32 << 20;
/// How much of a disk in a container is looked at.
const DISK_MAX: u64 = 64 << 20;
/// How many runs of a disk are looked at.
const RUNS_MAX: usize = 1 << 14;

/// A file in memory that can be shared.
#[derive(Clone)]
struct File(Arc<Vec<u8>>);

impl ReadAt for File {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

/// The data of a disk, by place. Whatever it does not hold is zero.
#[derive(Default)]
struct Data {
    runs: BTreeMap<u64, Vec<u8>>,
    zeros: BTreeMap<u64, u64>,
    bytes: u64,
}

/// Reads the file that `input` stands for, both ways. With `magic`, the file begins so.
pub fn check(input: &[u8], magic: &[u8]) {
    check_mended(input, magic, |_| {});
}

/// The same, after `mend` has put the file's checksums right.
pub fn check_mended(input: &[u8], magic: &[u8], mend: impl FnOnce(&mut [u8])) {
    let mut file = sparse::decode(input);
    if let Some(begin) = file.get_mut(..magic.len()) {
        begin.copy_from_slice(magic);
    }
    mend(&mut file);
    read_both_ways(file, u64::MAX);
}

/// Reads `file` both ways, as far as its disk has [`DISK_MAX`] bytes: what is compressed may be
/// endless zeros.
pub fn check_container(file: Vec<u8>) {
    read_both_ways(file, DISK_MAX);
}

fn read_both_ways(file: Vec<u8>, disk_max: u64) {
    let file = File(Arc::new(file));
    let _ = inspect(&file);
    let disk = open(file.clone()).ok();
    let Some((size, data)) = stream(&file.0, disk_max) else {
        if let Some(disk) = &disk {
            read_all(&**disk);
        }
        return;
    };
    let Some(disk) = disk else { return };
    assert_eq!(disk.virtual_size(), size, "both ways see one size");
    let mut buf = Vec::new();
    for (offset, bytes) in &data.runs {
        buf.resize(bytes.len(), 0);
        disk.read_at(&mut buf, *offset).expect("what was streamed can be read");
        assert!(buf == *bytes, "both ways see the same data at {offset:#x}");
    }
    for (offset, len) in data.zeros.iter().take(RUNS_MAX) {
        buf.resize((*len).min(4096) as usize, 0);
        disk.read_at(&mut buf, *offset).expect("what was streamed can be read");
        assert!(buf.iter().all(|byte| *byte == 0), "both ways see zeros at {offset:#x}");
    }
}

/// Reads the small disk that `input` stands for, and the seed on it. What it finds stays within its
/// limits, and no name leads out of a folder.
pub fn read_seed(input: &[u8]) {
    let mut file = io::Cursor::new(sparse::decode(input));
    let Ok(found) = FoundImage::read(&mut file) else { return };
    let mut bytes = 0;
    for (path, content) in found.files.files() {
        bytes += content.len();
        assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path:?}");
        assert!(!path.contains(char::is_control), "{path:?}");
    }
    assert!(bytes <= 64 << 20, "{bytes} bytes were read");
    let _ = FoundSeed::of(&found);
}

/// Makes seeds of the pieces of `input`, which stand between bytes 0xff: user-data, meta-data, a
/// network, an interface, keys and a manifest each. What is not refused is read back as it was written.
pub fn build_seed(input: &[u8]) {
    let Some((flags, rest)) = input.split_first() else { return };
    let mut seed = Seed::new("a".parse().expect("a host name"));
    for piece in rest.split(|byte| *byte == 0xff) {
        let text = std::str::from_utf8(piece).unwrap_or_default();
        seed.user_data.extend(UserData::parse("u", piece));
        seed.meta_data = MetaData::parse("m", piece).ok().or(seed.meta_data);
        seed.ssh_keys.extend(SshPublicKey::parse_all("k", piece).unwrap_or_default());
        seed.users.default_password = text.parse().ok().or(seed.users.default_password);
        seed.users.others.extend(text.parse().map(User::new));
        seed.network = match (text.parse(), seed.network) {
            (Ok(interface), Some(Network::Interfaces(mut all))) => {
                all.push(interface);
                Some(Network::Interfaces(all))
            }
            (Ok(interface), None) => Some(Network::Interfaces(vec![interface])),
            (_, network) => network,
        };
        let _ = bootyard_manifest::data_object(piece);
    }
    let datasource = [Datasource::NoCloud, Datasource::ConfigDrive][usize::from(flags & 1)];
    let format = [ImageFormat::Iso, ImageFormat::Fat][usize::from(flags >> 1 & 1)];
    let Ok(files) = seed.files(datasource) else { return };
    let image = seed
        .build(datasource, format, 0)
        .expect("files that are there fit into an image")
        .into_bytes();
    let found = FoundImage::read(&mut io::Cursor::new(image)).expect("our own image is read");
    assert_eq!(found.files, files);
    assert!(FoundSeed::of(&found).is_some());
}

/// Judges `input` as each kind of file. What is found has a place within the text, and shows no more
/// of it than a line.
pub fn lint_seed(input: &[u8]) {
    for kind in Kind::ALL {
        for finding in lint::check(kind, input) {
            assert!(finding.line != Some(0) && finding.column != Some(0) && finding.width > 0);
            assert!(finding.excerpt.is_none_or(|excerpt| !excerpt.contains('\n')));
            assert!(!finding.message.is_empty());
        }
    }
    let _ = Kind::guess("", input);
}

/// How large an image may grow that is written to.
const GROWN_MAX: usize = 64 << 20;

/// Opens the image that `input` stands for to write to it, and does what the end of `input` says.
/// Nothing may panic; what was written is what is read.
pub fn edit(input: &[u8], magic: &[u8]) {
    const OPERATION: usize = 8;
    let (image, operations) = input.split_at(input.len() - input.len().min(16 * OPERATION));
    let mut file = sparse::decode(image);
    if let Some(begin) = file.get_mut(..magic.len()) {
        begin.copy_from_slice(magic);
    }
    let Ok(disk) = qcow2::edit(Spill(Mutex::new(file)), None) else { return };
    let size = disk.virtual_size();
    for operation in operations.chunks_exact(OPERATION) {
        let number = |range: std::ops::Range<usize>| {
            operation[range].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let offset = (number(1..5) << 7).min(size);
        let len = (number(5..8) % (1 << 20)).min(size - offset);
        let done = match operation[0] % 4 {
            0 | 1 => disk.write_at(&vec![operation[0] | 1; len as usize], offset),
            2 => disk.zero_at(len, offset, operation[0] & 4 != 0),
            _ => disk.flush(),
        };
        let mut back = vec![0xa5; len as usize];
        if done.is_err() || disk.read_at(&mut back, offset).is_err() {
            return;
        }
        let expected = match operation[0] % 4 {
            0 | 1 => operation[0] | 1,
            2 => 0,
            _ => continue,
        };
        assert!(back.iter().all(|byte| *byte == expected), "what was written is what is read");
    }
    let _ = disk.flush();
}

/// Reads what the disk has, as far as that is allowed.
fn read_all(disk: &dyn Disk) {
    let mut buf = vec![0; 256 << 10];
    let mut left = DATA_MAX;
    for piece in disk.pieces().take(RUNS_MAX) {
        let Ok((offset, extent)) = piece else { return };
        assert!(extent.len > 0 && offset + extent.len <= disk.virtual_size());
        let len = if extent.zero { extent.len.min(4096) } else { extent.len.min(left) };
        for begin in (0..len).step_by(buf.len()) {
            let part = (len - begin).min(buf.len() as u64) as usize;
            if disk.read_at(&mut buf[..part], offset + begin).is_err() {
                return;
            }
            assert!(!extent.zero || buf[..part].iter().all(|byte| *byte == 0));
        }
        if !extent.zero {
            left -= len;
        }
    }
}

/// Decodes `file` as a stream in chunks of changing length. `None` if it is refused.
fn stream(file: &[u8], disk_max: u64) -> Option<(u64, Data)> {
    let sink = Arc::new(Memory { data: Mutex::default(), disk_max });
    let spill = || Ok(Box::new(Spill::default()) as Box<dyn Storage>);
    let options = Options {
        workers: NonZeroUsize::MIN,
        spill: Box::new(spill),
        spill_limit: DATA_MAX,
        checkpoints: false,
        is_raw: false,
    };
    let mut chunks = chunks(file);
    let mut head = Head::new();
    for chunk in chunks.by_ref() {
        if head.push(chunk).ok()?.is_some() {
            break;
        }
    }
    head.end().ok()?;
    let mut decoder = Decoder::new(head, sink.clone(), options).ok()?;
    for chunk in chunks {
        decoder.push(chunk).ok()?;
    }
    let size = decoder.finish().ok()?.virtual_size;
    let data = Arc::into_inner(sink)?.data.into_inner().ok()?;
    let mut covered: Vec<(u64, u64)> =
        data.runs.iter().map(|(at, bytes)| (*at, bytes.len() as u64)).collect();
    covered.extend(data.zeros.iter().map(|(at, len)| (*at, *len)));
    covered.sort_unstable();
    let end = covered.iter().fold(0, |end, (at, len)| {
        assert_eq!(*at, end, "pieces cover each byte once");
        at + len
    });
    assert_eq!(end, size, "pieces cover the disk");
    Some((size, data))
}

fn chunks(file: &[u8]) -> impl Iterator<Item = Bytes> {
    let mut rest = Bytes::copy_from_slice(file);
    let mut lens = [1, 700, 65_536, 4096, 200_000].into_iter().cycle();
    std::iter::from_fn(move || {
        let len = lens.next()?.min(rest.len());
        (len > 0).then(|| rest.split_to(len))
    })
}

struct Memory {
    data: Mutex<Data>,
    /// Nothing is taken beyond this offset of the disk.
    disk_max: u64,
}

impl Sink for Memory {
    fn put(&self, piece: Piece<'_>) -> io::Result<()> {
        if piece.offset > self.disk_max {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut data = self.data.lock().map_err(|_| io::ErrorKind::Other)?;
        match piece.body {
            Body::Zero(len) => {
                assert!(len > 0, "no piece is empty");
                let double = data.zeros.insert(piece.offset, len);
                assert!(double.is_none(), "no two pieces begin at {:#x}", piece.offset);
            }
            Body::Data(bytes) => {
                data.bytes += bytes.len() as u64;
                if data.bytes > DATA_MAX {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let double = data.runs.insert(piece.offset, bytes.to_vec());
                assert!(double.is_none(), "no two pieces begin at {:#x}", piece.offset);
            }
        }
        Ok(())
    }
}

/// Storage in memory: what a decoder sets aside, and images that are written to.
#[derive(Default)]
struct Spill(Mutex<Vec<u8>>);

impl ReadAt for Spill {
    fn len(&self) -> u64 {
        self.0.lock().map_or(0, |bytes| bytes.len() as u64)
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.lock().map_err(|_| io::ErrorKind::Other)?.read_exact_at(buf, offset)
    }
}

impl WriteAt for Spill {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
        let end = offset as usize + data.len();
        if end > GROWN_MAX {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        if len > GROWN_MAX as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.write_all_at(&vec![0; len as usize], offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
