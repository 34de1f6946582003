//! Power cuts: storage that loses any of the sectors that were written since the last sync, and
//! does so in the middle of anything.

use std::io;
use std::sync::{Arc, Mutex};

use super::model::Random;
use super::{Memory, backing, image, put, walk};
use crate::qcow2::edit;
use crate::{Disk, ReadAt, WriteAt};

const SECTOR: usize = 512;

/// A file whose power fails at the operation number `cut`.
#[derive(Clone)]
struct Lossy(Arc<Mutex<Inner>>);

struct Inner {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Since the last sync.
    writes: Vec<(u64, Vec<u8>)>,
    cut: u64,
    random: Random,
    /// What a power cut left.
    left: Option<Vec<u8>>,
}

impl Lossy {
    fn new(file: Vec<u8>, cut: u64, random: Random) -> Self {
        let (durable, writes, left) = (file.clone(), Vec::new(), None);
        Self(Arc::new(Mutex::new(Inner { now: file, durable, writes, cut, random, left })))
    }

    fn left(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap().left.clone()
    }
}

impl Inner {
    fn count(&mut self) {
        match self.cut.checked_sub(1) {
            Some(left) => self.cut = left,
            None if self.left.is_none() => self.left = Some(self.fail()),
            None => {}
        }
    }

    /// What is there after the power failed now: of each write, any of its sectors.
    fn fail(&mut self) -> Vec<u8> {
        let mut file = self.durable.clone();
        let kept = [0, 10, 50, 90, 100][self.random.below(5) as usize];
        for (offset, data) in &self.writes {
            let mut at = 0;
            while at < data.len() {
                let place = *offset as usize + at;
                let end = data.len().min(at + SECTOR - place % SECTOR);
                if self.random.below(100) < kept {
                    put(&mut file, &data[at..end], place as u64);
                }
                at = end;
            }
        }
        file
    }
}

impl ReadAt for Lossy {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().now.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.lock().unwrap().now.read_exact_at(buf, offset)
    }
}

impl WriteAt for Lossy {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        put(&mut inner.now, data, offset);
        inner.writes.push((offset, data.to_vec()));
        inner.count();
        Ok(())
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.write_all_at(&vec![0; len as usize], offset)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.count();
        inner.durable = inner.now.clone();
        inner.writes.clear();
        Ok(())
    }
}

/// For each sector, what was flushed and what was written since.
struct Sectors(Vec<Vec<u8>>);

impl Sectors {
    fn of(disk: &[u8]) -> Self {
        // The contents are told by the first byte; only the backing disk's are arbitrary.
        Self(disk.chunks(SECTOR).map(|sector| vec![sector[0]]).collect())
    }

    fn flushed(&mut self) {
        for values in &mut self.0 {
            values.drain(..values.len() - 1);
        }
    }
}

/// Writes to `disk`, in whole sectors, until the power fails.
fn write_until_cut(disk: &dyn Disk, storage: &Lossy, sectors: &mut Sectors, random: &mut Random) {
    let writer = disk.writer().unwrap();
    for _ in 0..400 {
        let first = random.below(sectors.0.len() as u64) as usize;
        let most = [1, 6, 40, 300][random.below(4) as usize];
        let len = (1 + random.below(most) as usize).min(sectors.0.len() - first);
        let (at, bytes) = ((first * SECTOR) as u64, len * SECTOR);
        let kind = random.below(12);
        let value = if kind < 8 { random.next() as u8 } else { 0 };
        if kind < 11 {
            sectors.0[first..first + len].iter_mut().for_each(|values| values.push(value));
        }
        match kind {
            0..8 => writer.write_at(&vec![value; bytes], at).unwrap(),
            8..11 => writer.zero_at(bytes as u64, at, kind > 8).unwrap(),
            _ => writer.flush().unwrap(),
        }
        if storage.left().is_some() {
            return;
        }
        if kind == 11 {
            sectors.flushed();
        }
    }
}

/// Lets the power fail once while `file` is written to. Returns what was left of it, after all
/// checks.
pub(super) fn cut(file: &[u8], backing_len: Option<usize>, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let cut = random.below(600);
    let storage = Lossy::new(file.to_vec(), cut, Random::new(seed ^ 0x5eed));
    let disk = || backing_len.map(|len| backing(len).1);
    let editor = edit(storage.clone(), disk()).unwrap();
    let mut before = vec![0; editor.virtual_size() as usize];
    editor.read_at(&mut before, 0).unwrap();
    let mut sectors = Sectors::of(&before);
    write_until_cut(&editor, &storage, &mut sectors, &mut random);
    let left = storage.left().unwrap_or_else(|| file.to_vec());
    if storage.left().is_none() {
        return left;
    }
    walk(&left);
    let memory = Memory::of(left.clone());
    let editor = edit(memory.clone(), disk()).unwrap();
    let mut after = vec![0; before.len()];
    editor.read_at(&mut after, 0).unwrap();
    for (index, (sector, values)) in after.chunks(SECTOR).zip(&sectors.0).enumerate() {
        let known = values.contains(&sector[0]);
        assert!(known, "seed {seed}: sector {index} is {}, expected one of {values:?}", sector[0]);
        let whole = sector.iter().all(|byte| *byte == sector[0])
            || sector == &before[index * SECTOR..][..sector.len()];
        assert!(whole, "seed {seed}: sector {index} is torn");
    }
    // Life goes on.
    let writer = editor.writer().unwrap();
    writer.write_at(&before, 0).unwrap();
    writer.flush().unwrap();
    walk(&memory.bytes());
    left
}

#[test]
fn after_a_power_cut_nothing_is_corrupt_and_all_that_was_flushed_is_there() {
    for seed in 0..200 {
        let cluster_bits = [9, 10, 12, 16][seed as usize % 4];
        cut(&image(300_032, cluster_bits).bytes(), None, seed);
    }
}

#[test]
fn a_power_cut_spares_overlays() {
    for seed in 0..60 {
        let cluster_bits = [9, 12, 16][seed as usize % 3];
        let memory = Memory::default();
        let format = crate::qcow2::BackingFormat::Raw;
        let under = crate::qcow2::Backing { name: "base".to_owned(), format };
        let options = crate::qcow2::Create {
            cluster_bits,
            backing: Some(under),
            ..crate::qcow2::Create::new(300_032)
        };
        crate::qcow2::create(&memory, &options).unwrap();
        cut(&memory.bytes(), Some(200_192), seed);
    }
}

/// Storage that does not sync must fail the tests above, else they prove nothing.
#[test]
fn the_cuts_find_tables_that_are_written_without_order() {
    let corrupt = (0..200).filter(|seed| {
        let mut random = Random::new(*seed);
        let storage = Lossy::new(image(300_032, 9).bytes(), random.below(600), Random::new(*seed));
        let editor = edit(Unordered(storage.clone()), None).unwrap();
        let mut sectors = Sectors::of(&[0; 300_032]);
        write_until_cut(&editor, &storage, &mut sectors, &mut random);
        let left = storage.left();
        left.is_some_and(|left| std::panic::catch_unwind(|| walk(&left)).is_err())
    });
    assert!(corrupt.count() > 20);
}

struct Unordered(Lossy);

impl ReadAt for Unordered {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

impl WriteAt for Unordered {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.0.zero_at(len, offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
