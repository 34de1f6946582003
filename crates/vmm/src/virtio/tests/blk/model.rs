//! Random mixes of requests over several virtqueues against bytes in memory: raw files and qcow2 images
//! with what they lie over, with data that is in the host's memory and that is not, and resets in the
//! middle.

use std::fs::File;
use std::sync::Arc;

use bootyard_image::qcow2::{Backing, BackingFormat, Create, create, edit};
use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_image::{Disk, WriteAt};
use proptest::prelude::*;
use rustix::fs::{Advice, fadvise};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{ALL, DISCARD, FLUSH, IN, OK, OUT, WRITE_ZEROES, range};
use crate::virtio::Block;
use crate::virtio::tests::QUEUE;
use crate::virtio::tests::guest::{Driver, EVENT_IDX, GuestQueue, Machine};

/// Sectors of the disk.
const SECTORS: u64 = 2048;
const QUEUES: u16 = 3;
/// Memory of each request of a virtqueue: header, status, data.
const SLOT: u64 = 64 << 10;
const DATA_MAX: u64 = SLOT - 0x1000;

#[derive(Debug, Clone, Copy)]
enum Storage {
    Raw,
    Qcow2,
    Overlay,
}

#[derive(Debug, Clone)]
enum Step {
    /// One request for each virtqueue, all at once. Each has a third of the disk.
    Requests(Vec<Action>),
    /// Nothing is in the host's memory any more.
    Forget,
    /// Requests that nobody waits for.
    Reset(Vec<Action>),
}

#[derive(Debug, Clone, Copy)]
struct Action {
    kind: u32,
    sector: u64,
    sectors: u64,
    value: u8,
    /// Bytes of the first piece of memory.
    cut: u32,
}

