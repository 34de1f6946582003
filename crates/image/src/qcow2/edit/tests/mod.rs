//! Tests of writing: a model to compare with, a walk that counts every reference, `qemu-img` as
//! the judge, power cuts, storage that fails.

mod crash;
mod faults;
mod hostile;
mod locate;
mod model;
mod oracle;
mod walk;

use std::io;
use std::sync::{Arc, Mutex};

use self::model::{Model, Random};
use self::walk::walk;
use crate::qcow2::{Create, create, edit};
use crate::raw::RawDisk;
use crate::{Disk, ErrorKind, ReadAt, WriteAt, conformance};

/// A file in memory.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn of(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl ReadAt for Memory {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.lock().unwrap().read_exact_at(buf, offset)
    }
}

impl WriteAt for Memory {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        put(&mut self.0.lock().unwrap(), data, offset);
        Ok(())
    }

    fn zero_at(&self, len: u64, offset: u64) -> io::Result<()> {
        self.write_all_at(&vec![0; len as usize], offset)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn put(file: &mut Vec<u8>, data: &[u8], offset: u64) {
    let end = offset as usize + data.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset as usize..end].copy_from_slice(data);
}

/// An empty image.
fn image(virtual_size: u64, cluster_bits: u32) -> Memory {
    let memory = Memory::default();
    let options = Create { cluster_bits, ..Create::new(virtual_size) };
    create(&memory, &options).unwrap();
    memory
}

fn backing(len: usize) -> (Vec<u8>, Box<dyn Disk>) {
    let bytes = bootyard_testkit::pseudo_random(len, 9);
    (bytes.clone(), Box::new(RawDisk::read_only(bytes)))
}

#[test]
fn conforms_with_clusters_of_every_size() {
    for cluster_bits in 9..=21 {
        for size in [0, 512, (1 << 20) + 512 * 7] {
            let memory = image(size, cluster_bits);
            conformance::check_writable(&edit(memory.clone(), None).unwrap(), size);
            assert_eq!(walk(&memory.bytes()).leaks, 0, "2^{cluster_bits}, {size}");
        }
    }
}

#[test]
fn conforms_over_a_backing_disk_of_any_size() {
    for (len, cluster_bits) in [(512, 9), (300_544, 12), (1 << 20, 16), (3 << 20, 16)] {
        let memory = Memory::default();
        let backing_options = crate::qcow2::Backing {
            name: "base".to_owned(),
            format: crate::qcow2::BackingFormat::Raw,
        };
        let options =
            Create { cluster_bits, backing: Some(backing_options), ..Create::new(1 << 20) };
        create(&memory, &options).unwrap();
        let error = edit(memory.clone(), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NeedsOtherFile);
        let (mut bytes, disk) = backing(len);
        let editor = edit(memory.clone(), Some(disk)).unwrap();
        bytes.resize(1 << 20, 0);
        assert!(conformance::read_all(&editor) == bytes, "what is under an empty overlay");
        conformance::check_writable(&editor, 1 << 20);
        assert_eq!(walk(&memory.bytes()).leaks, 0);
    }
}

#[test]
fn equal_options_give_equal_images() {
    assert_eq!(image(1 << 40, 16).bytes(), image(1 << 40, 16).bytes());
    assert_eq!(image(1 << 40, 16).len(), 4 << 16);
    let over = Memory::of(vec![0xee; 1 << 20]);
    create(&over, &Create::new(1 << 40)).unwrap();
    assert_eq!(over.bytes()[..4 << 16], image(1 << 40, 16).bytes()[..]);
}

