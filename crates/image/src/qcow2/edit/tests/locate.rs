//! Places of the guest's data for those who move it themselves: against the model, and against the
//! commits that would give the places away.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::model::{Model, Random};
use crate::qcow2::{Backing, BackingFormat, Create, create, edit};
use crate::raw::{FileAt, RawDisk};
use crate::{Disk, Location, Payload, ReadAt, WriteAt};

const SIZE: u64 = 1 << 20;

/// Bytes that are handed over as a guest's memory is.
struct Bytes(Vec<u8>);

impl Payload for Bytes {
    fn size(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, at: usize, buf: &mut [u8]) {
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
    }

    fn write_to(&self, range: Range<usize>, file: BorrowedFd<'_>, offset: u64) -> io::Result<()> {
        FileAt::new(file.try_clone_to_owned()?.into())?.write_all_at(&self.0[range], offset)
    }
}

fn image(cluster_bits: u32, overlay: bool) -> FileAt {
    let file = FileAt::new(tempfile::tempfile().unwrap()).unwrap();
    let backing = Backing { name: "base".to_owned(), format: BackingFormat::Raw };
    let backing = overlay.then_some(backing);
    create(&file, &Create { cluster_bits, backing, ..Create::new(SIZE) }).unwrap();
    file
}

/// Compares what the places say with what the disk should have. Gives how much was in files.
fn check(disk: &dyn Disk, expected: &[u8], random: &mut Random) -> u64 {
    let (mut at, mut in_files, mut elsewhere) = (0, 0, 0);
    while at < SIZE {
        let most = 1 + random.below(100_000);
        let Some(located) = disk.locate(at, most) else {
            // Behind the file's end, in its last cluster.
            let mut found = vec![0; 65536.min((SIZE - at) as usize)];
            disk.read_at(&mut found, at).unwrap();
            assert!(found == expected[at as usize..][..found.len()]);
            (at, elsewhere) = (at + found.len() as u64, elsewhere + 1);
            continue;
        };
        assert!((1..=most).contains(&located.len) && at + located.len <= SIZE);
        let mut found = vec![0; located.len as usize];
        if let Location::File { file, offset, .. } = &located.at {
            let file = FileAt::new(file.try_clone_to_owned().unwrap().into()).unwrap();
            file.read_exact_at(&mut found, *offset).unwrap();
            in_files += located.len;
        }
        assert!(found == expected[at as usize..][..found.len()], "{} bytes at {at}", located.len);
        at += located.len;
    }
    assert!(elsewhere <= 1, "nothing here is packed, and nobody commits");
    in_files
}

#[test]
fn places_are_where_the_data_is_whoever_wrote_it() {
    for (cluster_bits, overlay) in [(9, false), (12, true), (16, false), (16, true)] {
        let mut random = Random::new(u64::from(cluster_bits) * 2 + u64::from(overlay));
        let below: Vec<u8> = (0..SIZE - 70_000).map(|at| (at / 1000) as u8).collect();
        let base = FileAt::new(tempfile::tempfile().unwrap()).unwrap();
        base.write_all_at(&below, 0).unwrap();
        let backing = overlay.then(|| Box::new(RawDisk::read_only(base)) as Box<dyn Disk>);
        let mut disk = if overlay { below } else { Vec::new() };
        disk.resize(SIZE as usize, 0);
        let mut model = Model::new(disk);
        let editor = edit(image(cluster_bits, overlay), backing).unwrap();
        let mut in_files = 0;
        for _ in 0..40 {
            model.step(&editor, &mut random);
            let (at, len) = random.range(SIZE);
            let data = Bytes((0..len).map(|_| random.next() as u8).collect());
            editor.writer().unwrap().write_payload_at(&data, at).unwrap();
            model.disk[at as usize..][..len as usize].copy_from_slice(&data.0);
            in_files += check(&editor, &model.disk, &mut random);
        }
        assert!(in_files > 0);
        editor.writer().unwrap().flush().unwrap();
        if !overlay {
            check(&crate::qcow2::open(editor.storage()).unwrap(), &model.disk, &mut random);
        }
    }
}

#[test]
fn a_place_in_use_is_given_to_nobody_else() {
    let editor = edit(image(12, false), None).unwrap();
    let writer = editor.writer().unwrap();
    writer.write_at(&[7; 4096], 0).unwrap();
    writer.flush().unwrap();
    let located = editor.locate(0, 4096).unwrap();
    let &Location::File { offset, .. } = &located.at else { panic!("{located:?}") };
    // It is discarded, and its cluster would be the next one's with the next commit.
    writer.zero_at(4096, 0, true).unwrap();
    let committed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.flush().unwrap();
            committed.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(30));
        assert!(!committed.load(Ordering::SeqCst), "the commit waits");
        assert!(editor.locate(0, 4096).is_none(), "nobody waits for the commit");
        let mut found = [0; 4096];
        editor.storage().read_exact_at(&mut found, offset).unwrap();
        assert_eq!(found, [7; 4096]);
        drop(located);
    });
    assert!(committed.load(Ordering::SeqCst));
    assert!(matches!(editor.locate(0, 4096).unwrap().at, Location::Zeros));
}