fn action() -> impl Strategy<Value = Action> {
    let kind = prop_oneof![4 => Just(IN), 4 => Just(OUT), 1 => Just(DISCARD), 1 => Just(WRITE_ZEROES), 1 => Just(FLUSH)];
    let third = SECTORS / u64::from(QUEUES);
    (kind, 0..third - 1, 1..DATA_MAX / 512, 1_u8.., 1_u32..2000).prop_map(
        move |(kind, sector, sectors, value, cut)| {
            let sectors = sectors.min(third - sector);
            Action { kind, sector, sectors, value, cut }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let actions = || prop::collection::vec(action(), usize::from(QUEUES));
    prop_oneof![
        8 => actions().prop_map(Step::Requests),
        2 => Just(Step::Forget),
        1 => actions().prop_map(Step::Reset),
    ]
}

fn make(storage: Storage) -> (Arc<dyn Disk>, Vec<u8>, Vec<File>) {
    let mut model: Vec<u8> =
        (0..SECTORS).flat_map(|sector| [(sector % 251) as u8 + 1; 512]).collect();
    let file = || FileAt::new(tempfile::tempfile().unwrap()).unwrap();
    let data = file();
    data.write_all_at(&model, 0).unwrap();
    let mut files = vec![data.file().try_clone().unwrap()];
    if matches!(storage, Storage::Raw) {
        return (Arc::new(RawDisk::new(data)), model, files);
    }
    let image = file();
    let named = Backing { name: "base".to_owned(), format: BackingFormat::Raw };
    let overlay = matches!(storage, Storage::Overlay);
    let backing = overlay.then_some(named);
    create(&image, &Create { cluster_bits: 12, backing, ..Create::new(SECTORS * 512) }).unwrap();
    files.push(image.file().try_clone().unwrap());
    let below = overlay.then(|| Box::new(RawDisk::read_only(data)) as Box<dyn Disk>);
    if !overlay {
        model.fill(0);
    }
    (Arc::new(edit(image, below).unwrap()), model, files)
}

/// Offers a request in the memory of virtqueue `index`, and rings.
fn offer(queue: &mut GuestQueue<'_, '_>, index: u64, action: Action, event_idx: bool) {
    let base = 0x10_0000 + index * SLOT;
    let sector = action.sector + index * (SECTORS / u64::from(QUEUES));
    let memory = queue.memory();
    let of_ranges = matches!(action.kind, DISCARD | WRITE_ZEROES);
    let first = if of_ranges || action.kind == FLUSH { 0 } else { sector };
    memory.write_obj(u64::from(action.kind), GuestAddress(base)).unwrap();
    memory.write_obj(first, GuestAddress(base + 8)).unwrap();
    memory.write_obj(0xee_u8, GuestAddress(base + 16)).unwrap();
    let data = base + 0x1000;
    let mut len = (action.sectors * 512) as u32;
    match action.kind {
        OUT => memory.write_slice(&vec![action.value; len as usize], GuestAddress(data)).unwrap(),
        IN => memory.write_slice(&vec![0xdd; len as usize], GuestAddress(data)).unwrap(),
        FLUSH => len = 0,
        _ => {
            let ranges = range(sector, action.sectors as u32, 0);
            memory.write_slice(&ranges, GuestAddress(data)).unwrap();
            len = 16;
        }
    }
    let cut = action.cut.min(len.saturating_sub(1));
    let mut buffers = vec![(base, 16, false)];
    if len > 0 {
        let writable = action.kind == IN;
        buffers.extend([(data, cut, writable), (data + u64::from(cut), len - cut, writable)]);
    }
    buffers.push((base + 16, 1, true));
    buffers.retain(|(_, len, _)| *len > 0);
    if event_idx {
        queue.set_used_event(queue.used_index());
    }
    queue.offer(0, &buffers);
    queue.ring();
}

/// What the model has of an action, and what it has then.
fn apply(model: &mut [u8], index: u64, action: Action) -> &[u8] {
    let sector = action.sector + index * (SECTORS / u64::from(QUEUES));
    let bytes = &mut model[sector as usize * 512..][..action.sectors as usize * 512];
    match action.kind {
        OUT => bytes.fill(action.value),
        DISCARD | WRITE_ZEROES => bytes.fill(0),
        _ => {}
    }
    bytes
}

fn wait(queues: &mut [GuestQueue<'_, '_>], machine: &Machine) {
    let mut missing = queues.len();
    while missing > 0 {
        machine.interrupt();
        missing -= queues.iter_mut().filter_map(GuestQueue::take_used).count();
    }
}

fn check(memory: &GuestMemoryMmap, index: u64, action: Action, expected: &[u8]) {
    let base = 0x10_0000 + index * SLOT;
    let status: u8 = memory.read_obj(GuestAddress(base + 16)).unwrap();
    assert_eq!(status, OK, "{action:?}");
    if action.kind == IN {
        let mut found = vec![0; expected.len()];
        memory.read_slice(&mut found, GuestAddress(base + 0x1000)).unwrap();
        assert!(found == expected, "{action:?}");
    }
}

fn run(storage: Storage, [event_idx, io_uring]: [bool; 2], steps: &[Step]) {
    let (disk, mut model, files) = make(storage);
    let block = Block::new(Arc::clone(&disk), false, "model");
    let block = block.queues(QUEUES.into()).io_uring(io_uring);
    let (machine, _function, address) = Machine::with(block);
    let driver = Driver::bind(&machine, address);
    let features = if event_idx { ALL | EVENT_IDX } else { ALL };
    let mut queues = driver.start_queues(features, QUEUE, QUEUES);
    for step in steps {
        match step {
            Step::Requests(actions) => {
                for (index, (queue, action)) in (0..).zip(queues.iter_mut().zip(actions)) {
                    offer(queue, index, *action, event_idx);
                }
                wait(&mut queues, &machine);
                for (index, action) in (0..).zip(actions) {
                    let expected = apply(&mut model, index, *action);
                    check(&machine.memory, index, *action, expected);
                }
            }
            Step::Forget => {
                for file in &files {
                    file.sync_all().unwrap();
                    fadvise(file, 0, None, Advice::DontNeed).unwrap();
                }
            }
            Step::Reset(actions) => {
                for (index, (queue, action)) in (0..).zip(queues.iter_mut().zip(actions)) {
                    offer(queue, index, *action, event_idx);
                }
                driver.reset();
                machine.pending_interrupts();
                // Whatever became of them, nothing happens any more.
                let mut found = vec![0; model.len()];
                disk.read_at(&mut found, 0).unwrap();
                for (index, action) in (0..).zip(actions) {
                    let before = model.clone();
                    let sector = action.sector + index * (SECTORS / u64::from(QUEUES));
                    let places = sector as usize * 512..(sector + action.sectors) as usize * 512;
                    let after = apply(&mut model, index, *action).to_vec();
                    let found = &found[places.clone()];
                    let sectors = found.chunks(512).zip(before[places.clone()].chunks(512));
                    for ((found, before), after) in sectors.zip(after.chunks(512)) {
                        assert!(found == before || found == after, "{action:?}");
                    }
                    model[places].copy_from_slice(found);
                }
                queues = driver.start_queues(features, QUEUE, QUEUES);
            }
        }
    }
    let mut found = vec![0; model.len()];
    disk.read_at(&mut found, 0).unwrap();
    assert!(found == model, "the whole disk at the end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_of_requests_does_what_a_disk_does(
        storage in prop_oneof![Just(Storage::Raw), Just(Storage::Qcow2), Just(Storage::Overlay)],
        options in any::<[bool; 2]>(),
        steps in prop::collection::vec(step(), 1..20),
    ) {
        run(storage, options, &steps);
    }
}
