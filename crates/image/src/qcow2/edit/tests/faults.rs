//! Storage that fails now and then: what a request that failed was to change is old or new, and all
//! else is as if nothing had happened.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::model::Random;
use super::{Memory, image, walk};
use crate::qcow2::{Create, create, edit};
use crate::{Disk, Error, ErrorKind, ReadAt, WriteAt, conformance};

const SECTOR: usize = 512;
const SIZE: usize = 300_032;

/// A file of whose operations some fail: none in 0, one in `odds` otherwise.
#[derive(Clone)]
struct Flaky {
    memory: Memory,
    odds: Arc<Mutex<(u64, Random)>>,
}

impl Flaky {
    fn new(memory: Memory, seed: u64) -> Self {
        Self { memory, odds: Arc::new(Mutex::new((0, Random::new(seed)))) }
    }

    fn set_odds(&self, odds: u64) {
        self.odds.lock().unwrap().0 = odds;
    }

    fn fails(&self) -> bool {
        let (odds, random) = &mut *self.odds.lock().unwrap();
        *odds > 0 && random.below(*odds) == 0
    }
}

impl ReadAt for Flaky {
    fn len(&self) -> u64 {
        self.memory.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.fails() {
            return Err(io::Error::other("a bad sector"));
        }
        self.memory.read_exact_at(buf, offset)
    }
}

impl WriteAt for Flaky {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if self.fails() {
            let some = data.len() / SECTOR / 2 * SECTOR;
            self.memory.write_all_at(&data[..some], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.memory.write_all_at(data, offset)
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.write_all_at(&vec![0; len as usize], offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to the disk while its storage fails, and compares it with `sectors`, what each may hold.
fn write_on(disk: &dyn Disk, flaky: &Flaky, sectors: &mut [Vec<u8>], seed: u64) {
    let (writer, mut random) = (disk.writer().unwrap(), Random::new(seed));
    for step in 0..150 {
        let first = random.below(sectors.len() as u64) as usize;
        let most = [1, 6, 40, 300][random.below(4) as usize];
        let len = (1 + random.below(most) as usize).min(sectors.len() - first);
        let (at, bytes) = ((first * SECTOR) as u64, len * SECTOR);
        let kind = random.below(12);
        let value = if kind < 8 { random.next() as u8 } else { 0 };
        flaky.set_odds([0, 3, 10, 40][random.below(4) as usize]);
        let done = match kind {
            0..8 => writer.write_at(&vec![value; bytes], at),
            8..11 => writer.zero_at(bytes as u64, at, kind > 8),
            _ => writer.flush(),
        };
        flaky.set_odds(0);
        let changed = &mut sectors[first..first + len];
        match done {
            _ if kind == 11 => {}
            Ok(()) => changed.iter_mut().for_each(|values| *values = vec![value]),
            Err(_) => changed.iter_mut().for_each(|values| values.push(value)),
        }
        let found = conformance::read_all(disk);
        for (index, (sector, values)) in found.chunks(SECTOR).zip(sectors.iter()).enumerate() {
            let known = values.iter().any(|value| sector.iter().all(|byte| byte == value));
            assert!(known, "seed {seed}, step {step}: sector {index} is {}", sector[0]);
        }
    }
}

fn check(memory: &Memory, backing: impl Fn() -> Option<Box<dyn Disk>>, seed: u64) {
    let flaky = Flaky::new(memory.clone(), seed ^ 0xbad);
    let editor = edit(flaky.clone(), backing()).unwrap();
    let before = conformance::read_all(&editor);
    let mut sectors: Vec<_> = before.chunks(SECTOR).map(|sector| vec![sector[0]]).collect();
    write_on(&editor, &flaky, &mut sectors, seed);
    editor.writer().unwrap().flush().unwrap();
    let after = conformance::read_all(&editor);
    assert_eq!(walk(&memory.bytes()).leaks, 0, "seed {seed}");
    drop(editor);
    assert!(conformance::read_all(&edit(memory.clone(), backing()).unwrap()) == after);
}

#[test]
fn what_fails_harms_nothing_else() {
    for seed in 0..80 {
        check(&image(SIZE as u64, [9, 10, 12, 16][seed as usize % 4]), || None, seed);
    }
}

#[test]
fn what_fails_harms_no_overlay() {
    for seed in 0..40 {
        let memory = Memory::default();
        let format = crate::qcow2::BackingFormat::Raw;
        let under = crate::qcow2::Backing { name: "base".to_owned(), format };
        let cluster_bits = [9, 12, 16][seed as usize % 3];
        let options = Create { cluster_bits, backing: Some(under), ..Create::new(SIZE as u64) };
        create(&memory, &options).unwrap();
        let base = || -> Option<Box<dyn Disk>> {
            let bytes: Vec<u8> = (0..200_704).map(|at| (at / SECTOR) as u8).collect();
            Some(Box::new(crate::raw::RawDisk::read_only(bytes)))
        };
        check(&memory, base, seed);
    }
}

/// A file whose sync fails once.
struct Unsynced(Memory, AtomicBool);

impl ReadAt for Unsynced {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

impl WriteAt for Unsynced {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.0.zero_at(len, offset)
    }

    fn sync(&self) -> io::Result<()> {
        match self.1.swap(false, Ordering::Relaxed) {
            true => Err(io::Error::other("what was written is lost")),
            false => Ok(()),
        }
    }
}

#[test]
fn no_flush_succeeds_after_one_that_lost_data() {
    for dirty in [false, true] {
        let storage = Unsynced(image(1 << 20, 16), AtomicBool::new(false));
        let editor = edit(storage, None).unwrap();
        let writer = editor.writer().unwrap();
        writer.write_at(&[1; SECTOR], 0).unwrap();
        if !dirty {
            writer.flush().unwrap();
        }
        writer.write_at(&[2; SECTOR], 0).unwrap();
        editor.storage().1.store(true, Ordering::Relaxed);
        let kinds = [(); 3].map(|()| writer.flush().map_err(|error: Error| error.kind()));
        assert_eq!(kinds, [Err(ErrorKind::Write); 3], "dirty: {dirty}");
        writer.write_at(&[3; SECTOR], 0).unwrap_err();
    }
}

#[test]
fn a_place_for_zeros_beyond_the_end_is_not_written_to() {
    let memory = image(1 << 20, 16);
    let editor = edit(memory.clone(), None).unwrap();
    editor.writer().unwrap().write_at(&[1; SECTOR], 0).unwrap();
    editor.writer().unwrap().flush().unwrap();
    drop(editor);
    let bytes = memory.bytes();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l2 = number(number(40) as usize) & 0x00ff_ffff_ffff_fe00;
    let entry: u64 = 1 << 63 | 1 << 40 | 1;
    memory.write_all_at(&entry.to_be_bytes(), l2 + 8).unwrap();
    let editor = edit(memory.clone(), None).unwrap();
    let writer = editor.writer().unwrap();
    writer.write_at(&[2; 3 << 16], 0).unwrap();
    writer.flush().unwrap();
    assert!(conformance::read_all(&editor)[..3 << 16] == [2; 3 << 16]);
    assert!(memory.len() < 16 << 16, "{}", memory.len());
    walk(&memory.bytes());
}
