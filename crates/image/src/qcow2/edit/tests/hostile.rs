//! Hostile and damaged images: whatever becomes of the guest's data in them, nothing panics or runs
//! away, and the header stays.
#![expect(clippy::disallowed_methods, reason = "how long a file takes is what is tested")]

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bootyard_testkit::hostile_files;

use super::model::Random;
use super::{Memory, image, put};
use crate::qcow2::edit;
use crate::raw::FileAt;
use crate::stream::Storage;
use crate::{Error, ReadAt, WriteAt};

const TIME_MAX: Duration = Duration::from_secs(5);
/// Nothing is stored behind this place, and nothing larger in one piece.
const END: u64 = 1 << 40;
const PIECE_MAX: usize = 32 << 20;
const PAGE: u64 = 4096;

/// A file that is not changed: what is written lies over it.
struct Over {
    file: Box<dyn ReadAt>,
    pages: Mutex<(HashMap<u64, Vec<u8>>, u64)>,
}

impl Over {
    fn new(file: Box<dyn ReadAt>) -> Self {
        let len = file.len();
        Self { file, pages: Mutex::new((HashMap::new(), len)) }
    }

    fn page(&self, number: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        let there = self.file.len().saturating_sub(number * PAGE).min(PAGE) as usize;
        if there > 0 {
            self.file.read_exact_at(&mut page[..there], number * PAGE).unwrap();
        }
        page
    }
}

impl ReadAt for Over {
    fn len(&self) -> u64 {
        self.pages.lock().unwrap().1
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        assert!(buf.len() <= PIECE_MAX, "{} bytes are read at once", buf.len());
        let pages = self.pages.lock().unwrap();
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > pages.1) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let page = pages.0.get(&(at / PAGE)).cloned().unwrap_or_else(|| self.page(at / PAGE));
            let skip = (at % PAGE) as usize;
            let len = (PAGE as usize - skip).min(buf.len() - done);
            buf[done..done + len].copy_from_slice(&page[skip..skip + len]);
            done += len;
        }
        Ok(())
    }
}

impl WriteAt for Over {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end < END);
        let end = end.ok_or(io::ErrorKind::StorageFull)?;
        assert!(data.len() <= PIECE_MAX, "{} bytes are written at once", data.len());
        let (pages, len) = &mut *self.pages.lock().unwrap();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let page = pages.entry(at / PAGE).or_insert_with(|| self.page(at / PAGE));
            let skip = (at % PAGE) as usize;
            let part = (PAGE as usize - skip).min(data.len() - done);
            page[skip..skip + part].copy_from_slice(&data[done..done + part]);
            done += part;
        }
        *len = (*len).max(end);
        Ok(())
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.write_all_at(&vec![0; len as usize], offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens an image and writes to it in several places. Returns whether all of it went well.
fn write<S: Storage>(storage: S, what: &str) -> bool {
    let begin = Instant::now();
    let wrote = try_to_write(storage, what);
    let time = begin.elapsed();
    assert!(time < TIME_MAX, "{what} took {time:?}");
    wrote.is_ok()
}

fn try_to_write<S: Storage>(storage: S, what: &str) -> Result<(), Error> {
    use crate::Disk;
    let editor = edit(storage, None)?;
    let mut before = [0; 48];
    editor.storage().read_exact_at(&mut before, 0).unwrap();
    let writer = editor.writer().unwrap();
    let size = editor.virtual_size();
    let mut failure = Ok(());
    for place in [0, size / 3, size / 2, size.saturating_sub(100_000)] {
        let len = (size - place).min(100_000);
        let data = bootyard_testkit::pseudo_random(len as usize, place);
        let stored = writer.write_at(&data, place);
        failure = failure.and(stored).and(editor.read_at(&mut vec![0; data.len()], place));
    }
    for (place, discard) in [(size / 3, true), (0, false)] {
        failure = failure.and(writer.zero_at((size - place).min(1 << 20), place, discard));
    }
    failure = failure.and(writer.flush());
    let mut after = [0; 48];
    editor.storage().read_exact_at(&mut after, 0).unwrap();
    assert_eq!(after, before, "{what}");
    failure.and_then(|()| editor.extent_at(size.saturating_sub(1)).map(drop))
}

#[test]
fn hostile_files_are_refused_or_written_within_limits() {
    let Some(made) = hostile_files("qcow2/*") else { return };
    let mut written = 0;
    for file in &made.files {
        let open = fs_err::File::open(&file.path).unwrap();
        let over = Over::new(Box::new(FileAt::new(open.into()).unwrap()));
        written += u32::from(write(over, &file.name));
    }
    assert!(written >= 5, "those that are good can be written: {written}");
}

#[test]
fn damage_of_any_kind_is_survived() {
    let good = image(300_032, 9);
    try_to_write(good.clone(), "the good one").unwrap();
    let good = good.bytes();
    let number =
        |at: usize, len| good[at..at + len].iter().fold(0, |n, b| n << 8 | usize::from(*b));
    let (l1, table) = (number(40, 8), number(48, 8));
    let (block, l2) = (number(table, 8), number(l1 + 2, 6));
    let mut written = 0;
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let mut file = good.clone();
        for _ in 0..=random.below(3) {
            let tables = [4, 20, 72, l1, table, block, l2, l2];
            let begin = tables[random.below(8) as usize];
            let at = begin + random.below(96) as usize / 8 * 8;
            let host = random.below(64) << 9;
            let values =
                [host, host | 1 << 63, host | 1 << 62, random.next(), 1 << random.below(64)];
            let value = values[random.below(5) as usize];
            put(&mut file, &value.to_be_bytes(), at as u64);
        }
        written += u32::from(write(Over::new(Box::new(file)), &format!("seed {seed}")));
    }
    assert!(written > 20, "not all damage is fatal: {written}");
}