#[test]
fn what_no_image_can_be_is_refused() {
    let backing = |name: &str| {
        let format = crate::qcow2::BackingFormat::Qcow2;
        Some(crate::qcow2::Backing { name: name.to_owned(), format })
    };
    for (options, kind, expected) in [
        (
            Create { cluster_bits: 8, ..Create::new(1) },
            ErrorKind::OutOfRange,
            "expected clusters of 2^9 to 2^21 bytes, got 2^8",
        ),
        (
            Create { cluster_bits: 9, ..Create::new(1 << 40) },
            ErrorKind::TooLarge,
            "a disk of 1099511627776 bytes does not fit in clusters of 512",
        ),
        (
            Create { backing: backing(""), ..Create::new(1) },
            ErrorKind::OutOfRange,
            "expected a backing file name of 1 to 1023 bytes, got 0",
        ),
        (
            Create { backing: backing(&"x".repeat(400)), cluster_bits: 9, ..Create::new(1) },
            ErrorKind::OutOfRange,
            "expected a backing file name of 1 to 384 bytes, got 400",
        ),
    ] {
        let error = create(&Memory::default(), &options).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (kind, expected));
    }
}

/// Runs `ops` random operations with flushes and reopenings in between, and checks image and
/// contents at the end of each round.
fn live(memory: &Memory, model: &mut Model, backing_len: Option<usize>, seed: u64, ops: usize) {
    let mut random = Random::new(seed);
    for _ in 0..3 {
        let editor = edit(memory.clone(), backing_len.map(|len| backing(len).1)).unwrap();
        for _ in 0..ops {
            model.step(&editor, &mut random);
        }
        editor.writer().unwrap().flush().unwrap();
        assert!(conformance::read_all(&editor) == model.disk, "seed {seed}");
        assert_eq!(walk(&memory.bytes()).leaks, 0, "seed {seed}");
    }
}

#[test]
fn random_lives_end_as_the_model_does() {
    for seed in 0..40 {
        let cluster_bits = [9, 10, 12, 16][seed as usize % 4];
        let memory = image(700_416, cluster_bits);
        live(&memory, &mut Model::new(vec![0; 700_416]), None, seed, 60);
    }
}

#[test]
fn space_that_was_discarded_is_used_again() {
    let memory = image(1 << 20, 12);
    let editor = edit(memory.clone(), None).unwrap();
    let writer = editor.writer().unwrap();
    let mut sizes = Vec::new();
    for round in 0..20 {
        writer.write_at(&vec![round; 1 << 20], 0).unwrap();
        writer.flush().unwrap();
        writer.zero_at(1 << 20, 0, true).unwrap();
        writer.flush().unwrap();
        sizes.push(memory.len());
    }
    assert!(sizes[19] <= sizes[1], "{sizes:?}");
    assert!(memory.bytes().iter().filter(|byte| **byte == 7).count() < 512, "holes are punched");
}

#[test]
fn many_threads_write_side_by_side() {
    for cluster_bits in [9, 12, 16] {
        let memory = image(4 << 20, cluster_bits);
        let editor = edit(memory.clone(), None).unwrap();
        // Thread t has the sectors t, t + 4, t + 8, …: all share each cluster.
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let editor = &editor;
                scope.spawn(move || {
                    let writer = editor.writer().unwrap();
                    let mut random = Random::new(thread);
                    let mut sectors = vec![0_u8; 2048];
                    for step in 0..1500_u64 {
                        let index = random.below(2048);
                        let at = (index * 4 + thread) * 512;
                        let value = step as u8 | 1;
                        match random.below(20) {
                            0 => writer.flush().unwrap(),
                            1..4 => {
                                writer.zero_at(512, at, step % 2 == 0).unwrap();
                                sectors[index as usize] = 0;
                            }
                            _ => {
                                writer.write_at(&[value; 512], at).unwrap();
                                sectors[index as usize] = value;
                            }
                        }
                        let mut sector = [0; 512];
                        editor.read_at(&mut sector, at).unwrap();
                        assert_eq!(sector, [sectors[index as usize]; 512]);
                    }
                    for (index, value) in sectors.iter().enumerate() {
                        let mut sector = [0; 512];
                        editor.read_at(&mut sector, (index as u64 * 4 + thread) * 512).unwrap();
                        assert_eq!(sector, [*value; 512]);
                    }
                });
            }
        });
        editor.writer().unwrap().flush().unwrap();
        assert_eq!(walk(&memory.bytes()).leaks, 0);
    }
}
