//! Guests that do anything at all: no panic, no hang, and a working device after a reset.

use std::sync::Arc;

use bootyard_image::raw::RawDisk;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{Driver, EVENT_IDX, Machine, RAM_SIZE, WINDOW};
use super::{QUEUE, entropy};
use crate::bus::BusDevice;
use crate::virtio::{Block, Entropy};

/// One access of a guest.
#[derive(Debug, Clone)]
enum Access {
    Port { offset: u64, data: Vec<u8> },
    Config { offset: u64, data: Vec<u8> },
    Memory { offset: u64, data: Vec<u8> },
    Read { offset: u64, len: usize },
}

fn access() -> impl Strategy<Value = Access> {
    // Values that mean something to some register are tried more often than chance would.
    let byte = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x0f), Just(0x4f), Just(0xff)];
    let data = prop::collection::vec(byte, 1..=8);
    let ecam = prop_oneof![0_u64..0x100, (1_u64 << 15)..(1 << 15 | 0x100), 0_u64..1 << 20];
    let registers = prop_oneof![
        0_u64..0x40,
        0x1000_u64..0x1008,
        0x3000_u64..0x3008,
        0_u64..0x5000,
        0x4000_u64..0x4840
    ];
    prop_oneof![
        (0_u64..8, data.clone()).prop_map(|(offset, data)| Access::Port { offset, data }),
        (ecam, data.clone()).prop_map(|(offset, data)| Access::Config { offset, data }),
        (registers.clone(), data).prop_map(|(offset, data)| Access::Memory { offset, data }),
        (registers, 1_usize..=8).prop_map(|(offset, len)| Access::Read { offset, len }),
    ]
}

fn perform(machine: &Machine, access: &Access) {
    let mut buffer = [0; 8];
    match access {
        Access::Port { offset, data } => {
            machine.ports.write(*offset, data);
            machine.ports.read(*offset, &mut buffer[..data.len()]);
        }
        Access::Config { offset, data } => {
            machine.ecam.write(*offset, data);
            machine.ecam.read(*offset, &mut buffer[..data.len()]);
        }
        Access::Memory { offset, data } => machine.mmio_write(WINDOW.start + offset, data),
        Access::Read { offset, len } => {
            machine.mmio.read(WINDOW.start + offset, &mut buffer[..*len]);
        }
    }
}

/// A descriptor whose numbers are valid about as often as not.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let ram = RAM_SIZE as u64;
    let address = prop_oneof![4 => 0..ram, 1 => QUEUE..QUEUE + 0x3000, 1 => ram - 16..ram + 16, 1 => any::<u64>()];
    let len =
        prop_oneof![4 => 0_u32..0x1000, 2 => Just(16_u32), 2 => Just(512_u32), 1 => any::<u32>()];
    (address, len, 0_u16..8, 0_u16..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_accesses_leaves_a_device_that_a_reset_revives(
        accesses in prop::collection::vec(access(), 1..80),
    ) {
        let (machine, _function, address) = Machine::with(Entropy::new());
        for access in &accesses {
            perform(&machine, access);
        }
        machine.root.reset();
        machine.pending_interrupts();
        let driver = Driver::bind(&machine, address);
        entropy(&mut driver.start(0, QUEUE));
    }

    #[test]
    fn any_ring_leaves_a_block_device_that_a_reset_revives(
        table in prop::collection::vec(descriptor(), 16),
        heads in prop::collection::vec(0_u16..18, 1..16),
        kind in prop_oneof![0_u32..14, any::<u32>()],
        sector in prop_oneof![0_u64..70, any::<u64>()],
        event_idx in any::<bool>(),
    ) {
        let disk = Arc::new(RawDisk::read_only(vec![9_u8; 64 * 512]));
        let (machine, _function, address) = Machine::with(Block::new(disk, false, "hostile"));
        let driver = Driver::bind(&machine, address);
        let mut queue = driver.start(if event_idx { u64::MAX } else { !EVENT_IDX }, QUEUE);
        for ((address, len, flags, next), index) in table.iter().zip(0..) {
            queue.describe(index, *address, *len, *flags, *next);
            // A plausible header wherever a buffer can be.
            let _ = machine.memory.write_obj(kind, GuestAddress(*address));
            let _ = machine.memory.write_obj(sector, GuestAddress(address.saturating_add(8)));
        }
        for head in heads {
            queue.make_available(head);
            queue.ring();
        }
        driver.reset();
        machine.pending_interrupts();
        let mut queue = driver.start(0, QUEUE);
        queue.memory().write_slice(&[0; 16], GuestAddress(0x20_000)).unwrap();
        let used = queue.transact(&[(0x20_000, 16, false), (0x21_000, 513, true)]);
        prop_assert_eq!(used, 513);
    }
}