#[test]
fn no_table_is_overwritten_because_it_is_counted_as_free() {
    let memory = image(1 << 20, 16);
    let file = memory.bytes();
    // Nothing is used, says the refcount block, which is the third cluster.
    for cluster in 0..4 {
        let mut file = file.clone();
        put(&mut file, &[0, 0], (2 << 16) + cluster * 2);
        let memory = Memory::of(file.clone());
        let editor = edit(memory.clone(), None).unwrap();
        let error = crate::WriteDisk::write_at(&editor, &[1; 512], 0).unwrap_err();
        assert_eq!(error.offset(), Some(cluster << 16), "{error}");
        assert!(memory.bytes() == file);
    }
}

#[test]
fn a_table_that_a_snapshot_names_without_end_is_counted_once() {
    let memory = image(1 << 29, 16);
    assert!(write(memory.clone(), "the good one"));
    let mut file = memory.bytes();
    let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let l1 = number(40);
    let l1_entry = number(l1 as usize);
    let l2 = l1_entry & 0x00ff_ffff_ffff_fe00;
    let l2_table: Vec<u8> =
        (0..8192).flat_map(|_| (number(l2 as usize) & !(1 << 63)).to_be_bytes()).collect();
    put(&mut file, &l2_table, l2);
    // 2^15 entries of a snapshot name the table, with its 2^13 entries.
    let snapshot_l1 = file.len().next_multiple_of(1 << 16) as u64;
    put(&mut file, &l2.to_be_bytes().repeat(1 << 15), snapshot_l1);
    let snapshot = snapshot_l1 + (1 << 18);
    let entry = [snapshot_l1, 1 << 47, 0, 0, 16, 0, 1 << 29].map(u64::to_be_bytes);
    put(&mut file, entry.as_flattened(), snapshot);
    put(&mut file, &1_u32.to_be_bytes(), 60);
    put(&mut file, &snapshot.to_be_bytes(), 64);
    // Marked as dirty, with refcounts of 64 bits, which count on and on.
    put(&mut file, &1_u64.to_be_bytes(), 72);
    put(&mut file, &6_u32.to_be_bytes(), 96);
    let memory = Memory::of(file);
    assert!(write(memory.clone(), "a snapshot that repeats itself"));
    assert_eq!(memory.bytes()[72..80], [0; 8]);
}
